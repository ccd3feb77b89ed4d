"""The init command: a configuration for a table, by what its columns turn out to be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote

from gdtrain.data.tables.formats.csv_file import ONE_BYTE_ENCODINGS, Dialect, WrongDialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.preparation import Column
from gdtrain.data.tables.scan import FEWEST_COUNTED, ColumnScan, yaml_text
from gdtrain.data.tables.table import Seen, TableReading, suspicious
from gdtrain.errors import DataError

_OF_A_TABLE = """\
# Train with: python -m gdtrain --config {name}
seed: 0
data:
  source: table
  path: {path}
  target: {target}{choices}
  validation_fraction: 0.2  # held out, and evaluated after each epoch
  standardize: true         # inputs to mean 0 and variance 1{more}
model: {{name: mlp, hidden: [64]}}
loss: {loss}
loader: {{name: minibatch, batch_size: 32}}  # or batch: all samples per update, sample: one
optimizer: {{name: sgd, lr: {lr}, momentum: 0.9}}  # python -m gdtrain lr-range finds a rate
epochs: 50
"""
_MOST_EXCLUDED = 10  # that are named with their reasons


@dataclass(frozen=True)
class ForTable:
    """A configuration for a table.

    faults: what is to be corrected before training. left_out: columns that are no inputs in it, and
    why.
    """

    text: str
    faults: list[str]
    left_out: dict[str, str]


def for_table(path: Path, targets: list[str], name: str) -> ForTable:
    """A configuration for a table, by what its columns are.

    Columns that are hardly meant as inputs are left out, with the reason; dates are kept. Missing
    cells are filled in, with an input that says where if they are many or all others are alike, and
    rows without a target left out. Raises DataError for a file that can't be read, or has no such
    column.
    """
    reading, seen, faults = _understood(path, targets)
    loss, classes = _loss(seen)
    left_out = {} if seen is None else _left_out(reading, seen)
    text = _OF_A_TABLE.format(
        name=quote(name),
        path=yaml_text(str(path)),
        target=_listed(targets) if len(targets) > 1 else yaml_text(targets[0]),
        choices="".join(f"\n  {line}" for line in _choices(reading, seen, left_out)),
        more="" if classes else "\n  standardize_targets: true",
        loss=loss,
        lr="0.05" if classes else "0.01",
    )
    return ForTable(text, faults, left_out)


def _understood(path: Path, targets: list[str]) -> tuple[TableReading, Seen | None, list[str]]:
    """A table, as the settings say that its faults name; and what is wrong with it then."""
    dialect, reading = Dialect(), None
    while True:
        try:
            reading = TableReading(TableFiles(str(path), dialect), targets)
            seen = reading.understood()
        except WrongDialect as error:
            settings = error.settings
            if all(getattr(dialect, key) == value for key, value in settings.items()):
                raise
        except DataError as error:
            if reading is None:
                raise
            return reading, None, [str(error)]
        else:
            wrong = [fault for fault in seen.faults if not fault.useless or fault.column in targets]
            settings = next((dict(fault.settings) for fault in wrong if fault.settings), {})
            if not settings or dialect.decimal == "," or settings == {"decimal": "."}:
                return reading, seen, [f"{path}: {fault}" for fault in wrong]
        dialect, reading = replace(dialect, **settings), None


def _loss(seen: Seen | None) -> tuple[str, bool]:
    """A loss that fits the targets, with a comment, and whether it learns classes."""
    if seen is not None and len(seen.target_columns) == 1:
        column, scan = seen.target_columns[0], seen.targets.columns[0]
        if column.categories is not None:
            return "cross_entropy  # classes", True
        values = None if scan.distinct is None else scan.distinct.tolist()
        if values and len(values) in _FEW_CLASSES and scan.rows >= _ROWS_OF_CLASS * len(values):
            first = values[0]
            if first in (0, 1) and values == [first + n for n in range(len(values))]:
                return f"cross_entropy  # {len(values)} classes; mse if they are amounts", True
    return "mse  # numbers; cross_entropy if they stand for classes", False


_FEW_CLASSES = range(2, 11)
_ROWS_OF_CLASS = 5


def _left_out(reading: TableReading, seen: Seen) -> dict[str, str]:
    """Columns that are hardly meant as inputs, or can't be, each with the reason."""
    unlikely = suspicious(seen.inputs.columns, seen.columns, reading.files.unnamed)
    found = {column.name: reason for column, reason in unlikely if column.first_day is None}
    found |= {
        fault.column: fault.text.lstrip(": ").split(";")[0]
        for fault in seen.faults
        if fault.useless and fault.column not in reading.targets
    }
    telling_rows_apart = {
        scan.name: reason
        for scan, column in zip(seen.inputs.columns, seen.columns, strict=True)
        if (reason := _tells_rows_apart(scan, column)) is not None
    }
    if len(telling_rows_apart | found) < len(seen.columns):
        found = telling_rows_apart | found
    return {column.name: found[column.name] for column in seen.columns if column.name in found}


def _tells_rows_apart(scan: ColumnScan, column: Column) -> str | None:
    """Why a column only says which row it is, None if it says more: new rows have others."""
    present = scan.rows - scan.missing
    if present < FEWEST_COUNTED:
        return None
    if scan.text is None and scan.counts_rows and not scan.from_dates:
        return f"counts the rows, from {scan.begins:g} on"
    if column.categories is not None and len(column.categories) == present:
        return f"is text with {present:,} different values in {scan.rows:,} rows"
    return None


def _choices(reading: TableReading, seen: Seen | None, excluded: dict[str, str]) -> Iterator[str]:
    """Lines of settings that the file and its columns suggest."""
    plain, dialect = Dialect(), reading.files.dialect
    for each in fields(Dialect):
        value = getattr(dialect, each.name)
        if value != getattr(plain, each.name):
            hint = (
                _GUESSED if each.name == "encoding" and value in ONE_BYTE_ENCODINGS.values() else ""
            )
            yield f"{each.name}: {json.dumps(value, ensure_ascii=False)}{hint}"
    if seen is None:
        return
    kept = [c.name for c in seen.columns if c.first_day is not None and c.name not in excluded]
    if kept:
        yield f"keep: {_listed(kept)}  # dates: the days since the first one"
    if excluded:
        for column, reason in list(excluded.items())[:_MOST_EXCLUDED]:
            yield f"# {yaml_text(column)} {reason}"
        yield f"exclude: {_listed(excluded)}"
    missing = [c for c in seen.columns if c.missing and c.name not in excluded]
    unknown = [c for c in seen.target_columns if c.missing]
    if unknown:
        rules = [
            *(
                f"{yaml_text(c.name)}: {_MEDIAN if c.categories is None else _MODE}"
                for c in missing
            ),
            *(f"{yaml_text(c.name)}: drop" for c in unknown),
        ]
        yield f"missing: {{{', '.join(rules)}}}"
    elif missing:
        yield f"missing: {_MEDIAN}  # of text, the most frequent category"
    told = [c.name for c in missing if c.distinct == 1 or c.missing > _MANY * seen.inputs.rows]
    if told:
        yield f"indicator: {_listed(told)}  # an input that is 1 where there is no value"


_GUESSED = "  # a guess, as it is not UTF-8: look whether letters with accents are right"
_MEDIAN, _MODE = "median", "most_frequent"
# From this share of missing cells on, that a cell is missing may say as much as what stands in it.
_MANY = 0.1


def _listed(names: Iterable[str]) -> str:
    return f"[{', '.join(map(yaml_text, names))}]"
