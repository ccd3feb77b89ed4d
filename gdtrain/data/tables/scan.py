"""One pass over the rows of a table: what each column is, and its cells as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gdtrain.data.tables.cells import Kind, days, kind_of
from gdtrain.data.tables.column import Array, Column
from gdtrain.data.tables.formats.arrow_arrays import (
    as_numbers,
    as_numpy,
    as_text,
    has_codes,
    in_one_way,
    indices_of,
    is_coded,
    is_null,
    is_read,
    is_text,
    trimmed,
    typed_numbers,
)

MOST_COUNTED = 32  # different numbers that are counted of a column


@dataclass(slots=True)  # of which there are as many as columns
class ColumnScan:
    """What has been seen of a column.

    text: its cells are taken as text; else they are numbers so far. missing: cells without a
    value; not_finite: infinities, or NaN that is not missing; each with the row of the first.
    distinct: the different numbers, None once they are more than are counted.
    """

    name: str
    text: TextCells | None = None
    rows: int = 0
    numbers: int = 0  # before it was text
    missing: int = 0
    first_missing: int | None = None
    not_finite: int = 0
    first_not_finite: int | None = None
    distinct: Array | None = field(default_factory=lambda: np.empty(0))
    counts_rows: bool = True  # each number is the one before it and 1
    last: float | None = None
    begins: float | None = None
    from_dates: bool = False  # the file itself says that these are dates
    least: float = 0.0  # of dates, the first day
    unusable: str | None = None  # what the file holds that is not a number, text or date

    def add_numbers(self, cells: Array, first_row: int, missing: int) -> None:
        """Take notice of further cells, NaN where ``missing`` of them are."""
        if missing and self.first_missing is None:
            self.first_missing = first_row + int(np.isnan(cells).argmax())
        self.missing += missing
        self.rows += len(cells)
        self.numbers += len(cells) - missing
        if self.counts_rows:
            self._look_whether_it_counts(cells)
        if self.distinct is not None:
            self._count(cells)

    def add_not_finite(self, wrong: Array, first_row: int) -> None:
        self.not_finite += int(wrong.sum())
        if self.first_not_finite is None:
            self.first_not_finite = first_row + int(wrong.argmax())

    def _look_whether_it_counts(self, cells: Array) -> None:
        first = float(cells[0])
        self.begins = first if self.begins is None else self.begins
        last, goes_on = float(cells[-1]), self.last is None or first == self.last + 1
        self.counts_rows = (
            goes_on
            and last == first + (len(cells) - 1)
            and np.array_equal(cells, first + np.arange(len(cells)))
        )
        self.last = last

    def _count(self, cells: Array) -> None:
        assert self.distinct is not None
        few, rest = cells[:256], cells[256:]  # the first are mostly too many already
        different = {*self.distinct.tolist(), *few[~np.isnan(few)].tolist()}
        if len(rest) and len(different) <= MOST_COUNTED:
            new = rest[~(np.isin(rest, list(different)) | np.isnan(rest))]
            different.update(np.unique(new).tolist())
        self.distinct = None
        if len(different) <= MOST_COUNTED:
            self.distinct = np.array(sorted(different))


class TextCells:
    """The different texts of a column, numbered as they come, and how often each stands there.

    missing: texts that stand for no value. start: the row from which on the column is text.
    """

    def __init__(self, missing: frozenset[str], start: int = 0) -> None:
        self.missing = missing
        self.start = start
        self.numbers: dict[str, int] = {}
        self.counts = np.zeros(0, dtype=np.int64)
        self.first_rows = np.zeros(0, dtype=np.int64)

    def add(self, cells: Any, first_row: int) -> Array:
        """The number of each cell of an Arrow array of text, NaN where it is missing."""
        coded = cells.dictionary_encode()  # itself, if it is so already
        known, texts = self.numbers, coded.dictionary.to_pylist()
        places = np.array([known[t] if t in known else self._number(t) for t in texts] + [-1])
        codes = places[indices_of(coded, len(places) - 1)]
        self._note(codes, first_row)
        return np.where(codes < 0, np.nan, codes)

    def _number(self, text: str | None) -> int:
        text = (text or "").strip()
        if text in self.missing:
            return -1
        return self.numbers.setdefault(text, len(self.numbers))

    def _note(self, codes: Array, first_row: int) -> None:
        before, now = len(self.counts), len(self.numbers)
        present = codes[codes >= 0]
        counts = np.bincount(present, minlength=now)
        counts[:before] += self.counts
        self.counts = counts
        if now > before:
            firsts = np.full(now, -1, dtype=np.int64)
            firsts[codes[::-1]] = first_row + np.arange(len(codes))[::-1]
            firsts[:before] = self.first_rows
            self.first_rows = firsts

    @property
    def texts(self) -> list[str]:
        return list(self.numbers)


class TableScan:
    """Finds what the columns of a table are from all of its rows, and keeps the cells if asked to.

    names: of the columns. text: those to be taken as text from the first row on. missing: texts
    that stand for no value. decimal: what stands before a fraction.

    ``kept``: the cells, [n, columns] float64; of text, the number of each, before :func:`settled`.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        text: Iterable[str] = (),
        missing: Iterable[str] = (),
        decimal: str = ".",
        keep: bool = True,
        before: Callable[[int], object] | None = None,
    ) -> None:
        self.missing = frozenset(missing)
        self.decimal = decimal
        taken_as_text = set(text)
        self.columns = [
            ColumnScan(n, TextCells(self.missing) if n in taken_as_text else None) for n in names
        ]
        self.rows = 0
        self._trim = False
        self.kept = GrowingRows(len(self.columns), before)
        self._keep = keep

    def add(self, arrays: Sequence[Any]) -> None:
        """Take in further rows: an Arrow array for each column, of one length."""
        size = len(arrays[0])
        block = np.empty((len(self.columns), size))
        floats, others = list[int](), list[int]()
        for place, (column, cells) in enumerate(zip(self.columns, arrays, strict=True)):
            is_number = column.text is None and cells.type == "double"
            (floats if is_number else others).append(place)
        if floats:  # NaN where they are missing: looked at together
            numbers = np.array([as_numpy(arrays[place], np.nan) for place in floats])
            self._note(floats, numbers, block, None)
        if others:
            self._add_others(others, arrays, block)
        if self._keep:
            self.kept.add(block.T)
        self.rows += size

    def _add_others(self, places: list[int], arrays: Sequence[Any], block: Array) -> None:
        """Columns that are not read as float64 from the first row on."""
        strings = {}
        for place in places:
            column = self.columns[place]
            cells = self._usable(column, arrays[place])
            if column.text is None and is_coded(cells):
                column.text = TextCells(self.missing, self.rows)
            if column.text is not None:
                block[place] = self._add_text(column, cells)
            elif is_text(cells):
                strings[place] = cells
            else:
                self._add_typed(place, cells, block)
        if strings:
            self._add_strings(strings, block)

    def _usable(self, column: ColumnScan, cells: Any) -> Any:
        """Cells in one way, or zeros for what is not a number, text or date."""
        cells = in_one_way(cells, keep_coded=True)
        if is_coded(cells) or is_read(cells):
            return cells
        import pyarrow as pa

        column.unusable = str(cells.type)
        return pa.repeat(0, len(cells))

    def _add_strings(self, arrays: Mapping[int, Any], block: Array) -> None:
        """Columns of text that have been numbers so far: read together, which is fastest."""
        import pyarrow as pa

        joined = pa.concat_arrays(list(arrays.values()))
        numbers = None if has_codes(joined) else self._as_numbers(joined)
        if numbers is not None:
            self._note(list(arrays), numbers.reshape(len(arrays), -1), block, joined)
            return
        for place, cells in arrays.items():
            numbers = None if has_codes(cells) else self._as_numbers(cells)
            if numbers is not None:
                self._note([place], numbers[None], block, cells)
                continue
            column = self.columns[place]
            column.text = TextCells(self.missing, self.rows)
            block[place] = self._add_text(column, cells)

    def _as_numbers(self, cells: Any) -> Array | None:
        """Text as float64, NaN where it is missing; None if some of it is not a number."""
        for trim in (False, True) if not self._trim else (True,):
            numbers = as_numbers(cells, self.decimal, self.missing if trim else None)
            if numbers is not None:
                self._trim = trim
                return numbers
        return None

    def _note(self, places: list[int], numbers: Array, block: Array, source: Any) -> None:
        """numbers: [places, rows], made of the texts of ``source``, if there are some."""
        missing = np.zeros(len(places), dtype=np.int64)
        finite = np.isfinite(numbers)
        if not finite.all():
            null = np.isnan(numbers) if source is None else self._null(source).reshape(finite.shape)
            missing, wrong = null.sum(axis=1), ~(finite | null)
            for row in np.flatnonzero(wrong.any(axis=1)).tolist():
                self.columns[places[row]].add_not_finite(wrong[row], self.rows)
            numbers = np.where(wrong, 0.0, numbers)  # they are reported as what they are
        for place, cells, count in zip(places, numbers, missing.tolist(), strict=True):
            self.columns[place].add_numbers(cells, self.rows, count)
        block[places] = numbers

    def _null(self, source: Any) -> Array:
        if self._trim:
            source = trimmed(source, self.missing)
        return is_null(source)

    def _add_typed(self, place: int, cells: Any, block: Array) -> None:
        """A column that the file itself says the type of."""
        column = self.columns[place]
        numbers, is_date = typed_numbers(cells)
        missing = np.isnan(numbers)
        if is_date and not missing.all():
            first = float(np.floor(np.nanmin(numbers)))
            column.least = min(first, column.least) if column.from_dates else first
            column.from_dates = True
        wrong = ~np.isfinite(numbers) & ~missing
        if wrong.any():
            column.add_not_finite(wrong, self.rows)
            numbers = np.where(wrong, 0.0, numbers)
        column.add_numbers(numbers, self.rows, int(missing.sum()))
        block[place] = numbers

    def _add_text(self, column: ColumnScan, cells: Any) -> Array:
        assert column.text is not None
        codes = column.text.add(as_text(cells), self.rows)
        missing = np.isnan(codes)
        if missing.any() and column.first_missing is None:
            column.first_missing = self.rows + int(missing.argmax())
        column.missing += int(missing.sum())
        column.rows += len(codes)
        return codes


def settled(text: TextCells, column: Column, decimal: str) -> Array:
    """By the number of a text what stands for it: a number, a day or the place of its category.

    NaN, for a missing cell, is the last.
    """
    if column.categories is not None:
        places = {category: place for place, category in enumerate(column.categories)}
        values = [float(places[each]) for each in text.numbers]
    elif column.first_day is not None:
        values = [days(each) or 0.0 for each in text.numbers]
    else:
        values = [float(each.replace(decimal, ".")) for each in text.numbers]
    return np.array([*values, np.nan])


def kinds_of(text: TextCells, decimal: str) -> tuple[list[Kind], dict[Kind, int]]:
    """The kind of each text, and how many cells there are of each kind."""
    kinds = [kind_of(each if decimal == "." else _with_point(each)) for each in text.numbers]
    totals: dict[Kind, int] = {}
    for kind, count in zip(kinds, text.counts.tolist(), strict=True):
        totals[kind] = totals.get(kind, 0) + count
    return kinds, totals


def _with_point(text: str) -> str:
    """With a decimal point, where a comma stands for it."""
    return text.translate(_SWAPPED)


_SWAPPED = str.maketrans(",.", ".,")


class GrowingRows:
    """Rows of float64 in pieces that are as many as are needed, and at last one array.

    before: called with the bytes that are to be taken, before they are; of the first piece, with
    those of the rows that come first, which mostly are all.
    """

    def __init__(self, width: int, before: Callable[[int], object] | None = None) -> None:
        self.width = width
        self.length = 0
        self._before = before
        self._pieces: list[Array] = []
        self._room = 0

    def add(self, rows: Array) -> None:
        while len(rows):
            if not self._room:
                self._room = 1 + _PIECE // (8 * self.width)
                if self._before is not None:
                    self._before(_PIECE if self._pieces else rows.nbytes)
                self._pieces.append(np.empty((self._room, self.width)))
            piece, taken = self._pieces[-1], min(self._room, len(rows))
            at = len(piece) - self._room
            piece[at : at + taken] = rows[:taken]
            rows = rows[taken:]
            self._room -= taken
            self.length += taken

    def joined(self) -> Array:
        """All rows, [n, width]; each piece is given back as soon as it is copied."""
        if len(self._pieces) == 1:
            return self._pieces[0][: self.length]
        out, at = np.empty((self.length, self.width)), 0
        self._pieces.reverse()
        while self._pieces:
            piece = self._pieces.pop()[: self.length - at]
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out


# From this size on, the C library gives memory back to the system when it is freed.
_PIECE = 32 << 20
