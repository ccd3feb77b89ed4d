"""Parquet files of any size as samples: their row groups are made numbers as they are read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.files.convert import Converted, SeenRows
from gdtrain.data.files.converted import ConvertedFolder
from gdtrain.data.files.mapped import RowArray
from gdtrain.data.files.shards import RESIDENT_BYTES, mark_of
from gdtrain.data.tables.formats.arrow_arrays import Array
from gdtrain.data.tables.formats.csv_file import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.formats.typed_files import ParquetFile
from gdtrain.data.tables.learning import Learning
from gdtrain.data.tables.preparation import Column, inputs_of
from gdtrain.data.tables.table import ColumnsOfTable, TableReading, described, numbered_classes
from gdtrain.errors import DataError
from gdtrain.registry import register_source
from gdtrain.settings import LossSettings

_KEPT = 2  # groups: a batch may begin in one and end in the next
_ORDERS = ("row_groups", "sequential")


class Parquet(ColumnsOfTable):
    """Parquet files of any size, of which one row group at a time is in memory."""

    def refuses(self, key: str, value: Any) -> str | None:
        if key == "loader":
            for loader in value if isinstance(value, list) else [value]:
                order = getattr(loader, "order", "sequential")
                if getattr(order, "name", order) not in _ORDERS:
                    return (
                        "order must be row_groups or sequential on Parquet that is read a row "
                        "group at a time; for others use source: table, or convert"
                    )
        return None


@register_source("parquet", Parquet)
def parquet(
    path: str, target: str | list[str], *, loss: LossSettings | None = None, **columns: Any
) -> UnloadedTable:
    """Look at all rows once, in batches, to learn what the columns are.

    Raises as :func:`gdtrain.data.tables.table.read_table` does, or for a file that is not Parquet.
    """
    return UnloadedTable(TableReading(TableFiles(path, Dialect()), target, loss=loss, **columns))


class UnloadedTable(ConvertedFolder):
    """Parquet files as arrays that nobody has written: see :class:`ConvertedFolder`."""

    def __init__(self, reading: TableReading) -> None:
        files = [reading.files.opened(path) for path in reading.files.paths]
        for file in files:
            if not isinstance(file, ParquetFile):
                text = "is not Parquet; use source: table, or convert for what memory does not hold"
                raise DataError(f"{file.path}: {text}")
        rows = SeenRows(reading, reading.scanned(keep=False))
        groups = _Groups(rows, [file for file in files if isinstance(file, ParquetFile)])
        if not len(groups):
            text = "no row is left where those with missing cells are left out"
            raise DataError(f"{reading.files.path}: {text}")
        self.groups = groups
        self.arrays = [_Inputs(groups, rows.columns), _Targets(groups)]
        names = groups.class_names
        self.description = Converted(len(groups), rows.columns, reading.targets, names)
        self.notes = (described(rows.columns, reading.rules, reading.categorical),)

    def learnt(self, held: Tensor) -> tuple[list[RowArray], list[Column]]:
        rows = self.groups.rows
        with Learning(rows.columns, rows.reading.rules) as learning:
            if learning.is_needed:
                for number, (cells, _) in enumerate(self.groups.all()):
                    first, end = self.groups.bounds(number)
                    inside = held[(held >= first) & (held < end)] - first
                    learning.add(np.delete(cells, inside.numpy(), axis=0))
            columns = learning.learnt()
        return [_Inputs(self.groups, columns), self.arrays[1]], columns


class _Groups:
    """The row groups of all files, cells and targets in float64; those read last are kept.

    ``ends``: how many rows stay up to the end of each.
    """

    def __init__(self, rows: SeenRows, files: Sequence[ParquetFile]) -> None:
        self.rows = rows
        self.marks = [mark_of(Path(file.path)) for file in files]
        self._places = [(file, number) for file in files for number in range(len(file.groups))]
        self._kept: dict[int, tuple[Array, Array]] = {}
        self._lock = Lock()  # validation may read while training reads ahead
        counts = [count for file in files for count in file.groups]
        if rows.seen.dropped:
            counts = [len(cells) for cells, _ in self.all()]
        self.ends = np.cumsum(counts, dtype=np.int64)
        self.class_names, self._numbers = self._classes()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def bounds(self, number: int) -> tuple[int, int]:
        """The first of a group's rows, and the first after them."""
        return int(self.ends[number - 1]) if number else 0, int(self.ends[number])

    def all(self) -> Iterator[tuple[Array, Array]]:
        """Cells and targets of one group after the other."""
        return map(self._read, range(len(self._places)))

    def of(self, number: int) -> tuple[Array, Array]:
        """Cells and targets of a group."""
        with self._lock:
            found = self._kept.pop(number, None)
            if found is None:
                while len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                found = self._read(number)
            self._kept[number] = found  # as the one that was used last
            return found

    def targets(self, number: int) -> Array:
        """Numbers [n, k] float64 of a group, or labels [n] int64 of classes."""
        found = self.of(number)[1]
        if self._numbers is not None:
            return np.searchsorted(self._numbers, found[:, 0])
        return found[:, 0].astype(np.int64) if self.rows.are_labels else found

    def _read(self, number: int) -> tuple[Array, Array]:
        file, group = self._places[number]
        reading = self.rows.reading
        names = [*reading.chosen, *reading.targets]
        parts = [self.rows.staying(*self.rows.encoded(batch)) for batch in file.group(group, names)]
        cells, targets = zip(*parts, strict=True)
        return np.concatenate(cells), np.concatenate(targets)

    def _classes(self) -> tuple[list[str] | None, Array | None]:
        """Names of classes, and the numbers that they are, if they are no text."""
        if self.rows.are_labels:
            return self.rows.seen.target_columns[0].categories, None
        loss, scans = self.rows.reading.loss, self.rows.seen.targets.columns
        seen = scans[0].distinct
        if loss is None or not loss.targets.classes or len(scans) > 1 or seen is None:
            return None, None
        ignored = getattr(loss, "ignore_index", None)
        _, names = numbered_classes(np.tile(seen, 2)[:, None], ignored)
        return names, None if names is None else seen


class _Rows:
    """What inputs and targets have in common as a :class:`RowArray`."""

    def __init__(self, groups: _Groups, width: int) -> None:
        self.groups = groups
        self.path = groups.rows.reading.files.path
        self.marks = groups.marks
        self.row_bytes = 8 * width
        self.width = width

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def shape(self) -> list[int]:
        return [len(self), self.width]

    @property
    def ends(self) -> Array:
        return self.groups.ends

    def advise(self, sequential: bool) -> None:
        """Nothing: Arrow reads the files."""

    def take(self, rows: Tensor) -> Tensor:
        """The rows, [k] int64 in any order; groups are read in the order they come in."""
        wanted = rows.numpy()
        places = np.searchsorted(self.ends, wanted, side="right")
        numbers = list(dict.fromkeys(places.tolist()))
        parts = [self.of(n, wanted[places == n] - self.groups.bounds(n)[0]) for n in numbers]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return torch.empty(0, device="cpu")
        out = parts[0].new_empty((len(wanted), *parts[0].shape[1:]))
        for number, part in zip(numbers, parts, strict=True):
            out[torch.from_numpy(places == number)] = part
        return out

    def of(self, number: int, rows: Array) -> Tensor:
        """Some rows of a group."""
        raise NotImplementedError


class _Inputs(_Rows):
    def __init__(self, groups: _Groups, columns: Sequence[Column]) -> None:
        super().__init__(groups, sum(column.width for column in columns))
        self.columns = columns

    def of(self, number: int, rows: Array) -> Tensor:
        return inputs_of(self.groups.of(number)[0][rows], self.columns)

    def digest(self, digest: int = 0) -> int:
        """Of all bytes of the files."""
        for path in self.groups.rows.reading.files.paths:
            with Path(path).open("rb") as file:
                while block := file.read(RESIDENT_BYTES):
                    digest = zlib.crc32(block, digest)
        return digest


class _Targets(_Rows):
    def __init__(self, groups: _Groups) -> None:
        super().__init__(groups, len(groups.rows.seen.target_columns))
        self.marks = []

    def of(self, number: int, rows: Array) -> Tensor:
        return torch.from_numpy(self.groups.targets(number)[rows])

    def digest(self, digest: int = 0) -> int:
        """That of the inputs, which are in the same files."""
        return digest
