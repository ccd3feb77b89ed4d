"""CSV files: a header, numeric columns as numbers, other columns as categories."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gdtrain.data.free_memory import check_memory
from gdtrain.data.tables.csv_cells import ColumnScan, read_rows
from gdtrain.data.tables.csv_cells import check_header as check_header
from gdtrain.data.tables.preparation import Column, LoadedData
from gdtrain.errors import ConfigError, DataError
from gdtrain.registry import register_source
from gdtrain.settings import FilePath, SourceSettings

_SHOWN_NAMES = 50


class Csv(SourceSettings):
    """A CSV file with a header; numeric columns as they are, others one-hot by category."""

    path: FilePath
    """The file, relative to the working directory."""
    target: str | Annotated[list[str], Field(min_length=1)]
    """Name of the target column, or of several."""
    features: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the input columns; all but the targets if left out."""
    categorical: list[str] = Field([])
    """Columns of numbers that stand for categories."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """The character between fields."""


@register_source("csv", Csv)
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
    _check_size(path)
    (rows,) = read_rows(path, delimiter)
    wanted = [target] if isinstance(target, str) else target
    chosen = check_columns(path, rows.header, features, wanted, categorical)
    scans = {name: ColumnScan(name in categorical) for name in (*chosen, *wanted)}
    for name, scan in scans.items():
        scan.add(rows.column(name))
    columns = [scans[name].column() for name in chosen]
    inputs = torch.cat([rows.column(column.name).encode(column) for column in columns], dim=1)
    target_columns = [scans[name].column() for name in wanted]
    named = labels_of(path, target_columns)
    if named is not None:
        labels = rows.column(named.name).numbers_of_categories(named)
        return LoadedData(inputs, labels, class_names=named.categories, columns=columns)
    targets = [rows.column(column.name).encode(column) for column in target_columns]
    return LoadedData(inputs, torch.cat(targets, dim=1), columns=columns)


def read_inputs(path: str, columns: list[Column], delimiter: str = ",") -> Tensor:
    """The inputs [n, …] of a CSV file in the columns of an earlier one, for predictions.

    Raises DataError for a missing column or a category that was not there before.
    """
    _check_size(path)
    (rows,) = read_rows(path, delimiter)
    for column in columns:
        if column.name not in rows.header:
            raise DataError(
                f"{path}: has no column {column.name!r}, which the model was trained on"
            )
    return torch.cat([rows.column(column.name).encode(column) for column in columns], dim=1)


def _check_size(path: str) -> None:
    """Refuse what takes more memory than there is, as text already; reading says all else."""
    with suppress(OSError):
        check_memory(path, Path(path).stat().st_size)


def check_columns(
    path: str,
    header: list[str],
    features: list[str] | None,
    wanted: list[str],
    categorical: Sequence[str] = (),
) -> list[str]:
    """Names of the input columns: ``features``, or all but the targets ``wanted`` if None.

    Raises DataError for names that the header does not have, and ConfigError for a choice of
    columns that makes no sense.
    """
    there = set(header)
    if not wanted:
        raise ConfigError.of("target", "must name at least one column")
    for name in (*wanted, *(features or ()), *categorical):
        if name not in there:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {_listed(header)}"
            raise DataError(f"{path}: has no column {name!r}; {hint}")
    targets = set(wanted)
    chosen = [n for n in header if n not in targets] if features is None else features
    if not chosen:
        raise DataError(f"{path}: has no input columns besides the target; at least one is needed")
    used = [*chosen, *wanted]
    counts = Counter(used)
    for name in used:
        if counts[name] > 1:
            raise DataError(f"{path}: column {name!r} is chosen twice; as feature or target, once")
    for name in categorical:
        if name not in counts:
            raise ConfigError.of("categorical", f"{name!r} is neither a feature nor the target")
    return chosen


def _listed(names: list[str]) -> str:
    """The names, or the first of many and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def labels_of(path: str, targets: list[Column]) -> Column | None:
    """The target column of classes, or None if the targets are numbers."""
    named = [column for column in targets if column.categories is not None]
    if named and len(targets) > 1:
        raise DataError(f"{path}: target {named[0].name!r} is not numeric; of several, all must be")
    return named[0] if named else None
