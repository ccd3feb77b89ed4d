"""From what a pass over a table has seen to what its columns are, or what is wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from gdtrain.data.names import counted
from gdtrain.data.tables.cells import NEARLY_NUMBERS, Kind, days
from gdtrain.data.tables.column import Array, Column
from gdtrain.data.tables.scan import MOST_COUNTED, ColumnScan, TextCells, kinds_of, settle
from gdtrain.errors import DataError

# Text of more different values than these, and than this share of the rows, is no category.
MANY_VALUES, MANY_SHARE = 50, 0.05
DECIMAL_COMMA = 'set decimal: ","'
# From so many rows on, a first column that counts them is taken for their number.
FEWEST_COUNTED = 10

Places = Callable[[Sequence[int]], list[str]]


class AsText(Exception):  # noqa: N818
    """Columns that turn out to be text late: the table must be read again, with them as text."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


@dataclass(frozen=True)
class Understanding:
    """How columns are understood. path: of the table, for messages; places: see TableFiles.

    categorical: columns that are categories, whatever stands in them. asked_for: columns that were
    named as inputs. targets: columns that are none. missing_values: texts that stand for no value.
    decimal: before a fraction.
    """

    path: str
    places: Places
    categorical: Collection[str] = ()
    asked_for: Collection[str] = ()
    targets: Collection[str] = ()
    missing_values: Sequence[str] = ()
    decimal: str = "."

    def columns(self, scans: Sequence[ColumnScan]) -> list[Column]:
        """What each column is.

        Raises DataError, with place and count, for cells that do not fit the others, and AsText.
        """
        again: list[str] = []
        columns = []
        for scan in scans:
            column = self._column(scan)
            if column.categories is not None and scan.numbers and scan.text is not None:
                again.append(scan.name)
            columns.append(column)
        if again:
            raise AsText(again)
        return columns

    def _column(self, scan: ColumnScan) -> Column:
        if scan.not_finite:
            assert scan.first_not_finite is not None
            raise self._bad(scan, scan.not_finite, scan.first_not_finite, "not finite")
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
        if not present:  # nothing but missing cells
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
            return replace(found, first_day=float(math.floor(min(first))))
        return replace(found, categories=sorted(text.numbers))

    def _day(self, scan: ColumnScan, text: TextCells, cell: str) -> float:
        day = days(cell)
        if day is None and scan.name in self.asked_for:
            place = self.places([int(text.first_rows[text.numbers[cell]])])[0]
            name = repr(scan.name)
            raise DataError(
                f"{self.path}: column {name}: {cell!r} in {place} is a date whose day and month "
                "can be mistaken, or that does not exist; write year-month-day, with pandas: "
                f"df[{name}] = pd.to_datetime(df[{name}], dayfirst=True)"
            )
        return _ANY_DAY if day is None else day

    def _odd(
        self, scan: ColumnScan, text: TextCells, kinds: Sequence[Kind], wanted: str, present: int
    ) -> DataError:
        """The error of a column most of whose cells are numbers, or dates."""
        wrong = [number for number, kind in enumerate(kinds) if kind != wanted]
        first = min(wrong, key=lambda number: int(text.first_rows[number]))
        count = int(text.counts[wrong].sum())
        kind, texts = kinds[first], text.texts
        cell, cells = texts[first], [texts[number] for number in wrong[:_MARKS_SHOWN]]
        place = self.places([int(text.first_rows[first])])[0]
        what = f"{count:,} of {present:,} cells are no {wanted}s, the first is {cell!r} in {place}"
        if count == 1:
            what = f"1 of {present:,} cells is no {wanted}: {cell!r} in {place}"
        return DataError(
            f"{self.path}: column {scan.name!r}: {what}; {self._way_out(scan, kind, cells)}"
        )

    def _way_out(self, scan: ColumnScan, kind: Kind, cells: Sequence[str]) -> str:
        if kind == "comma":
            return f"these look like numbers with decimal commas; {DECIMAL_COMMA}"
        if kind in NEARLY_NUMBERS:
            what, line = NEARLY_NUMBERS[kind]
            written = line.format(name=repr(scan.name))
            return f"these look like {what}; write plain numbers, with pandas: {written}"
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

    def _bad(self, scan: ColumnScan, count: int, first: int, what: str) -> DataError:
        place = self.places([first])[0]
        text = f"{counted(count, 'cell')} {'is' if count == 1 else 'are'} {what}, first in {place}"
        return DataError(
            f"{self.path}: column {scan.name!r}: {text}; remove the rows or fill in finite numbers"
        )


_ANY_DAY = 0.0
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
    for place, (scan, column) in enumerate(zip(scans, columns, strict=True)):
        if scan.text is not None:
            settle(cells[:, place], scan.text, column, decimal)
