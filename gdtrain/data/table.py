"""CSV files: a header, numeric columns as numbers, other columns as categories."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gdtrain.data.dataset import Column, LoadedData
from gdtrain.data.files import check_file
from gdtrain.errors import ConfigError, DataError


def read_csv(
    path: str,
    target: str | list[str],
    features: list[str] | None = None,
    categorical: Sequence[str] = (),
    delimiter: str = ",",
) -> LoadedData:
    """A CSV file as inputs and targets, float64.

    A column whose cells are all numbers is one input; any other, and those named in
    ``categorical``, are categories, sorted by name: as inputs one column each with a 1 where
    the row is of that category, as a target their number.

    Raises DataError, with line and column, for a missing column, a ragged row, an empty cell,
    NaN or infinity, a mix of numbers and text that looks like a slip, or a file that is not
    UTF-8.
    """
    header, rows, lines = _cells(path, delimiter)
    wanted = [target] if isinstance(target, str) else target
    if not wanted:
        raise ConfigError.of("target", "must name at least one column")
    for name in (*wanted, *(features or ()), *categorical):
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(header)}"
            raise DataError(f"{path}: has no column {name!r}; {hint}")
    chosen = [n for n in header if n not in wanted] if features is None else features
    if not chosen:
        raise DataError(f"{path}: has no input columns besides the target; at least one is needed")
    used = [*chosen, *wanted]
    for name in used:
        if used.count(name) > 1:
            raise DataError(f"{path}: column {name!r} is chosen twice; as feature or target, once")
    for name in categorical:
        if name not in used:
            raise ConfigError.of("categorical", f"{name!r} is neither a feature nor the target")
    cells = {name: _column_cells(path, name, header, rows, lines) for name in used}
    columns = [cells[name].column(force=name in categorical) for name in chosen]
    inputs = torch.cat([cells[column.name].encode(column) for column in columns], dim=1)
    target_columns = [cells[name].column(force=name in categorical) for name in wanted]
    named = [column for column in target_columns if column.categories is not None]
    if named and len(wanted) > 1:
        raise DataError(f"{path}: target {named[0].name!r} is not numeric; of several, all must be")
    if named:
        labels = cells[wanted[0]].numbers_of_categories(named[0])
        return LoadedData(inputs, labels, class_names=named[0].categories, columns=columns)
    targets = torch.cat([cells[column.name].encode(column) for column in target_columns], dim=1)
    return LoadedData(inputs, targets, columns=columns)


def read_inputs(path: str, columns: list[Column], delimiter: str = ",") -> Tensor:
    """The inputs [n, …] of a CSV file in the columns of an earlier one, for predictions.

    Raises DataError for a missing column or a category that was not there before.
    """
    header, rows, lines = _cells(path, delimiter)
    parts = []
    for column in columns:
        if column.name not in header:
            raise DataError(
                f"{path}: has no column {column.name!r}, which the model was trained on"
            )
        parts.append(_column_cells(path, column.name, header, rows, lines).encode(column))
    return torch.cat(parts, dim=1)


def _cells(path: str, delimiter: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows of as many cells, and the line that each row starts on."""
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ConfigError.of("delimiter", f"must be one character, no quote, got {delimiter!r}")
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: line {line} has {len(row)} cells, "
                        f"but the header has {len(header)}"
                    )
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    if not rows:
        raise DataError(f"{path}: has no rows below its header; at least one is needed")
    return header, rows, lines


def _text(path: str) -> str:
    try:
        check_file(path)
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    if "\0" in text:
        raise DataError(f"{path}: holds a NUL character, so it is not text; save it as UTF-8")
    return text


def _check_header(path: str, header: list[str]) -> None:
    if not header:
        raise DataError(f"{path}: has no header in its first line; it must name the columns")
    seen: set[str] = set()
    for place, name in enumerate(header, start=1):
        if not name:
            raise DataError(f"{path}: column {place} has no name in the header")
        if name in seen:
            raise DataError(f"{path}: column {name!r} stands twice in the header; rename one")
        seen.add(name)


def _column_cells(
    path: str, name: str, header: list[str], rows: list[list[str]], lines: list[int]
) -> _Cells:
    place = header.index(name)
    return _Cells(path, name, [row[place] for row in rows], lines)


class _Cells:
    """The cells of one column, and the lines they stand in."""

    def __init__(self, path: str, name: str, cells: list[str], lines: list[int]) -> None:
        self.path = path
        self.name = name
        self.cells = [cell.strip() for cell in cells]
        self.lines = lines

    def column(self, force: bool) -> Column:
        """Whether the column is numbers or categories, and which."""
        for cell, line in zip(self.cells, self.lines, strict=True):
            if not cell:
                raise self._bad(line, "is empty; fill it in or remove the row")
        numeric = [_is_number(cell) for cell in self.cells]
        if all(numeric) and not force:
            return Column(self.name)
        slips = [i for i, is_number in enumerate(numeric) if not is_number]
        if not force and len(self.cells) > 20 and len(slips) * 20 <= len(self.cells):
            shown = self.cells[slips[0]]
            raise self._bad(
                self.lines[slips[0]],
                f"is {shown!r} where nearly all cells are numbers; correct it, or name the "
                "column in categorical",
            )
        return Column(self.name, sorted(set(self.cells)))

    def encode(self, column: Column) -> Tensor:
        """The column as inputs: [n, 1] numbers, or [n, categories] of zeros and a one."""
        if column.categories is not None:
            labels = self.numbers_of_categories(column)
            return torch.nn.functional.one_hot(labels, len(column.categories)).double()
        values = []
        for cell, line in zip(self.cells, self.lines, strict=True):
            if not _is_number(cell):
                raise self._bad(line, f"is {cell!r}, which is not a number")
            values.append(float(cell))
            if not math.isfinite(values[-1]):
                raise self._bad(line, f"is {cell}; remove the row or fill in a finite number")
        return torch.tensor(values, dtype=torch.float64)[:, None]

    def numbers_of_categories(self, column: Column) -> Tensor:
        """[n] int64: the place of each cell among the column's categories."""
        assert column.categories is not None
        place = {category: i for i, category in enumerate(column.categories)}
        for cell, line in zip(self.cells, self.lines, strict=True):
            if cell not in place:
                raise self._bad(line, f"is {cell!r}, a category that was not there in training")
        return torch.tensor([place[cell] for cell in self.cells])

    def _bad(self, line: int, message: str) -> DataError:
        return DataError(f"{self.path}: line {line}, column {self.name!r} {message}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
