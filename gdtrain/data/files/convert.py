"""From a CSV file of any size to a folder of shards that is read without loading it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from gdtrain.data.files.array_files import check_file
from gdtrain.data.tables.csv_cells import ColumnScan, Rows, read_rows
from gdtrain.data.tables.csv_table import check_columns, labels_of
from gdtrain.data.tables.preparation import Column
from gdtrain.errors import ConfigError, DataError, OutputError

ROWS_AT_ONCE = 4096
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
    path: str,
    out: Path,
    target: str | list[str],
    *,
    features: list[str] | None = None,
    categorical: Sequence[str] = (),
    delimiter: str = ",",
    dtype: str = "float32",
    rows_per_shard: int = ROWS_PER_SHARD,
    advance: Callable[[int], object] = lambda _: None,
) -> Converted:
    """Write a CSV file as ``out/inputs`` and ``out/targets``, folders of .npy shards.

    The rules are those of :func:`gdtrain.data.tables.csv_table.read_csv`, in two passes over the
    file and in memory for a few thousand rows: the first finds what each column is, the second
    writes.
    inputs: [n, …] of ``dtype``; targets: the same, or [n] int64 labels of classes. ``out``
    appears when it is complete, and not at all if something goes wrong.

    advance: is told the bytes read, twice the file's in all. Raises DataError as read_csv does,
    or for a number that ``dtype`` does not hold, and OutputError for an ``out`` that is in use.
    """
    if rows_per_shard < 1:
        raise ConfigError.of("rows_per_shard", f"must be >= 1, got {rows_per_shard}")
    _check_out(out)
    wanted = [target] if isinstance(target, str) else target
    plan = _Columns(path, wanted, features, categorical)
    for rows in read_rows(path, delimiter, ROWS_AT_ONCE, advance):
        plan.scan(rows)
    description = plan.decide()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        shapes = (rows_per_shard, description.num_samples)
        inputs = _ShardWriter(partial / INPUTS, *shapes)
        targets = _ShardWriter(partial / TARGETS, *shapes)
        with inputs, targets:
            for rows in read_rows(path, delimiter, ROWS_AT_ONCE, advance):
                inputs.write(plan.inputs(rows, dtype))
                targets.write(plan.targets(rows, dtype))
        for writer in (inputs, targets):
            if writer.written != description.num_samples:
                raise DataError(f"{path}: changed while it was read; convert it again")
        text = json.dumps(asdict(description), indent=1, ensure_ascii=False) + "\n"
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


class _Columns:
    """What the columns are, and rows made into numbers by it."""

    def __init__(
        self,
        path: str,
        wanted: list[str],
        features: list[str] | None,
        categorical: Sequence[str],
    ) -> None:
        self.path = path
        self.wanted = wanted
        self.features = features
        self.categorical = categorical
        self.chosen: list[str] = []
        self.scans: dict[str, ColumnScan] = {}
        self.num_samples = 0

    def scan(self, rows: Rows) -> None:
        """First pass: take notice of some rows."""
        if not self.scans:
            self.chosen = check_columns(
                self.path, rows.header, self.features, self.wanted, self.categorical
            )
            for name in (*self.chosen, *self.wanted):
                self.scans[name] = ColumnScan(name in self.categorical, MOST_CATEGORIES)
        for name, scan in self.scans.items():
            scan.add(rows.column(name))
        self.num_samples += len(rows.cells)

    def decide(self) -> Converted:
        """Between the passes: what each column is."""
        self._inputs = [self.scans[name].column() for name in self.chosen]
        self._targets = [self.scans[name].column() for name in self.wanted]
        self._labels = labels_of(self.path, self._targets)
        names = None if self._labels is None else self._labels.categories
        return Converted(self.num_samples, self._inputs, self.wanted, names)

    def inputs(self, rows: Rows, dtype: str) -> np.ndarray[Any, Any]:
        return self._numbers(rows, self._inputs, dtype)

    def targets(self, rows: Rows, dtype: str) -> np.ndarray[Any, Any]:
        if self._labels is None:
            return self._numbers(rows, self._targets, dtype)
        return rows.column(self._labels.name).numbers_of_categories(self._labels).numpy()

    def _numbers(self, rows: Rows, columns: list[Column], dtype: str) -> np.ndarray[Any, Any]:
        parts = []
        for column in columns:
            cells = rows.column(column.name)
            part = cells.encode(column).to(getattr(torch, dtype))
            self._check_range(part, cells.cells, rows.lines, column, dtype)
            parts.append(part)
        return torch.cat(parts, dim=1).numpy()

    def _check_range(
        self, part: Tensor, cells: list[str], lines: list[int], column: Column, dtype: str
    ) -> None:
        over = (~part.isfinite()).nonzero()
        if len(over):
            row = int(over[0][0])
            raise DataError(
                f"{self.path}: line {lines[row]}, column {column.name!r} is {cells[row]}, "
                f"which {dtype} does not hold; use float64"
            )


class _ShardWriter:
    """Writes rows as .npy files of ``rows_per_shard`` rows, the last one with those left over."""

    def __init__(self, folder: Path, rows_per_shard: int, num_rows: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.rows_per_shard = rows_per_shard
        self.num_rows = num_rows
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
        count = min(self.rows_per_shard, self.num_rows - self.written)
        self._file = (self.folder / f"{number:06}.npy").open("wb")
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(like.dtype),
                "fortran_order": False,
                "shape": (max(0, count), *like.shape[1:]),
            },
        )

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
