"""CSV files read row by row, and the rules by which a column is numbers or categories."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from torch import Tensor

from gdtrain.data.files.array_files import check_file
from gdtrain.data.names import is_number
from gdtrain.data.tables.preparation import Column
from gdtrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from _csv import Reader


MAX_LINE = 1 << 24  # characters
_INSTEAD = "convert it for source: mapped, which is read as it is used, or use fewer rows"


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a CSV file, as many cells each as its header, and their lines."""

    path: str
    header: list[str]
    cells: list[list[str]]
    lines: list[int]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.header)}

    def column(self, name: str) -> Cells:
        """The cells of the column of that name."""
        place = self._places[name]
        return Cells(self.path, name, [row[place].strip() for row in self.cells], self.lines)


def read_rows(
    path: str,
    delimiter: str = ",",
    at_once: int = sys.maxsize,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[Rows]:
    """The rows of a CSV file, ``at_once`` of them at a time; at least one.

    advance: is told the number of bytes read for each run of rows.
    Raises DataError, with its line, for a ragged row, bad quoting, or what is not UTF-8 text.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ConfigError.of("delimiter", f"must be one character, no quote, got {delimiter!r}")
    try:
        check_file(path)
        with (
            Path(path).open("rb") as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file,
        ):
            reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
            read = 0
            for rows in _cut(path, reader, at_once):
                advance(raw.tell() - read)
                read = raw.tell()
                yield rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except MemoryError as error:
        raise DataError(f"{path}: takes more memory than there is; {_INSTEAD}") from error


def _cut(path: str, reader: Reader, at_once: int) -> Iterator[Rows]:
    try:
        header = [name.strip() for name in next(reader, [])]
        check_header(path, header)
        rows = Rows(path, header, [], [])
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: line {line} has {len(row)} cells, "
                        f"but the header has {len(header)}"
                    )
                if len(rows.cells) == at_once:
                    yield rows
                    rows = Rows(path, header, [], [])
                rows.cells.append(row)
                rows.lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    if not rows.cells:
        raise DataError(f"{path}: has no rows below its header; at least one is needed")
    yield rows


def _lines(path: str, file: TextIO) -> Iterator[str]:
    """The file's lines, none of them longer than can be a row, and all of them text."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE and "\0" not in line:
            message = f"a line is longer than {MAX_LINE >> 20} MiB; is it text with one row a line?"
            raise DataError(f"{path}: {message}")
        if "\0" in line:
            raise DataError(f"{path}: holds a NUL character, so it is not text; save it as UTF-8")
        yield line


def check_header(path: str, header: list[str]) -> None:
    """Raise DataError unless each column has a name of its own."""
    if not header:
        raise DataError(f"{path}: has no header in its first line; it must name the columns")
    seen: set[str] = set()
    for place, name in enumerate(header, start=1):
        if not name:
            raise DataError(f"{path}: column {place} has no name in the header")
        if name in seen:
            raise DataError(f"{path}: column {name!r} stands twice in the header; rename one")
        seen.add(name)


@dataclass(frozen=True)
class Cells:
    """Cells of one column, without blanks around them, and the lines they stand in."""

    path: str
    name: str
    cells: list[str]
    lines: list[int]

    def encode(self, column: Column) -> Tensor:
        """The column as inputs: [n, 1] numbers, or [n, categories] of zeros and a one; float64."""
        if column.categories is not None:
            labels = self.numbers_of_categories(column)
            return torch.nn.functional.one_hot(labels, len(column.categories)).double()
        values = []
        for cell, line in zip(self.cells, self.lines, strict=True):
            if not is_number(cell):
                raise self.bad(line, f"is {cell!r}, which is not a number")
            values.append(float(cell))
            if not math.isfinite(values[-1]):
                raise self.bad(line, f"is {cell}; remove the row or fill in a finite number")
        return torch.tensor(values, dtype=torch.float64)[:, None]

    def numbers_of_categories(self, column: Column) -> Tensor:
        """[n] int64: the place of each cell among the column's categories."""
        assert column.categories is not None
        place = {category: i for i, category in enumerate(column.categories)}
        for cell, line in zip(self.cells, self.lines, strict=True):
            if cell not in place:
                raise self.bad(line, f"is {cell!r}, a category that was not there in training")
        return torch.tensor([place[cell] for cell in self.cells])

    def bad(self, line: int, message: str) -> DataError:
        """The error of the cell in that line."""
        return DataError(f"{self.path}: line {line}, column {self.name!r} {message}")


class ColumnScan:
    """Finds, from all cells of a column, whether it is numbers or categories, and which.

    force: it is categories, even of numbers. most: categories that are borne, at most.
    """

    def __init__(self, force: bool, most: int = sys.maxsize) -> None:
        self.force = force
        self.most = most
        self.count = self.slips = 0
        self.last: Cells | None = None
        self._slip: tuple[int, str] | None = None  # line and cell of the first that is no number
        self._seen: set[str] = set()

    def add(self, cells: Cells) -> None:
        """Take notice of further cells. Raises DataError if one of them is empty."""
        for cell, line in zip(cells.cells, cells.lines, strict=True):
            if not cell:
                raise cells.bad(line, "is empty; fill it in or remove the row")
            if not is_number(cell):
                self.slips += 1
                self._slip = self._slip or (line, cell)
        if len(self._seen) <= self.most:  # past that, what it holds plays no part
            self._seen.update(cells.cells)
        self.count += len(cells.cells)
        self.last = cells

    def column(self) -> Column:
        """What the column is. Raises DataError for what looks like a slip among numbers."""
        assert self.last is not None
        if not self.slips and not self.force:
            return Column(self.last.name)
        if self._slip and not self.force and self.count > 20 and self.slips * 20 <= self.count:
            line, cell = self._slip
            raise self.last.bad(
                line,
                f"is {cell!r} where nearly all cells are numbers; correct it, or name the "
                "column in categorical",
            )
        if len(self._seen) > self.most:
            raise DataError(
                f"{self.last.path}: column {self.last.name!r} has more than {self.most:,} "
                "categories; leave it out of the features"
            )
        return Column(self.last.name, sorted(self._seen))
