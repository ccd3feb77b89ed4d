"""From a table of any size to a folder of shards that is read without loading it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from gdtrain.data.checks import check_file
from gdtrain.data.tables.formats.arrow_arrays import Array
from gdtrain.data.tables.known import TableEncoder, names_of_text
from gdtrain.data.tables.learning import Learning
from gdtrain.data.tables.preparation import Column, inputs_of
from gdtrain.data.tables.table import Seen, TableReading
from gdtrain.errors import ConfigError, DataError, OutputError

ROWS_PER_SHARD = 1_000_000
MOST_CATEGORIES = 10_000
INPUTS, TARGETS, DESCRIPTION = "inputs", "targets", "data.json"


@dataclass(frozen=True)
class Converted:
    """What a converted folder holds besides the numbers.

    columns: how the inputs were made from those of the table. targets: names of the target
    columns. class_names: of the labels 0, 1, …, where the target is named classes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    num_samples: int
    columns: list[Column]
    targets: list[str]
    class_names: list[str] | None = None

    def fields(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self) | {"columns": [column.fields() for column in self.columns]}

    @classmethod
    def load(cls, folder: str) -> Converted:
        """Read a folder's description. Raises DataError if it is not a converted folder."""
        path = Path(folder) / DESCRIPTION
        try:
            if path.exists():
                check_file(str(path))
            fields: Any = json.loads(path.read_text("utf-8"))
            return _checked().validate_python(fields)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: is not a folder that `python -m gdtrain convert` wrote; "
                f"it has no {DESCRIPTION}"
            ) from None
        except ValidationError as error:
            fault = error.errors()[0]
            message = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            raise DataError(f"{path}: does not describe a converted folder; {message}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: does not describe a converted folder; {error}") from error


@cache
def _checked() -> TypeAdapter[Converted]:
    return TypeAdapter(Converted)


def convert(
    reading: TableReading,
    out: Path,
    *,
    dtype: str = "float32",
    rows_per_shard: int = ROWS_PER_SHARD,
    advance: Callable[[int], object] = lambda _: None,
) -> Converted:
    """Write a table as ``out/inputs`` and ``out/targets``, folders of .npy shards.

    The rules are those of :func:`gdtrain.data.tables.table.read_table`, in two passes over the
    file and in memory for a batch of rows: the first finds what each column is, the last writes.
    What fills in missing cells is learnt in one between them, from all rows: which of them train is
    not known yet.
    inputs: [n, …] of ``dtype``; targets: the same, or [n] int64 labels of classes. ``out``
    appears when it is complete, and not at all if something goes wrong.

    advance: is told the bytes read, the file's at each pass. Raises DataError as read_table does,
    or for a number that ``dtype`` does not hold, and OutputError for an ``out`` that is in use.
    """
    if rows_per_shard < 1:
        raise ConfigError.of("rows_per_shard", f"must be >= 1, got {rows_per_shard}")
    _check_out(out)
    reading.advance = advance
    rows = SeenRows(reading, reading.scanned(keep=False))
    numbers = _Numbers(rows, dtype)
    rows.learn()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        inputs = _ShardWriter(partial / INPUTS, rows_per_shard)
        targets = _ShardWriter(partial / TARGETS, rows_per_shard)
        with inputs, targets:
            for input_rows, target_rows in numbers.read():
                inputs.write(input_rows)
                targets.write(target_rows)
        if not inputs.written:
            raise DataError(f"{reading.files.path}: no row is left without missing cells")
        names = rows.seen.target_columns[0].categories
        description = Converted(inputs.written, rows.columns, reading.targets, names)
        text = json.dumps(description.fields(), indent=1, ensure_ascii=False) + "\n"
        (partial / DESCRIPTION).write_text(text, "utf-8")
        partial.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: can't be written: {error.strerror}") from error
    finally:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
    return description


def _check_out(out: Path) -> None:
    with suppress(NotADirectoryError):
        if out.is_dir() and not any(out.iterdir()):
            return
    if out.exists():
        raise OutputError(f"{out}: is there already; give a new or an empty directory")


class SeenRows:
    """The rows of a table once more, made numbers by what a first pass has seen.

    columns: of the inputs; with what fills in their missing cells once that has been learnt.
    """

    def __init__(self, reading: TableReading, seen: Seen) -> None:
        self.reading = reading
        self.seen = seen
        self.columns = seen.columns
        decimal = reading.files.dialect.decimal
        self._encoders = [
            TableEncoder(columns, reading.marks, decimal)
            for columns in (seen.columns, seen.target_columns)
        ]

    @property
    def are_labels(self) -> bool:
        """Whether the targets are places of named classes."""
        return self.seen.target_columns[0].categories is not None

    def encoded(self, arrays: Sequence[Any]) -> tuple[Array, Array]:
        """Cells and targets of rows, an Arrow array for each input column and for each target.

        Raises DataError for what the first pass has not seen.
        """
        width = len(self.seen.columns)
        (cells, faults), (targets, more) = (
            encoder.cells(part)
            for encoder, part in zip(self._encoders, (arrays[:width], arrays[width:]), strict=True)
        )
        if faults or more:
            raise self.changed()
        return cells, targets

    def staying(self, cells: Array, targets: Array) -> tuple[Array, Array]:
        """Without the rows that are left out since cells are missing."""
        if not self.seen.dropped:
            return cells, targets
        stay = self.seen.staying(cells, targets)
        return cells[stay], targets[stay]

    def read(self) -> Iterator[tuple[Array, Array, int]]:
        """Cells and targets of all rows, some at a time, and the number of the first of these."""
        row, reading = 0, self.reading
        names = [*reading.chosen, *reading.targets]
        as_text = names_of_text([*self.seen.columns, *self.seen.target_columns])
        for batch in reading.files.batches(names, reading.marks, reading.advance, as_text):
            cells, targets = self.encoded(batch)
            yield cells, targets, row
            row += len(cells)
            if row > self.seen.inputs.rows:
                raise self.changed()
        if row != self.seen.inputs.rows:
            raise self.changed()

    def learn(self) -> None:
        """Learn what fills in missing cells from all rows, in a pass over them if need be."""
        with Learning(self.columns, self.reading.rules) as learning:
            if learning.is_needed:
                for cells, targets, _ in self.read():
                    learning.add(self.staying(cells, targets)[0])
            self.columns = learning.learnt()

    def changed(self) -> DataError:
        return DataError(f"{self.reading.files.path}: changed while it was read; start again")


class _Numbers:
    """Inputs and targets of a table as a folder holds them."""

    def __init__(self, rows: SeenRows, dtype: str) -> None:
        self.rows = rows
        self.dtype = np.dtype(dtype)
        for column in rows.columns:
            many = len(column.categories or ())
            if many > MOST_CATEGORIES:
                raise DataError(
                    f"{rows.reading.files.path}: column {column.name!r} has {many:,} categories, "
                    f"more than {MOST_CATEGORIES:,}; exclude it, or train on the table itself"
                )

    def read(self) -> Iterator[tuple[Array, Array]]:
        """Inputs and targets of consecutive rows."""
        for cells, targets, row in self.rows.read():
            self._check_range(cells, self.rows.columns, row)
            self._check_range(targets, self.rows.seen.target_columns, row)
            cells, targets = self.rows.staying(cells, targets)
            inputs = inputs_of(cells, self.rows.columns).numpy().astype(self.dtype)
            labels = self.rows.are_labels
            yield inputs, targets[:, 0].astype(np.int64) if labels else targets.astype(self.dtype)

    def _check_range(self, cells: Array, columns: Sequence[Column], row: int) -> None:
        """Raise DataError for a number that the dtype does not hold."""
        over = np.argwhere(np.abs(cells) > np.finfo(self.dtype).max)
        if len(over):
            at, place = over[0].tolist()
            files = self.rows.reading.files
            raise DataError(
                f"{files.path}: {files.places([row + at])[0]}, column {columns[place].name!r} is "
                f"{cells[at, place]:g}, which {self.dtype} does not hold; use float64"
            )


class _ShardWriter:
    """Writes rows as .npy files of ``rows_per_shard`` rows, the last one with those left over."""

    def __init__(self, folder: Path, rows_per_shard: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.rows_per_shard = rows_per_shard
        self.written = 0
        self._file: BinaryIO | None = None

    def write(self, rows: np.ndarray[Any, Any]) -> None:
        while len(rows):
            room = self.rows_per_shard - self.written % self.rows_per_shard
            if room == self.rows_per_shard:
                self._next_shard(rows)
            assert self._file is not None
            part, rows = rows[:room], rows[room:]
            self._file.write(np.ascontiguousarray(part).data)
            self.written += len(part)

    def _next_shard(self, like: np.ndarray[Any, Any]) -> None:
        self.__exit__()
        number = self.written // self.rows_per_shard
        self._file = (self.folder / f"{number:06}.npy").open("wb")
        self._head = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False}
        self._row_shape = like.shape[1:]
        self._write_head(self.rows_per_shard)

    def _write_head(self, count: int) -> None:
        """Of the same length for any count: numpy leaves room for more rows."""
        assert self._file is not None
        head = {**self._head, "shape": (count, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, head)

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            last = self.written % self.rows_per_shard
            if last:  # how many there are in it is known only now
                self._file.seek(0)
                self._write_head(last)
            self._file.close()
            self._file = None
