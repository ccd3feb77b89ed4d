"""The init command: a configuration for a table, by what its columns turn out to be."""

from __future__ import annotations

from pathlib import Path

from gdtrain.data.tables.formats.csv_text import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.loaded import suspicious
from gdtrain.data.tables.table import Seen, TableReading
from gdtrain.data.tables.understanding import DECIMAL_COMMA, yaml_text
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


def for_table(path: Path, target: str, name: str) -> tuple[str, str]:
    """A configuration for a table, and what is still to be corrected, "" if nothing.

    Columns that are hardly meant as inputs are left out, with the reason; dates are kept. Missing
    cells are filled in, and rows without a target left out. Raises DataError for a file that can't
    be read, or has no such column.
    """
    reading = TableReading(TableFiles(str(path), Dialect()), target)
    seen, wrong = _understood(reading)
    if wrong and DECIMAL_COMMA in wrong:
        reading = TableReading(TableFiles(str(path), Dialect(decimal=",")), target)
        seen, wrong = _understood(reading)
    is_number = seen is None or seen.target_columns[0].kind == "number"
    text = _OF_A_TABLE.format(
        name=name,
        path=yaml_text(str(path)),
        target=yaml_text(target),
        choices="" if seen is None else _choices(seen, target, reading.files),
        more="\n  standardize_targets: true" if is_number else "",
        loss="mse  # numbers; cross_entropy if they stand for classes"
        if is_number
        else "cross_entropy  # classes",
        lr="0.01" if is_number else "0.05",
    )
    return text, wrong


def _understood(reading: TableReading) -> tuple[Seen | None, str]:
    """What the columns are, or what is wrong with cells that do not fit the others."""
    try:
        return reading.understood(), ""
    except DataError as error:
        return None, str(error)


def _choices(seen: Seen, target: str, files: TableFiles) -> str:
    """Lines of settings that the columns suggest."""
    lines = [] if files.dialect.decimal == "." else ['decimal: ","']
    kept: list[tuple[str, str]] = []
    excluded: list[tuple[str, str]] = []
    for column, reason in suspicious(seen.inputs.columns, seen.columns, files.unnamed):
        is_date = column.first_day is not None
        (kept if is_date else excluded).append((yaml_text(column.name), reason))
    if kept:
        names = ", ".join(column for column, _ in kept)
        lines.append(f"keep: [{names}]  # dates: the days since the first one")
    if excluded:
        names = ", ".join(column for column, _ in excluded)
        lines += [f"# {column} {reason}" for column, reason in excluded[:_MOST_EXCLUDED]]
        lines.append(f"exclude: [{names}]")
    left_out = {column for column, _ in excluded}
    missing = [c.name for c in seen.columns if c.missing and yaml_text(c.name) not in left_out]
    if seen.target_columns[0].missing:
        rules = [
            *(f"{yaml_text(column)}: median" for column in missing),
            f"{yaml_text(target)}: drop",
        ]
        lines.append(f"missing: {{{', '.join(rules)}}}  # of text, the most frequent category")
    elif missing:
        lines.append("missing: median  # of text, the most frequent category")
    return "".join(f"\n  {line}" for line in lines)
