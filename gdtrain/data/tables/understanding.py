"""From what a pass over a table has seen to what its columns are, or what is wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    line_of_pandas,
    may_be_a_fraction,
)
from gdtrain.data.tables.column import CACHED, Array, Column
from gdtrain.data.tables.scan import MOST_COUNTED, ColumnScan, TextCells, kinds_of, settled
from gdtrain.data.wording import counted

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
            return replace(found, categories=sorted(scan.text.numbers))
        return self._of_text(scan, scan.text, found)

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
    return text if plain else json.dumps(text, ensure_ascii=False)


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
