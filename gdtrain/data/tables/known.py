"""Tables whose columns are known: their rows as inputs, for predictions and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from gdtrain.data.tables.cells import days, kind_of, plain_code, spellings
from gdtrain.data.tables.formats.arrow_arrays import (
    Array,
    as_numbers,
    as_text,
    in_one_way,
    indices_of,
    is_coded,
    is_read,
    is_text,
    typed_numbers,
)
from gdtrain.data.tables.formats.csv_file import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.preparation import Column, inputs_of
from gdtrain.data.tables.scan import marks_of
from gdtrain.errors import DataError
from gdtrain.wording import nearest


@dataclass(frozen=True)
class TableStyle:
    """How a run's tables are written and read: the settings of its data source that say so."""

    dialect: Dialect
    marks: Sequence[str]
    ignore_unknown: bool = False

    @classmethod
    def of(cls, data: Any) -> TableStyle:
        """That of a data section, which need not be a table's."""
        there = {each.name: getattr(data, each.name, None) for each in fields(Dialect)}
        dialect = Dialect(**{name: value for name, value in there.items() if value is not None})
        ignore = getattr(data, "unknown_category", "error") == "ignore"
        return cls(dialect, marks_of(getattr(data, "missing_values", None)), ignore)


class KnownTable:
    """The rows of a table with known columns, as inputs.

    dropped: columns without which a row is left out.

    Raises DataError for a column that is missing.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[Column],
        style: TableStyle,
        files: Any = None,
        dropped: Collection[str] = (),
    ) -> None:
        self.path = path
        self.files = TableFiles(path, style.dialect) if files is None else files
        self.names = [column.name for column in columns]
        self._marks = style.marks
        self._encoder = TableEncoder(
            columns, style.marks, style.dialect.decimal, ignore_unknown=style.ignore_unknown
        )
        there = set(self.files.names)
        for name in self.names:
            if name not in there:
                near = nearest(name, there)
                hint = f"; did you mean {near!r}?" if near else ""
                text = f"has no column {name!r}, which the model was trained on{hint}"
                raise DataError(f"{path}: {text}")
        self._dropped = [place for place, column in enumerate(columns) if column.name in dropped]
        self._rows = np.arange(0)

    def batches(self) -> Iterator[tuple[Tensor, Faults]]:
        """Inputs [n, …] float64 of consecutive rows, and what is wrong with some of them.

        A row that is wrong has some inputs, which mean nothing. Raises DataError if there are no
        rows.
        """
        rows = 0
        as_text = names_of_text(self._encoder.columns)
        for batch in self.files.batches(self.names, self._marks, as_text=as_text):
            cells, faults = self._encoder.cells(batch)
            gone = np.atleast_1d(np.isnan(cells[:, self._dropped]).any(axis=1))
            gone[list(faults)] = False  # what can't be read is no missing cell
            stay = np.flatnonzero(~gone)
            if len(stay) < len(cells):
                cells = cells[stay]
                faults = {place: faults[r] for place, r in enumerate(stay.tolist()) if r in faults}
            self._rows = rows + stay
            rows += len(batch[0])
            yield self._encoder.inputs(cells, faults), faults
        if not rows:
            raise DataError(f"{self.path}: has no rows; at least one is needed")

    def fault(self, faults: Faults) -> DataError:
        """The error of the first row that is wrong, of the batch that was given last."""
        first = min(faults)
        place = self.files.places([int(self._rows[first])])[0]
        return DataError(f"{self.path}: {place}, {faults[first]}")


Faults = dict[int, str]
"""What is wrong with rows, by their numbers: the column and why."""


def names_of_text(columns: Iterable[Column]) -> set[str]:
    """Of columns whose cells are looked up as text, and are not to be read as numbers."""
    return {column.name for column in columns if column.kind != "number"}


_NEW_CATEGORY = (
    "a category that does not occur in the training data; train with data.unknown_category: ignore"
)


def _places(categories: Sequence[str], decimal: str) -> Callable[[str], int]:
    """The place of a text among the categories, -1 of none; codes may be written in another way."""
    known = {category: place for place, category in enumerate(categories)}
    codes = {
        code: known[cells[0]]
        for code, cells in spellings(categories, decimal).items()
        if len(cells) == 1
    }
    return lambda text: known.get(text, codes.get(plain_code(text, decimal), -1))


class TableEncoder:
    """Makes inputs of rows whose columns are known.

    columns: of the inputs. missing: texts that stand for no value. decimal: before a fraction.
    ignore_unknown: whether categories that are none of the column's are all zeros, or faults.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        missing: Sequence[str],
        decimal: str = ".",
        *,
        ignore_unknown: bool = False,
    ) -> None:
        self.columns = list(columns)
        self.missing = frozenset(missing)
        self.decimal = decimal
        self.ignore_unknown = ignore_unknown

    def cells(self, arrays: Sequence[Any]) -> tuple[Array, Faults]:
        """Cells [n, columns] float64 as :func:`inputs_of` takes them, and rows that are wrong."""
        arrays = [
            in_one_way(array, keep_coded=column.kind != "number")
            for column, array in zip(self.columns, arrays, strict=True)
        ]
        block = np.empty((len(arrays[0]), len(self.columns)))
        faults: Faults = {}
        strings = [
            place
            for place, column in enumerate(self.columns)
            if column.kind == "number" and is_text(arrays[place])
        ]
        self._numbers(strings, arrays, block, faults)
        there = set(strings)
        for place, column in enumerate(self.columns):
            if place not in there:
                block[:, place] = self._column(column, arrays[place], faults)
        wrong = ~np.isfinite(block) & ~np.isnan(block)
        for row, place in np.argwhere(wrong).tolist():
            faults.setdefault(row, f"column {self.columns[place].name!r} is not finite")
        return block, faults

    def inputs(self, cells: Array, faults: Faults) -> Tensor:
        """Inputs [n, width] float64 of cells; notes the rows where one is missing."""
        for place, column in enumerate(self.columns):
            if column.fill is None:
                for row in np.flatnonzero(np.isnan(cells[:, place])).tolist():
                    text = "has no value, and in training nothing was learnt to stand for it"
                    faults.setdefault(row, f"column {column.name!r} {text}")
        return inputs_of(cells, self.columns)

    def _numbers(
        self, places: list[int], arrays: Sequence[Any], block: Array, faults: Faults
    ) -> None:
        """Columns of numbers that are text in the file: read together, which is fastest."""
        if not places:
            return
        import pyarrow as pa

        joined = pa.concat_arrays([arrays[place] for place in places])
        for missing in (None, self.missing):
            numbers = as_numbers(joined, self.decimal, missing)
            if numbers is not None:
                block[:, places] = numbers.reshape(len(places), len(block)).T
                return
        for place in places:
            block[:, place] = self._number_cells(self.columns[place], arrays[place], faults)

    def _number_cells(self, column: Column, cells: Any, faults: Faults) -> Array:
        """One by one, since some are not numbers."""
        numbers = as_numbers(cells, self.decimal, self.missing)
        if numbers is not None:
            return numbers
        found = np.full(len(cells), np.nan)
        for row, cell in enumerate(cells.to_pylist()):
            text = (cell or "").strip()
            if cell is None or text in self.missing:
                continue
            plain = (
                text.replace(self.decimal, ".") if "." not in text or self.decimal == "." else ""
            )
            if kind_of(plain) in ("number", "not finite"):
                found[row] = float(plain)
            else:
                faults.setdefault(row, f"column {column.name!r} is {text!r}, which is not a number")
        return found

    def _column(self, column: Column, cells: Any, faults: Faults) -> Array:
        if not (is_coded(cells) or is_read(cells)):
            text = f"column {column.name!r} holds {cells.type}, which is not a number, text or date"
            for row in range(len(cells)):
                faults.setdefault(row, text)
            return np.zeros(len(cells))
        if column.categories is not None:
            return self._categories(column, column.categories, as_text(cells), faults)
        if column.first_day is not None and (is_text(cells) or is_coded(cells)):
            return self._dates(column, cells, faults)
        return typed_numbers(cells)[0]

    def _categories(
        self, column: Column, categories: list[str], cells: Any, faults: Faults
    ) -> Array:
        coded = cells.dictionary_encode()
        texts = [(text or "").strip() for text in coded.dictionary.to_pylist()]
        known = _places(categories, self.decimal)
        places = [np.nan if t in self.missing else known(t) for t in texts]
        table = np.array([*places, np.nan])
        local = indices_of(coded, len(texts))
        found: Array = table[local]
        if not self.ignore_unknown:
            for row in np.flatnonzero(found == -1).tolist():
                text = f"column {column.name!r} is {texts[local[row]]!r}, {_NEW_CATEGORY}"
                faults.setdefault(row, text)
        return found

    def _dates(self, column: Column, cells: Any, faults: Faults) -> Array:
        coded = cells.dictionary_encode()
        texts = [(text or "").strip() for text in coded.dictionary.to_pylist()]
        found = [np.nan if text in self.missing else days(text) for text in texts]
        table = np.array([*(np.nan if day is None else day for day in found), np.nan])
        local = indices_of(coded, len(texts))
        for row, place in enumerate(local.tolist()):
            if place < len(texts) and found[place] is None:
                text = f"is {texts[place]!r}, which is not a date as in training"
                faults.setdefault(row, f"column {column.name!r} {text}")
        result: Array = table[local]
        return result
