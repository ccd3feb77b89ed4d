"""Lines of a CSV file as rows of numbers: plain ones a block at a time, others with all care."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import numpy as np

from gdtrain.data.streams.decimals import DecimalGrid
from gdtrain.data.streams.records import Array, Records
from gdtrain.errors import DataError
from gdtrain.wording import counted

# The share of lines up to which it is worth to read the others by themselves.
MOST_ODD = 0.25


class CsvRecords(Records):
    """Lines of a CSV file; a quoted cell may hold commas, but no end of a line."""

    def __init__(self, name: str, header: str, *arguments: Any, **options: Any) -> None:
        try:
            fields = [field.strip() for field in next(csv.reader([header], strict=True), [])]
        except csv.Error as error:
            raise DataError(f"{name}: line 1: {error}") from error
        check_header(name, fields)
        super().__init__(name, fields, *arguments, **options)
        places = {field: place for place, field in enumerate(fields)}
        columns = [places[field] for field in (*self.features, *self.targets)]
        in_order = columns == list(range(len(fields)))
        self._columns = None if in_order else columns
        self._grid = DecimalGrid(len(fields), self._columns)
        self._converters: dict[int | str, Callable[[str], float]] | None = None
        if self.labels is not None:
            place = dict(self.labels)
            # By the number of the column; an unknown label is not finite, and so is found.
            self._converters = {columns[-1]: lambda cell: place.get(cell.strip(), np.nan)}

    def parse_block(self, block: bytes) -> tuple[Array, Array] | None:
        if self.labels is not None:
            return None
        plain = block.replace(b"\r\n", b"\n") if b"\r" in block else block
        read = self._grid.read(plain)
        if read is None:
            return None
        rows, ends, odd = read
        if len(odd) > MOST_ODD * len(rows):
            return None
        if len(plain) < len(block):
            if len(block) - len(plain) < len(rows):
                return None  # ends of both kinds
            ends += np.arange(1, len(rows) + 1)
        if len(odd):
            lines = block.decode("utf-8", errors="backslashreplace").split("\n")
            try:
                rows[odd] = self.parse([lines[place].removesuffix("\r") for place in odd.tolist()])
            except ValueError:
                return None
        return (rows, ends) if self._targets_allowed(rows) else None

    def _numbers(self, lines: list[str]) -> Array:
        if not all(map(str.strip, lines)):  # loadtxt would pass over them
            raise ValueError("a blank line")
        if self._columns is not None and len(self._columns) < len(self.fields):
            commas = len(self.fields) - 1  # loadtxt looks at the chosen columns only
            odd = [line for line in lines if line.count(",") != commas or '"' in line]
            for line in odd:
                self._cells(line)
        try:
            rows: Array = np.loadtxt(
                lines,
                delimiter=",",
                comments=None,
                quotechar='"',
                ndmin=2,
                encoding=None,
                usecols=self._columns,
                converters=self._converters,
            )
        except (IndexError, OverflowError) as error:
            raise ValueError(str(error)) from error
        return rows

    def _cells(self, line: str) -> dict[str, Any]:
        try:
            cells = next(csv.reader([line], strict=True), [])
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if len(cells) != len(self.fields):
            found = counted(len(cells), "cell")
            raise ValueError(f"has {found}, but the header has {len(self.fields):,}")
        return {n: cell.strip() for n, cell in zip(self.fields, cells, strict=True)}


def check_header(path: str, header: list[str]) -> None:
    """Raise DataError unless each column has a name of its own."""
    if not header:
        raise DataError(f"{path}: is empty; its first line must name the columns")
    seen: set[str] = set()
    for place, name in enumerate(header, start=1):
        if not name:
            raise DataError(f"{path}: column {place} has no name in the header")
        if name in seen:
            raise DataError(f"{path}: column {name!r} occurs twice in the header; rename one")
        seen.add(name)
