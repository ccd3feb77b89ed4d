"""The columns of a table: which are inputs, what they are, and how their cells become inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, groupby
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from gdtrain.errors import ConfigError, DataError
from gdtrain.near_names import nearest

Array = np.ndarray[Any, Any]
Fill = Literal["error", "drop", "mean", "median", "most_frequent"]


@dataclass(frozen=True)
class Column:
    """A column of a table: a number as it is, days, or one input for each category.

    first_day: of a column of dates, whose input is the days since then, counted from 1970-01-01.
    fill: what stands for a missing cell, a number or a category; None: none may be missing.
    indicator: a further input, 1 where the cell is missing. missing, distinct: how many cells
    were missing in training, and different values there were (None: too many to count).
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    name: str
    categories: list[str] | None = None
    first_day: float | None = None
    fill: float | str | None = None
    indicator: bool = False
    missing: int = field(default=0, compare=False)
    distinct: int | None = field(default=None, compare=False)

    @property
    def kind(self) -> Literal["number", "date", "category"]:
        if self.categories is not None:
            return "category"
        return "number" if self.first_day is None else "date"

    @property
    def width(self) -> int:
        """How many inputs it makes."""
        return (1 if self.categories is None else len(self.categories)) + self.indicator

    def fields(self) -> dict[str, Any]:
        """Its fields as JSON holds them; of those that came after 0.1.0, the ones that say more."""
        known = asdict(self)
        extra = {key: known[key] for key in _LATER if known[key]}
        if self.first_day is not None:
            extra["first_day"] = self.first_day
        if self.fill is not None:
            extra["fill"] = self.fill
        return {"name": self.name, "categories": self.categories} | extra

    def learn(self, cells: Array, rule: Fill) -> Column:
        """The column with what stands for missing cells, learnt from those of the training part.

        cells: [n] float64 as :class:`TableScan` keeps them.
        """
        if rule in ("error", "drop"):
            return self
        missing = np.isnan(cells)
        present = cells[~missing] if missing.any() else cells
        if not len(present):
            return replace(self, fill=self.categories[0] if self.categories else 0.0)
        if self.categories is not None:
            counts = np.bincount(present.astype(np.int64), minlength=len(self.categories))
            return replace(self, fill=self.categories[int(counts.argmax())])
        if rule == "most_frequent":
            values, counts = np.unique(present, return_counts=True)
            return replace(self, fill=float(values[counts.argmax()]))
        value = float(np.mean(present) if rule == "mean" else np.median(present))
        return replace(self, fill=value)


CACHED = 1 << 17  # numbers that stay in a core's cache
_LATER = ("indicator", "missing", "distinct")


def inputs_of(cells: Array, columns: Sequence[Column]) -> Tensor:
    """Inputs [n, width] float64 of cells [n, columns] float64: numbers, days, places of categories.

    A missing cell is NaN, and so is what it makes, unless its column has a ``fill``; a category
    of -1, one that is none of the column's, is all zeros.
    """
    plain = all(column.kind == "number" and not column.indicator for column in columns)
    filled = any(column.fill is not None for column in columns)
    if plain and not (filled and np.isnan(cells).any()):
        return torch.from_numpy(cells)
    out = np.zeros((len(cells), sum(column.width for column in columns)))
    rows = max(1, CACHED // max(1, out.shape[1]))
    for start in range(0, len(cells), rows):
        _fill_rows(out[start : start + rows], cells[start : start + rows], columns)
    return torch.from_numpy(out)


def _fill_rows(out: Array, cells: Array, columns: Sequence[Column]) -> None:
    """Columns without missing cells and unknown categories are filled in together."""
    missing = np.atleast_1d(np.isnan(cells).any(axis=0))
    numbers: list[tuple[int, int]] = []
    categories: list[tuple[int, int]] = []
    at = 0
    for place, column in enumerate(columns):
        is_category = column.categories is not None
        is_odd = missing[place] or (is_category and (cells[:, place] < 0).any())
        if is_odd or column.indicator or column.first_day is not None:
            _fill_in(out[:, at : at + column.width], cells[:, place], column)
        else:
            (categories if is_category else numbers).append((place, at))
        at += column.width
    for first, stop, start in _runs(numbers):
        out[:, start : start + stop - first] = cells[:, first:stop]
    if categories:
        places, starts = map(list, zip(*categories, strict=True))
        begins = np.arange(len(cells))[:, None] * at + starts
        out.reshape(-1)[cells[:, places].astype(np.int64) + begins] = 1.0


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Columns that stand side by side in cells and in inputs: first, stop, the first's input."""
    numbered = enumerate(places)
    for _, run in groupby(numbered, lambda each: (each[1][0] - each[0], each[1][1] - each[0])):
        (_, (first, start)), *more = run
        yield first, first + len(more) + 1, start


def _fill_in(out: Array, cells: Array, column: Column) -> None:
    missing = np.isnan(cells)
    if column.indicator:
        out[:, -1] = missing
    if column.fill is not None and missing.any():
        fill = column.fill
        value = column.categories.index(str(fill)) if column.categories else fill
        cells = np.where(missing, value, cells)
        missing[:] = False
    if column.categories is None:
        out[:, 0] = cells if column.first_day is None else cells - column.first_day
        return
    known = np.flatnonzero(~missing & (cells >= 0))
    out[known, cells[known].astype(np.int64)] = 1.0
    out[missing, : len(column.categories)] = np.nan


# ── which columns are inputs ────────────────────────────────────────────────────────────────

_SHOWN_NAMES = 50


def check_columns(
    path: str,
    header: list[str],
    features: list[str] | None,
    wanted: list[str],
    categorical: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    missing: Collection[str] = (),
    indicator: Sequence[str] = (),
) -> list[str]:
    """Names of the input columns: ``features``, or all but the targets ``wanted`` and ``exclude``.

    missing, indicator: columns that these settings name. Raises DataError for names that the
    header does not have, and ConfigError for a choice of columns that makes no sense.
    """
    there = set(header)
    if not wanted:
        raise ConfigError.of("target", "must name at least one column")
    of_cells = {"categorical": categorical, "keep": keep, "missing": missing}
    for name in (*wanted, *(features or ()), *exclude, *chain(*of_cells.values()), *indicator):
        if name not in there:
            near = nearest(name, header)
            hint = f"did you mean {near}?" if near else f"it has {_listed(header)}"
            alone = "; if it should have several, set delimiter" if len(header) == 1 else ""
            raise DataError(f"{path}: has no column {name!r}; {hint}{alone}")
    left_out = {*wanted, *exclude}
    chosen = [n for n in header if n not in left_out] if features is None else features
    if not chosen:
        raise DataError(f"{path}: has no input columns besides the target; at least one is needed")
    used = [*chosen, *wanted]
    counts = Counter(used)
    for name in used:
        if counts[name] > 1:
            raise DataError(f"{path}: column {name!r} is chosen twice; as feature or target, once")
    for key, names in of_cells.items():
        for name in names:
            if name not in counts:
                raise ConfigError.of(key, f"{name!r} is neither a feature nor the target")
    for name in indicator:
        if name not in chosen:
            raise ConfigError.of("indicator", f"{name!r} is no feature; remove it")
    for name in exclude:
        if name in counts:
            raise ConfigError.of("exclude", f"{name!r} is a feature or the target too; remove one")
    return chosen


def _listed(names: list[str]) -> str:
    """The names, or the first of many and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
