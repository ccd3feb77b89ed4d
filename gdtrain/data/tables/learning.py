"""What stands for missing cells, learnt from rows that come in parts and are not kept in memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gdtrain.data.tables.formats.arrow_arrays import Array
from gdtrain.data.tables.preparation import Column
from gdtrain.data.tables.table import MissingRules

MOST_VALUES = 1 << 20  # that are sorted at once
_BITS, _DIGIT = 64, 16  # of a key, and of a digit of it
_DIGITS = 1 << _DIGIT


class Learning:
    """Takes in the rows of the training part, and says what fills in their missing cells.

    The same as :meth:`LoadedTable.learnt`, but for the last bits of a mean. Numbers whose median or
    most frequent one is wanted wait in a temporary file.
    """

    def __init__(self, columns: Sequence[Column], rules: MissingRules) -> None:
        self.columns = list(columns)
        self.rules = [rules.of(column.name) for column in columns]
        self.indicated = [bool(c.missing) and rules.indicated(c.name) for c in columns]
        learns = [place for place, rule in enumerate(self.rules) if rule not in ("error", "drop")]
        self._texts = [place for place in learns if columns[place].categories is not None]
        numbers = [place for place in learns if columns[place].categories is None]
        self._means = [place for place in numbers if self.rules[place] == "mean"]
        self._sorted = [place for place in numbers if self.rules[place] != "mean"]
        self._counts = {p: np.zeros(len(columns[p].categories or ()), int) for p in self._texts}
        self._sums: dict[int, list[float]] = {place: [] for place in self._means}
        self._numbers = dict.fromkeys(self._means, 0)
        self._blocks: list[int] = []  # rows of each in the file
        self._file: Any = tempfile.TemporaryFile() if self._sorted else None  # noqa: SIM115

    def __enter__(self) -> Learning:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def is_needed(self) -> bool:
        """Whether anything is to be learnt."""
        return bool(self._texts or self._means or self._sorted)

    def add(self, cells: Array) -> None:
        """Take in further rows, [n, columns] float64 with NaN for missing cells."""
        for place in self._texts:
            codes = cells[:, place]
            there = codes[codes >= 0].astype(np.int64)
            self._counts[place] += np.bincount(there, minlength=len(self._counts[place]))
        for place in self._means:
            there = cells[:, place][~np.isnan(cells[:, place])]
            self._sums[place].append(float(there.sum()))
            self._numbers[place] += len(there)
        if self._sorted:
            self._file.write(np.ascontiguousarray(cells[:, self._sorted].T).data)
            self._blocks.append(len(cells))

    def learnt(self) -> list[Column]:
        """The columns with what fills in their missing cells."""
        found = [replace(c, indicator=i) for c, i in zip(self.columns, self.indicated, strict=True)]
        for place, counts in self._counts.items():
            categories = found[place].categories
            fill = categories[int(counts.argmax())] if categories else 0.0
            found[place] = replace(found[place], fill=fill)
        for place, sums in self._sums.items():
            mean = math.fsum(sums) / max(1, self._numbers[place])
            found[place] = replace(found[place], fill=mean)
        for number, place in enumerate(self._sorted):
            values = self._column(number)
            found[place] = replace(found[place], fill=_OF_SORTED[self.rules[place]](values))
        return found

    def _column(self, number: int) -> Callable[[], Iterator[Array]]:
        """The numbers of a column that waits in the file, some at a time, as often as asked."""

        def parts() -> Iterator[Array]:
            at = 0
            for rows in self._blocks:
                self._file.seek(8 * (at + number * rows))
                cells = np.frombuffer(self._file.read(8 * rows))
                at += rows * len(self._sorted)
                yield cells[~np.isnan(cells)] + 0.0  # of which no zero is negative

        return parts


def _median(parts: Callable[[], Iterator[Array]]) -> float:
    count = sum(map(len, parts()))
    wanted, before = [(count - 1) // 2, count // 2], 0
    found: list[float] = []
    for values, counts in counted_values(parts):
        ends = before + np.cumsum(counts)
        inside = [rank for rank in wanted if before <= rank < ends[-1]]
        found += [float(values[np.searchsorted(ends, rank, side="right")]) for rank in inside]
        before = int(ends[-1])
        if len(found) == len(wanted):
            break
    return float(np.mean(found)) if count else 0.0


def _most_frequent(parts: Callable[[], Iterator[Array]]) -> float:
    """Of several the least."""
    best, most = 0.0, 0
    for values, counts in counted_values(parts):
        place = int(counts.argmax())
        if counts[place] > most:
            best, most = float(values[place]), int(counts[place])
    return best


_OF_SORTED = {"median": _median, "most_frequent": _most_frequent}


def counted_values(parts: Callable[[], Iterator[Array]]) -> Iterator[tuple[Array, Array]]:
    """The different numbers of all parts, rising, and how often each is there; some at a time.

    parts: gives them again whenever it is called. They are told apart by the digits of a key, so
    that no more than ``MOST_VALUES`` are sorted at once.
    """
    return _below(parts, 0, _BITS)


def _below(
    parts: Callable[[], Iterator[Array]], prefix: int, bits: int
) -> Iterator[tuple[Array, Array]]:
    """The same of the numbers whose key is ``prefix`` in front of its last ``bits``."""
    shift = bits - _DIGIT

    def inside() -> Iterator[tuple[Array, Array]]:
        for part in parts():
            keys = _keys(part)
            if bits < _BITS:
                there = keys >> np.uint64(bits) == np.uint64(prefix)
                part, keys = part[there], keys[there]
            yield part, (keys >> np.uint64(shift) & np.uint64(_DIGITS - 1)).astype(np.int64)

    totals = np.zeros(_DIGITS, dtype=np.int64)
    for _, digits in inside():
        totals += np.bincount(digits, minlength=_DIGITS)
    for first, stop in _spans(totals):
        if totals[first] <= MOST_VALUES:
            chosen = [part[(digits >= first) & (digits < stop)] for part, digits in inside()]
            yield np.unique(np.concatenate(chosen), return_counts=True)
        elif shift:
            yield from _below(parts, prefix << _DIGIT | first, shift)
        else:  # all of them are the same number
            value = next(part[digits == first][:1] for part, digits in inside() if first in digits)
            yield value, totals[first : first + 1]


def _spans(totals: Array) -> Iterator[tuple[int, int]]:
    """Digits side by side of which there are no more than ``MOST_VALUES``, or a single one."""
    first, inside = 0, 0
    for digit in np.flatnonzero(totals).tolist():
        if inside and inside + totals[digit] > MOST_VALUES:
            yield first, digit
            inside = 0
        if not inside:
            first = digit
        inside += int(totals[digit])
    if inside:
        yield first, len(totals)


def _keys(numbers: Array) -> Array:
    """Unsigned integers that rise as the numbers do."""
    bits = np.ascontiguousarray(numbers).view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)
