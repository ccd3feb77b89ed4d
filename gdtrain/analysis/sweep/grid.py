"""The points of a grid of settings: all of them, or some at random, each with every seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from gdtrain.errors import ConfigError

SEED = "seed"  # the setting over which runs are averaged

Point = dict[str, Any]


def points_of(
    grid: Mapping[str, Sequence[Any]], *, random: int | None = None, random_seed: int = 0
) -> list[Point]:
    """Every combination of the grid's values, in order, the seeds varying fastest.

    random: draw so many of the combinations of all settings but the seed, without replacement.
    Raises ConfigError for a grid that is none.

    >>> points_of({"lr": [0.1, 0.3], "seed": [0, 1]})[:3]
    [{'lr': 0.1, 'seed': 0}, {'lr': 0.1, 'seed': 1}, {'lr': 0.3, 'seed': 0}]
    """
    _check(grid, random)
    names = [name for name in grid if name != SEED]
    settings = list(product(*(grid[name] for name in names)))
    if random is not None and random < len(settings):
        drawn = np.random.default_rng(random_seed).choice(len(settings), random, replace=False)
        settings = [settings[number] for number in sorted(drawn)]
    seeds: list[Point] = [{SEED: seed} for seed in grid[SEED]] if SEED in grid else [{}]
    return [dict(zip(names, chosen, strict=True)) | seed for chosen in settings for seed in seeds]


def key_of(point: Mapping[str, Any]) -> str:
    """What tells a point from every other one."""
    return json.dumps(point, sort_keys=True, default=repr)


def _check(grid: Mapping[str, Sequence[Any]], random: int | None) -> None:
    if not grid:
        raise ConfigError.of("grid", "is empty; give at least one setting with its values")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray | range):
            raise ConfigError.of(f"grid.{name}", f"must be a list of values, got {values!r}")
        if not len(values):
            raise ConfigError.of(f"grid.{name}", "has no values; give at least one")
        keys = [key_of({name: value}) for value in values]
        twice = next((v for v, key in zip(values, keys, strict=True) if keys.count(key) > 1), None)
        if twice is not None:
            raise ConfigError.of(f"grid.{name}", f"holds {twice!r} twice; give each value once")
    if random is not None and random < 1:
        raise ConfigError.of("random", f"must be >= 1, got {random}")
