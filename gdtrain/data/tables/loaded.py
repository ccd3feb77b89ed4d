"""A table that has been read: its cells as numbers, and how they become inputs and targets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from gdtrain.data.tables.cells import is_code
from gdtrain.data.tables.column import Array, Column, Fill, inputs_of
from gdtrain.data.tables.preparation import LoadedData
from gdtrain.data.tables.scan import MOST_COUNTED, ColumnScan
from gdtrain.data.tables.understanding import (
    FEWEST_COUNTED,
    MANY_SHARE,
    MANY_VALUES,
    Places,
    yaml_text,
)
from gdtrain.data.wording import counted

_SHOWN = 30  # columns of a table that are shown
# What ones and zeros may take in memory, and how many times what the table itself takes.
MOST_BYTES, MOST_TIMES = 256 << 20, 4
_AT_ONCE = 8  # float64 columns in a line of a cache


@dataclass(frozen=True)
class MissingRules:
    """What is done about missing cells: one rule for all columns, or one for each by name.

    indicator: whether columns with missing cells get a further input that says where.
    """

    rule: Fill | Mapping[str, Fill] = "error"
    indicator: bool | Sequence[str] = False

    def of(self, name: str) -> Fill:
        if isinstance(self.rule, str):
            return self.rule
        return self.rule.get(name, "error")

    def indicated(self, name: str) -> bool:
        return self.indicator if isinstance(self.indicator, bool) else name in self.indicator


@dataclass(frozen=True)
class LoadedTable:
    """Rows of a table as a source gives them, before the split.

    cells: [n, columns] float64, as :func:`inputs_of` takes them. targets: [n, k] float64, or labels
    [n] int64 of ``class_names``. own: rows that train, or of which parts are drawn as stratify and
    shuffle say, see :func:`split`. validation, test: rows of these parts, of files of their own.
    """

    cells: Array
    columns: list[Column]
    targets: Tensor
    class_names: list[str] | None
    missing: MissingRules
    own: Tensor
    validation: Tensor | None = None
    test: Tensor | None = None
    notes: tuple[str, ...] = ()
    test_fraction: float = 0.0
    stratify: bool = False
    shuffle: bool = True

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def is_sparse(self) -> bool:
        """Whether the inputs of all rows would take much more memory than the table does."""
        nbytes = 8 * sum(column.width for column in self.columns) * len(self.cells)
        return nbytes > MOST_BYTES and nbytes > MOST_TIMES * self.cells.nbytes

    def learnt(self, training: Tensor) -> list[Column]:
        """The columns with what stands for missing cells, by the rows of the training part."""
        if self.missing.rule in ("error", "drop") and not self.missing.indicator:
            return self.columns
        rows = None if len(training) == len(self.cells) else training.numpy()
        columns = []
        for place, column in enumerate(self.columns):
            if not place % _AT_ONCE:
                some = self.cells[:, place : place + _AT_ONCE]
                parts = np.ascontiguousarray((some if rows is None else some[rows]).T)
            rule = self.missing.of(column.name)
            column = column.learn(parts[place % _AT_ONCE], rule)
            flagged = bool(column.missing) and self.missing.indicated(column.name)
            columns.append(replace(column, indicator=flagged))
        return columns

    def data(self, training: Tensor) -> LoadedData:
        """Inputs and targets, missing cells filled in by the training part."""
        columns = self.learnt(training)
        inputs = inputs_of(self.cells, columns)
        return LoadedData(inputs, self.targets, self.class_names, columns)


# ── what is suspicious ──────────────────────────────────────────────────────────────────────


def as_unlikely(
    unlikely: Sequence[tuple[Column, str]], asked_for: Collection[str]
) -> Iterator[str]:
    """What is said of columns that are hardly meant as inputs, unless they are asked for.

    unlikely: as :func:`suspicious` gives them.
    """
    chosen = [(column, reason) for column, reason in unlikely if column.name not in asked_for]
    if chosen:
        told = [
            f"column {column.name!r} {reason}, and would make {counted(column.width, 'input')}"
            for column, reason in chosen
        ]
        columns = [column for column, _ in chosen]
        listed = ", ".join(yaml_text(column.name) for column in columns)
        dates = any(column.first_day is not None for column in columns)
        codes = ", ".join(yaml_text(c.name) for c, reason in chosen if reason.startswith(_CODES))
        yield (
            f"{'; '.join(told)}; leave out columns that are not inputs with "
            f"exclude: [{listed}], or use them as they are with keep: [{listed}]"
            + ("; a date is then the days since the first one" if dates else "")
            + (f"; as names they are categorical: [{codes}]" if codes else "")
        )


def suspicious(
    scans: Sequence[ColumnScan], columns: Sequence[Column], unnamed: set[str]
) -> list[tuple[Column, str]]:
    """Columns that are hardly meant as inputs, each with the reason.

    Those without a name, a first one that counts the rows, dates, and text of many values.
    """
    reasons = [
        _suspicion(scan, column, place == 0 and len(columns) > 1, scan.name in unnamed)
        for place, (scan, column) in enumerate(zip(scans, columns, strict=True))
    ]
    return [(c, reason) for c, reason in zip(columns, reasons, strict=True) if reason is not None]


_CODES = "holds codes that begin with 0"


def _suspicion(scan: ColumnScan, column: Column, is_first: bool, is_unnamed: bool) -> str | None:
    if is_unnamed:
        return "has no name"
    if column.first_day is not None:
        return f"holds dates ({column.distinct:,} different)" if column.distinct else "holds dates"
    code = None if scan.text is None else next(filter(is_code, scan.text.numbers), None)
    if column.categories is None and code is not None:
        return f"{_CODES}, such as {code!r}"
    if column.categories is None:
        counts = scan.text is None and scan.counts_rows and scan.begins in (0, 1)
        if is_first and counts and scan.rows >= FEWEST_COUNTED:
            return f"counts the rows, from {scan.begins:g} on"
        return None
    many = len(column.categories)
    if many > MANY_VALUES and many > MANY_SHARE * scan.rows:
        return f"is text with {many:,} different values in {counted(scan.rows, 'row')}"
    return None


# ── missing cells ───────────────────────────────────────────────────────────────────────────

# Not told apart by upper and lower case.
MISSING = ("", "NA", "N/A", "NaN", "?", "NULL", "None")


def marks_of(missing_values: Sequence[str] | None) -> list[str]:
    """The texts that stand for no value, as files have them; by default in any case of letters."""
    if missing_values is not None:
        return list(dict.fromkeys(missing_values))
    cases = ((m, m.lower(), m.upper(), m.capitalize()) for m in MISSING)
    return list(dict.fromkeys(form for forms in cases for form in forms))


def check_missing(
    places: Places,
    scans: Sequence[ColumnScan],
    columns: Mapping[str, Column],
    targets: Sequence[str],
    rules: MissingRules,
) -> tuple[list[str], list[str]]:
    """What is wrong with columns that have missing cells, and those whose rows are dropped then.

    All columns about whose cells nothing is said are named at once, with the ways out.
    """
    wrong, unsaid, dropped = [], [], []
    for scan in scans:
        name, rule = scan.name, rules.of(scan.name)
        is_text = columns[name].categories is not None
        if not isinstance(rules.rule, str) and is_text and rule in ("mean", "median"):
            wrong.append(
                f"column {name!r} is text, which has no {rule}; "
                f"set missing: {{{yaml_text(name)}: most_frequent}}"
            )
        elif rule == "drop":
            dropped.append(name)
        elif rule == "error" or name in targets:
            unsaid.append(scan)
    if unsaid:
        told = _counts_of_missing(unsaid, places)
        missing = [(scan, columns[scan.name]) for scan in scans]
        wrong.append(f"missing cells: {told}; {_ways_out(missing, targets, rules)}")
    return wrong, dropped


def _counts_of_missing(scans: Sequence[ColumnScan], places: Places) -> str:
    firsts = sorted({scan.first_missing or 0 for scan in scans})
    found = dict(zip(firsts, places(firsts), strict=True))
    return ", ".join(
        f"{scan.missing:,} of {scan.rows:,} in {scan.name!r} (first in "
        f"{found[scan.first_missing or 0]})"
        for scan in scans
    )


def _ways_out(
    missing: Sequence[tuple[ColumnScan, Column]], targets: Sequence[str], rules: MissingRules
) -> str:
    """The settings that say what to do about missing cells."""
    drop = "missing: drop leaves those rows out"
    of_targets = any(scan.name in targets for scan, _ in missing)
    if isinstance(rules.rule, str) and not of_targets:
        return (
            f"{drop}; missing: mean, median or most_frequent fills them in from the training part "
            "(of text always most_frequent), and indicator: true adds inputs that say where"
        )
    each = {}
    for scan, column in missing:
        rule = rules.of(scan.name)
        if rule != "drop" and column.categories is not None:
            rule = "most_frequent"
        elif rule == "error":
            rule = "mean"
        each[scan.name] = "drop" if scan.name in targets else rule
    by_name = ", ".join(f"{yaml_text(name)}: {rule}" for name, rule in each.items())
    by_column = f"; missing: {{{by_name}}} says it column by column" if len(each) > 1 else ""
    return drop + by_column + ("; missing targets can't be filled in" if of_targets else "")


# ── the table of columns ────────────────────────────────────────────────────────────────────


def described(
    columns: Sequence[Column], missing: MissingRules, categorical: Collection[str]
) -> str:
    """The columns as a table of text: type, missing cells, values, what they become, and why."""
    head = ("column", "type", "missing", "distinct", "becomes", "why")
    rows = [head, *(_described(column, missing, categorical) for column in columns[:_SHOWN])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if len(columns) > _SHOWN:
        lines.append(f"… and {len(columns) - _SHOWN:,} more columns")
    return "\n".join(lines)


def _described(
    column: Column, missing: MissingRules, categorical: Collection[str]
) -> tuple[str, ...]:
    distinct = f"over {MOST_COUNTED}" if column.distinct is None else f"{column.distinct:,}"
    if column.categories is not None:
        kind, becomes = "text", counted(len(column.categories), "one-hot input")
        why = "named in categorical" if column.name in categorical else "text"
    elif column.first_day is not None:
        kind, becomes, why = "date", "days since the first one", "dates; in keep or features"
    else:
        kind, becomes, why = "number", "a number", "all cells are numbers"
    if column.missing:
        becomes = f"{becomes}, {_filled(column, missing.of(column.name))}"
        if missing.indicated(column.name):
            becomes += ", a flag where missing"
        elif column.distinct == 1 and missing.of(column.name) != "drop":
            becomes += ", the same in all rows"
    return column.name[:40], kind, f"{column.missing:,}", distinct, becomes, why


def _filled(column: Column, rule: Fill) -> str:
    if rule == "drop":
        return "rows without it left out"
    name = "most_frequent" if column.categories is not None else rule
    return f"missing: {name.replace('_', ' ')}"
