"""One pass over the rows of a table: its cells as numbers, and what its columns are, or lack."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gdtrain.data.tables.cells import (
    NEARLY_NUMBERS,
    WITH_PANDAS,
    Kind,
    are_times,
    common_unit,
    days,
    days_stand_first,
    has_zone,
    kind_of,
    line_of_pandas,
    may_be_a_fraction,
    spellings,
)
from gdtrain.data.tables.formats.arrow_arrays import (
    Array,
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
from gdtrain.data.tables.preparation import CACHED, Column
from gdtrain.wording import counted

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
            first, last = float(cells[0]), float(cells[-1])
            self.begins = first if self.begins is None else self.begins
            self.counts_rows = (
                (self.last is None or first == self.last + 1)
                and last == first + (len(cells) - 1)
                and np.array_equal(cells, first + np.arange(len(cells)))
            )
            self.last = last
        if self.distinct is not None:
            few, rest = cells[:256], cells[256:]  # the first are mostly too many already
            different = {*self.distinct.tolist(), *few[~np.isnan(few)].tolist()}
            if len(rest) and len(different) <= MOST_COUNTED:
                new = rest[~(np.isin(rest, list(different)) | np.isnan(rest))]
                different.update(np.unique(new).tolist())
            is_few = len(different) <= MOST_COUNTED
            self.distinct = np.array(sorted(different)) if is_few else None

    def add_not_finite(self, wrong: Array, first_row: int) -> None:
        self.not_finite += int(wrong.sum())
        if self.first_not_finite is None:
            self.first_not_finite = first_row + int(wrong.argmax())


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


# Not told apart by upper and lower case.
MISSING = ("", "NA", "N/A", "NaN", "?", "NULL", "None")


def marks_of(missing_values: Sequence[str] | None) -> list[str]:
    """The texts that stand for no value, as files have them; by default in any case of letters."""
    if missing_values is not None:
        return list(dict.fromkeys(missing_values))
    cases = ((m, m.lower(), m.upper(), m.capitalize()) for m in MISSING)
    return list(dict.fromkeys(form for forms in cases for form in forms))


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
    kinds = [_kind(each, decimal) for each in text.numbers]
    totals: dict[Kind, int] = {}
    for kind, count in zip(kinds, text.counts.tolist(), strict=True):
        totals[kind] = totals.get(kind, 0) + count
    return kinds, totals


def _kind(text: str, decimal: str) -> Kind:
    """Dates have their points and commas where they are, whatever stands before a fraction."""
    kind = kind_of(text)
    return kind if decimal == "." or kind == "date" else kind_of(_with_point(text))


def _with_point(text: str) -> str:
    """With a decimal point, where a comma stands for it."""
    return text.translate(_SWAPPED)


_SWAPPED = str.maketrans(",.", ".,")


@dataclass
class GrowingRows:
    """Rows of float64 in pieces that are as many as are needed, and at last one array.

    before: called with the bytes that are to be taken, before they are; of the first piece, with
    those of the rows that come first, which mostly are all. room: rows of the last piece that are
    free.
    """

    width: int
    before: Callable[[int], object] | None = None
    length: int = 0
    room: int = 0
    pieces: list[Array] = field(default_factory=list)

    def add(self, rows: Array) -> None:
        while len(rows):
            if not self.room:
                self.room = 1 + _PIECE // (8 * self.width)
                if self.before is not None:
                    self.before(_PIECE if self.pieces else rows.nbytes)
                self.pieces.append(np.empty((self.room, self.width)))
            piece, taken = self.pieces[-1], min(self.room, len(rows))
            at = len(piece) - self.room
            piece[at : at + taken] = rows[:taken]
            rows = rows[taken:]
            self.room -= taken
            self.length += taken

    def joined(self) -> Array:
        """All rows, [n, width]; each piece is given back as soon as it is copied."""
        if len(self.pieces) == 1:
            return self.pieces[0][: self.length]
        out, at = np.empty((self.length, self.width)), 0
        self.pieces.reverse()
        while self.pieces:
            piece = self.pieces.pop()[: self.length - at]
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out


# From this size on, the C library gives memory back to the system when it is freed.
_PIECE = 32 << 20


# ── what the columns are, or what is wrong with them ────────────────────────────────────

# Text of more different values than these, and than this share of the rows, is no category.
MANY_VALUES, MANY_SHARE = 50, 0.05
# From so many rows on, a first column that counts them is taken for their number.
FEWEST_COUNTED = 10

Places = Callable[[Sequence[int]], list[str]]


class AsText(Exception):  # noqa: N818
    """Columns that turn out to be text late: the table must be read again, with them as text."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


@dataclass(frozen=True)
class ColumnFault:
    """What is wrong with the cells of a column, and what would be right.

    useless: whether it can only be left out. settings: of the table, that would be right.
    """

    column: str
    text: str
    useless: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"column {self.column!r}{self.text}"


@dataclass(frozen=True)
class Understanding:
    """How columns are understood. places: see TableFiles.

    categorical: columns that are categories, whatever stands in them. targets: columns that are no
    inputs. missing_values: texts that stand for no value. decimal: before a fraction. swapped:
    whether other columns show that it is the other mark that stands there.
    """

    places: Places
    categorical: Collection[str] = ()
    targets: Collection[str] = ()
    missing_values: Sequence[str] = ()
    decimal: str = "."
    swapped: bool = False

    def columns(self, scans: Sequence[ColumnScan]) -> tuple[list[Column], list[ColumnFault]]:
        """What each column is, and what is wrong with those that are not understood.

        Raises AsText.
        """
        again: list[str] = []
        columns, faults = [], []
        for scan in scans:
            try:
                columns.append(self._column(scan))
            except _NotUnderstood as error:
                faults.append(error.fault)
                columns.append(Column(scan.name, missing=scan.missing))
            else:
                if scan.numbers and scan.text is not None:
                    again.append(scan.name)
        if again:
            raise AsText(again)
        if not self.swapped and any(fault.settings for fault in faults):
            # What stands before the fractions of one column stands before those of others.
            return replace(self, swapped=True).columns(scans)
        return columns, faults

    def _column(self, scan: ColumnScan) -> Column:
        useless = None
        if scan.unusable is not None:
            useless = f"holds {scan.unusable}, which is not a number, text or date"
        elif scan.missing == scan.rows and scan.name not in self.targets:
            useless = "has no values at all"
        if useless is not None:
            way_out = f"leave it out: exclude: [{yaml_text(scan.name)}]"
            if scan.name in self.targets:
                way_out = "choose another target, or write it as numbers or text"
            raise _NotUnderstood(ColumnFault(scan.name, f" {useless}; {way_out}", useless=True))
        if scan.not_finite:
            assert scan.first_not_finite is not None
            raise self._not_finite(scan, scan.not_finite, scan.first_not_finite)
        if scan.text is None:
            distinct = None if scan.distinct is None else len(scan.distinct)
            found = Column(scan.name, missing=scan.missing, distinct=distinct)
            return replace(found, first_day=scan.least) if scan.from_dates else found
        found = Column(scan.name, missing=scan.missing, distinct=len(scan.text.numbers))
        if scan.name in self.categorical:
            self._check_codes(scan, scan.text)
            return replace(found, categories=sorted(scan.text.numbers))
        return self._of_text(scan, scan.text, found)

    def _check_codes(self, scan: ColumnScan, text: TextCells) -> None:
        """Refuse codes that are written in two ways, such as 4 and 4.0, and so two categories."""
        for one, *others in spellings(text.numbers, self.decimal).values():
            if others:
                rows = [int(text.first_rows[text.numbers[cell]]) for cell in (one, others[0])]
                places = self.places(rows)
                message = (
                    f": {one!r} in {places[0]} and {others[0]!r} in {places[1]} are the same, and "
                    "would be two categories; write it in one way"
                )
                raise _NotUnderstood(ColumnFault(scan.name, message))

    def _of_text(self, scan: ColumnScan, text: TextCells, found: Column) -> Column:
        kinds, totals = kinds_of(text, self.decimal)
        present = scan.numbers + sum(totals.values())
        if not present:  # a target of nothing but missing cells
            return found
        numbers = scan.numbers + totals.get("number", 0)
        nearly = sum(n for k, n in totals.items() if k in NEARLY_NUMBERS or k == "not finite")
        dates = totals.get("date", 0)
        if 2 * (numbers + nearly) >= present:
            if numbers < present:
                raise self._odd(scan, text, kinds, "number", present)
            return found
        if 2 * dates > present:
            if dates < present:
                raise self._odd(scan, text, kinds, "date", present)
            first = [self._day(scan, text, each) for each in text.numbers]
            self._check_zones(scan, text)
            return replace(found, first_day=float(math.floor(min(first))))
        if are_times(text.texts):
            raise self._times(scan, text)
        unit = common_unit(text.texts)
        if unit is not None:
            raise self._with_unit(scan, text, unit)
        return replace(found, categories=sorted(text.numbers))

    def _day(self, scan: ColumnScan, text: TextCells, cell: str) -> float:
        day = days(cell)
        if day is None:
            place = self.places([int(text.first_rows[text.numbers[cell]])])[0]
            name, day_first = repr(scan.name), days_stand_first(text.numbers)
            other = "; dayfirst=False if months stand first" if day_first is None else ""
            raise _NotUnderstood(
                ColumnFault(
                    scan.name,
                    f": {cell!r} in {place} is a date that is not written as year-month-day, or "
                    f"does not exist; {WITH_PANDAS}df[{name}] = pd.to_datetime(df[{name}], "
                    f"dayfirst={day_first is not False}){other}; "
                    f"or leave it out: exclude: [{yaml_text(scan.name)}]",
                    useless=scan.name not in self.targets,
                )
            )
        return day

    def _check_zones(self, scan: ColumnScan, text: TextCells) -> None:
        """Raise _NotUnderstood if some dates have a time zone and others have none."""
        zones = [has_zone(cell) for cell in text.numbers]
        if all(zones) or not any(zones):
            return
        first = [int(text.first_rows[zones.index(each)]) for each in (True, False)]
        with_zone, without = (text.texts[zones.index(each)] for each in (True, False))
        places = dict(zip(sorted(first), self.places(sorted(first)), strict=True))
        raise _NotUnderstood(
            ColumnFault(
                scan.name,
                f": {with_zone!r} in {places[first[0]]} has a time zone, and {without!r} in "
                f"{places[first[1]]} has none; write all dates in one way",
            )
        )

    def _times(self, scan: ColumnScan, text: TextCells) -> _NotUnderstood:
        column = f"df[{scan.name!r}]"
        since_midnight = "pipe(lambda t: t - t.dt.normalize())"
        line = (
            f"{column} = pd.to_datetime({column}, format='mixed').{since_midnight}"
            ".dt.total_seconds() / 3600"
        )
        return self._measured(scan, text, "times of day", f"write hours, {WITH_PANDAS}{line}")

    def _with_unit(self, scan: ColumnScan, text: TextCells, unit: str) -> _NotUnderstood:
        column = f"df[{scan.name!r}]"
        point = ".str.replace(',', '.')" if "," in text.texts[0] else ""
        line = f"{column} = {column}.str.removesuffix({unit!r}){point}.astype(float)"
        way = f"write plain numbers, {WITH_PANDAS}{line}"
        return self._measured(scan, text, f"numbers with the unit {unit!r}", way)

    def _measured(
        self, scan: ColumnScan, text: TextCells, what: str, way_out: str
    ) -> _NotUnderstood:
        """The error of a column whose cells are all measured in one way."""
        place = self.places([int(text.first_rows[0])])[0]
        if scan.name not in self.targets:
            way_out += f"; or, if they are names, categorical: [{yaml_text(scan.name)}]"
        such = f"its cells, such as {text.texts[0]!r} in {place}, look like {what}"
        return _NotUnderstood(ColumnFault(scan.name, f": {such}; {way_out}"))

    def _odd(
        self, scan: ColumnScan, text: TextCells, kinds: Sequence[Kind], wanted: str, present: int
    ) -> _NotUnderstood:
        """The error of a column most of whose cells are numbers, or dates."""
        wrong = [number for number, kind in enumerate(kinds) if kind != wanted]
        first = min(wrong, key=lambda number: int(text.first_rows[number]))
        count = int(text.counts[wrong].sum())
        kind, texts = kinds[first], text.texts
        cell, cells = texts[first], [texts[number] for number in wrong[:_MARKS_SHOWN]]
        place = self.places([int(text.first_rows[first])])[0]
        what = f"{count:,} of {present:,} cells are not {wanted}s, the first is {cell!r} in {place}"
        if count == 1:
            what = f"1 of {present:,} cells is not a {wanted}: {cell!r} in {place}"
        kind, either = self._mark_of(kind, {texts[number]: kinds[number] for number in wrong})
        if kind in NEARLY_NUMBERS:
            cells = [texts[number] for number in wrong if kinds[number] in NEARLY_NUMBERS]
        settings = {"decimal": self._other_mark} if kind == "comma" else {}
        way_out = self._way_out(scan, kind, cells, either)
        return _NotUnderstood(ColumnFault(scan.name, f": {what}; {way_out}", settings=settings))

    def _mark_of(self, kind: Kind, wrong: Mapping[str, Kind]) -> tuple[Kind, bool]:
        """Whether commas stand before thousands or fractions, and whether it can be either.

        1,259 is either; it is a fraction where the column has 12,5 too, or others show it. Where
        it has 12,5 and 1,259,000, neither is right for all.
        """
        if kind not in ("grouped", "comma"):
            return kind, False
        either = all(may_be_a_fraction(cell) for cell, k in wrong.items() if k == "grouped")
        if "comma" in wrong.values() or (either and self.swapped):
            return "comma" if either else "text", False
        return kind, either

    @property
    def _other_mark(self) -> str:
        return "." if self.decimal == "," else ","

    def _way_out(self, scan: ColumnScan, kind: Kind, cells: Sequence[str], either: bool) -> str:
        """either: whether marks may stand before thousands or before fractions."""
        name = "commas" if self.decimal == "." else "points"
        swap = f'set decimal: "{self._other_mark}"'
        if kind == "comma":
            return f"these look like numbers with decimal {name}; {swap}"
        if kind in NEARLY_NUMBERS:
            # With decimal commas, thousands are parted by points.
            kind = "points" if self.decimal == "," and kind == "grouped" else kind
            line = line_of_pandas(scan.name, kind, cells)
            return (
                f"these look like {NEARLY_NUMBERS[kind]}; write plain numbers, {WITH_PANDAS}{line}"
                + (f"; or, where fractions stand behind the {name}, {swap}" if either else "")
            )
        if kind == "not finite":
            return "remove the row or fill in a finite number"
        marks = ", ".join(map(yaml_text, [*self.missing_values, *cells]))
        way = (
            f"correct them; or, if they stand for no value, set missing_values: [{marks}] and "
            "missing: drop, mean, median or most_frequent"
        )
        if self._may_be_names(scan):
            way += f"; or, if all of them are names, categorical: [{yaml_text(scan.name)}]"
        return way

    def _may_be_names(self, scan: ColumnScan) -> bool:
        """Whether the numbers of a column are so few that they may stand for categories."""
        if scan.name in self.targets or scan.text is None or scan.distinct is None:
            return False
        different = len(scan.distinct) + len(scan.text.numbers)
        return different <= MOST_COUNTED and 4 * different <= scan.rows

    def _not_finite(self, scan: ColumnScan, count: int, first: int) -> _NotUnderstood:
        text = f"{counted(count, 'cell')} {'is' if count == 1 else 'are'} not finite"
        place = self.places([first])[0]
        way_out = "remove the rows or fill in finite numbers"
        return _NotUnderstood(ColumnFault(scan.name, f": {text}, first in {place}; {way_out}"))


class _NotUnderstood(Exception):  # noqa: N818
    def __init__(self, fault: ColumnFault) -> None:
        super().__init__(fault)
        self.fault = fault


_MARKS_SHOWN = 5


def yaml_text(text: str) -> str:
    """Text as YAML reads it back."""
    plain = text.isalpha() and text.lower() not in _WORDS_OF_YAML
    # YAML forbids most control characters, which are escaped then.
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())


_WORDS_OF_YAML = ("null", "true", "false", "yes", "no", "on", "off", "none", "nan", "y", "n")


def settle_columns(
    cells: Array, scans: Sequence[ColumnScan], columns: Sequence[Column], decimal: str
) -> None:
    """Put numbers, days or places of categories for the texts of all columns."""
    tables = [
        (place, scan.text.start, settled(scan.text, column, decimal))
        for place, (scan, column) in enumerate(zip(scans, columns, strict=True))
        if scan.text is not None
    ]
    rows = max(1, CACHED // max(1, cells.shape[1]))
    for start in range(0, len(cells) if tables else 0, rows):
        block = cells[start : start + rows]
        for place, first, table in tables:
            part = block[max(0, first - start) :, place]
            part[:] = table[np.where(np.isnan(part), len(table) - 1, part).astype(np.int64)]
