"""All combinations of settings, of which the ordinary suite takes enough to see each pair."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet

Combination = tuple[int, ...]  # of each axis, the number of the value


def combinations(*axes: Iterable[Any], of: int = 2) -> list[ParameterSet]:
    """Every combination of the axes' values, as parameters of a test.

    Not marked ``long`` are some that hold, together, every choice of values of any ``of`` axes.
    """
    values = [list(axis) for axis in axes]
    chosen = covering([len(axis) for axis in values], of)
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(values, places, strict=True)),
            marks=() if places in chosen else pytest.mark.long,
        )
        for places in _all(values)
    ]


def covering(sizes: Sequence[int], of: int) -> set[Combination]:
    """A small set of combinations with every choice of values of any ``of`` axes.

    Greedy: next is what has most that is new, and among these what uses each value evenly.
    """
    everything = {places: set(_parts(places, of)) for places in _all([range(n) for n in sizes])}
    missing = set().union(*everything.values())
    chosen: list[Combination] = []
    used: Counter[tuple[int, int]] = Counter()
    while missing:
        best = max(
            everything,
            key=lambda places: (
                len(everything[places] & missing),
                -sum(used[place] for place in enumerate(places)),
            ),
        )
        chosen.append(best)
        used.update(enumerate(best))
        missing -= everything[best]
    return set(chosen)


def _all(axes: Sequence[Sequence[Any]]) -> list[Combination]:
    return list(itertools.product(*(range(len(axis)) for axis in axes)))


def _parts(places: Combination, of: int) -> Iterable[tuple[tuple[int, int], ...]]:
    return itertools.combinations(enumerate(places), of)
