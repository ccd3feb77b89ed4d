"""The data source ``table``: CSV, Parquet, Feather and JSON lines with named columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from gdtrain.data.checks import check_memory
from gdtrain.data.tables.cells import WITH_PANDAS, is_code
from gdtrain.data.tables.formats.arrow_arrays import Array
from gdtrain.data.tables.formats.csv_file import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.known import TableEncoder, names_of_text
from gdtrain.data.tables.preparation import Column, Fill, LoadedData, check_columns, inputs_of
from gdtrain.data.tables.scan import (
    FEWEST_COUNTED,
    MANY_SHARE,
    MANY_VALUES,
    MISSING,
    MOST_COUNTED,
    AsText,
    ColumnFault,
    ColumnScan,
    Places,
    TableScan,
    Understanding,
    marks_of,
    settle_columns,
    yaml_text,
)
from gdtrain.errors import ConfigError, DataError
from gdtrain.registry import find, register_source
from gdtrain.settings import FilePath, LossSettings, Settings, SourceSettings, instead_of
from gdtrain.wording import counted

Names = Annotated[list[str], Field(min_length=1)]
Mark = Annotated[str, Field(min_length=1, max_length=1)]


class ValidationTable(Settings):
    """The validation part, if it is a separate file."""

    path: FilePath
    """A table with the same columns, relative to the working directory."""


class HeldOutTest(Settings):
    """The data for a final evaluation, after training: a share of the rows, or a separate file."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the rows, drawn by the seed; validation_fraction is then a share of the rest."""
    path: Annotated[FilePath | None, instead_of("fraction"), Field(validate_default=True)] = None
    """A table with the same columns, relative to the working directory."""

    @field_validator("path")
    @classmethod
    def _is_said(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("fraction") is None:
            raise ValueError("missing; set fraction, or path")
        return value


class ColumnsOfTable(SourceSettings):
    """Which columns of a table are inputs and targets, and what is done with their cells."""

    path: FilePath
    """The file, relative to the working directory. A folder, or a pattern such as data/*.csv, means
    all of its files."""
    target: str | Names
    """Name of the target column, or of several."""
    features: Names | None = None
    """Names of the input columns; all but the targets if left out."""
    exclude: list[str] = Field([])
    """Columns that are not inputs."""
    keep: list[str] = Field([])
    """Columns to use as inputs that would otherwise not be: row numbers, codes, names, dates."""
    categorical: list[str] = Field([])
    """Columns whose numbers are category codes."""
    missing: (
        Literal["error", "drop", "mean", "median", "most_frequent"]
        | dict[str, Literal["error", "drop", "mean", "median", "most_frequent"]]
    ) = "error"
    """How to treat missing cells: an error; drop their rows; or fill in a statistic of the training
    part, for text always the most frequent category. One word for all columns, or a mapping of
    columns to words."""
    indicator: bool | list[str] = False
    """Add inputs that are 1 where a cell is missing: for all columns with missing cells, or for
    these."""
    missing_values: list[str] | None = None
    """Cells that mean a missing value; if left out, empty cells, NA, N/A, NaN, ?, NULL and None, in
    upper or lower case."""
    unknown_category: Literal["error", "ignore"] = "error"
    """How to treat a category that was not in the training data: an error, or all zeros
    (ignore)."""


class Table(ColumnsOfTable):
    """A table: CSV, Parquet, Feather or JSON lines, plain or compressed, or a folder of these.

    Numeric columns become one input each; text columns are one-hot encoded.
    """

    validation: ValidationTable | None = None
    """The validation part, in a separate file."""
    test: HeldOutTest | None = None
    """The test part: not used in training, and evaluated once after it."""
    stratify: bool = False
    """For fractions: each class has the same share in all parts."""
    shuffle: bool = True
    """For fractions: draw rows at random (true), or take the last rows (false)."""
    delimiter: Annotated[str, Field(min_length=1, max_length=2)] | None = None
    """For CSV, the character between cells; if left out, the first of comma, semicolon, tab and |
    that occurs in the header."""
    quote: Mark = '"'
    """For CSV, the character around cells that contain delimiters."""
    decimal: Literal[".", ","] = "."
    """For CSV, the decimal separator of numbers."""
    encoding: str = "utf-8"
    """For CSV, the encoding, such as latin-1 or utf-16."""
    comment: Mark | None = None
    """For CSV, the character that begins a comment line, which is skipped."""
    skip_rows: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """For CSV, the number of lines before the header."""
    header: bool | None = None
    """For CSV, whether the first line has the column names; if not, they are column_1, column_2,
    …"""

    @field_validator("validation", "stratify", "shuffle")
    @classmethod
    def _has_an_effect(cls, value: Any, info: ValidationInfo) -> Any:
        fraction, own_file = info.data.get("validation_fraction"), info.data.get("validation")
        if info.field_name == "validation" and value is not None and fraction:
            raise ValueError(
                "can't be set together with validation_fraction; remove one of the two"
            )
        of_test = getattr(info.data.get("test"), "fraction", None)
        draws = (bool(fraction) and not own_file) or of_test is not None
        if info.field_name == "stratify" and value and not draws:
            raise ValueError("has no effect without validation_fraction; set it")
        if info.field_name == "shuffle" and not value:
            if not draws:
                raise ValueError("has no effect without validation_fraction; set it")
            if info.data.get("stratify"):
                raise ValueError(
                    "has no effect beside stratify, which draws; remove one of the two"
                )
        return value

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        r"""A tab may be written as '\t', which YAML reads as a backslash and a t."""
        if value is not None and value != "\\t" and len(value) != 1:
            raise ValueError(f"must be one character, got {value!r}")
        return "\t" if value == "\\t" else value


@register_source("table", Table)
@register_source("csv", Table)
def read_table(
    path: str,
    target: str | list[str],
    *,
    delimiter: str | None = None,
    quote: str = '"',
    decimal: str = ".",
    encoding: str = "utf-8",
    comment: str | None = None,
    skip_rows: int = 0,
    header: bool | None = None,
    validation: ValidationTable | None = None,
    test: HeldOutTest | None = None,
    stratify: bool = False,
    shuffle: bool = True,
    loss: LossSettings | None = None,
    **columns: Any,
) -> LoadedTable:
    """Read a table whose columns are understood by stated rules; see docs/how-to/data/tables.md.

    loss: says whether targets are numbers or classes; without one, text is classes. columns: what
    else :class:`TableReading` takes.

    Raises DataError, with place and count, for what is not understood, and ConfigError for
    settings that can't work.
    """
    dialect = Dialect(delimiter, quote, decimal, encoding, comment, skip_rows, header)
    reading = TableReading(TableFiles(path, dialect), target, loss=loss, **columns)
    path_of_test, fraction = (None, None) if test is None else (test.path, test.fraction)
    table = reading.loaded(None if validation is None else validation.path, path_of_test)
    return replace(table, stratify=stratify, shuffle=shuffle, test_fraction=fraction or 0.0)


class TableReading:
    """One reading of a table: its columns chosen, looked at, and kept as numbers.

    The arguments are the settings of :class:`ColumnsOfTable`. loss: as of :func:`read_table`.
    """

    def __init__(
        self,
        files: TableFiles,
        target: str | list[str],
        features: list[str] | None = None,
        exclude: Sequence[str] = (),
        keep: Sequence[str] = (),
        categorical: Sequence[str] = (),
        missing: Fill | Mapping[str, Fill] = "error",
        indicator: bool | Sequence[str] = False,
        missing_values: Sequence[str] | None = None,
        unknown_category: str = "error",
        loss: LossSettings | None = None,
    ) -> None:
        if features is not None and exclude:
            raise ConfigError.of("exclude", "has no effect beside features; remove one of the two")
        self.files = files
        self.targets = [target] if isinstance(target, str) else target
        wanted = [*self.targets, *(features or ())]
        if not set(wanted).issubset(files.names):
            files.look_for(wanted)
        self.rules = MissingRules(missing, indicator)
        self.chosen = check_columns(
            files.path,
            files.names,
            features,
            self.targets,
            categorical,
            exclude,
            keep,
            () if isinstance(missing, str) else list(missing),
            () if isinstance(indicator, bool) else indicator,
        )
        self.asked_for = {*(features or ()), *keep, *categorical}
        self.categorical = set(categorical)
        self.missing_values = MISSING if missing_values is None else missing_values
        self.marks = marks_of(missing_values)
        self.loss = loss
        self.ignore_unknown = unknown_category == "ignore"
        self.advance: Callable[[int], object] | None = None

    def loaded(self, validation: str | None = None, test: str | None = None) -> LoadedTable:
        """All of it in memory. validation, test: paths of tables that are these parts."""
        check_memory(self.files.path, self.files.nbytes())
        seen = self.scanned(keep=True)
        cells, target_cells = seen.inputs.kept.joined(), seen.targets.kept.joined()
        for part, scan, columns in (
            (cells, seen.inputs, seen.columns),
            (target_cells, seen.targets, seen.target_columns),
        ):
            if any(column.text is not None for column in scan.columns):
                settle_columns(part, scan.columns, columns, self.files.dialect.decimal)
        if seen.dropped:
            stay = seen.staying(cells, target_cells)
            cells, target_cells = cells[stay], target_cells[stay]
            if not len(cells):
                text = "no row is left where those with missing cells are left out"
                raise DataError(f"{self.files.path}: {text}")
        own, of_files = torch.arange(len(cells), device="cpu"), dict[str, Tensor]()
        for what, path in (("validation", validation), ("test", test)):
            if path is None:
                continue
            held_out = self._held_out(path, seen, what)
            of_files[what] = len(cells) + torch.arange(len(held_out[0]), device="cpu")
            cells, target_cells = map(
                np.concatenate, zip((cells, target_cells), held_out, strict=True)
            )
        labels, names = self._labels(target_cells, seen.target_columns)
        notes = (described(seen.columns, self.rules, self.categorical),)
        return LoadedTable(
            cells,
            seen.columns,
            labels,
            names,
            self.rules,
            own,
            validation=of_files.get("validation"),
            test=of_files.get("test"),
            notes=notes,
        )

    def _held_out(self, path: str, seen: Seen, what: str) -> tuple[Array, Array]:
        """Cells and targets of a table that has the columns of this one."""
        files = TableFiles(path, self.files.dialect)
        names = [*self.chosen, *self.targets]
        check_columns(files.path, files.names, self.chosen, self.targets)
        encoders = [
            TableEncoder(columns, self.marks, files.dialect.decimal, ignore_unknown=ignored)
            for columns, ignored in (
                (seen.columns, self.ignore_unknown),
                (seen.target_columns, False),
            )
        ]
        found: list[tuple[Array, Array]] = []
        row = 0
        as_text = names_of_text([*seen.columns, *seen.target_columns])
        for batch in files.batches(names, self.marks, as_text=as_text):
            halves = (batch[: len(self.chosen)], batch[len(self.chosen) :])
            (cells, wrong), (targets, more) = (
                encoder.cells(half) for encoder, half in zip(encoders, halves, strict=True)
            )
            stay = seen.staying(cells, targets)
            faults = self._unfilled(cells, targets, seen, stay) | more | wrong
            if faults:
                first = min(faults)
                place = files.places([row + first])[0]
                raise DataError(f"{path}: {place}, {faults[first]}")
            row += len(cells)
            found.append((cells[stay], targets[stay]))
        if not any(len(cells) for cells, _ in found):
            raise DataError(f"{path}: has no rows for the {what} part; at least one is needed")
        inputs, outputs = zip(*found, strict=True)
        return np.concatenate(inputs), np.concatenate(outputs)

    def _unfilled(self, cells: Array, targets: Array, seen: Seen, stay: Array) -> dict[int, str]:
        """Rows that stay and have a missing cell which nothing is to stand for."""
        faults = {}
        for part, columns in ((cells, seen.columns), (targets, seen.target_columns)):
            for place, column in enumerate(columns):
                filled = part is cells and self.rules.of(column.name) not in ("error", "drop")
                for row in (
                    () if filled else np.flatnonzero(np.isnan(part[:, place]) & stay).tolist()
                ):
                    faults[row] = f"column {column.name!r} has no value"
        return faults

    def scanned(self, keep: bool) -> Seen:
        """What a pass over the rows says of the columns, or another where one is text late.

        keep: whether the cells stay in memory. Raises DataError for what can't be trained on.
        """
        seen = self.understood(keep)
        faulty = {fault.column for fault in seen.faults}
        if faulty.isdisjoint(self.targets):
            for scan, column in zip(seen.targets.columns, seen.target_columns, strict=True):
                if column.kind != "number":
                    self._check_target(scan, column, len(seen.target_columns))
        unlikely = [
            (column, reason)
            for column, reason in suspicious(seen.inputs.columns, seen.columns, self.files.unnamed)
            if column.name not in faulty
        ]
        left_out = faulty | {column.name for column, _ in unlikely} - self.asked_for
        scans = [scan for scan in (*seen.inputs.columns, *seen.targets.columns) if scan.missing]
        wrong, dropped = [*map(str, seen.faults)], list[str]()
        if unlikely:
            wrong += as_unlikely(unlikely, self.asked_for)
        if scans:
            unfilled, dropped = check_missing(
                self.files.places,
                [scan for scan in scans if scan.name not in left_out],
                {column.name: column for column in (*seen.columns, *seen.target_columns)},
                self.targets,
                self.rules,
            )
            wrong += unfilled
        if len(wrong) > _MOST_TOLD:
            more = f"has {len(wrong) - _MOST_TOLD:,} faults besides these; correct these first"
            wrong = [*wrong[:_MOST_TOLD], more]
        if wrong:
            raise DataError(*(f"{self.files.path}: {fault}" for fault in wrong))
        return replace(seen, dropped=dropped)

    def understood(self, keep: bool = False) -> Seen:
        """The same, whether or not it can be trained on."""
        text = set(self.categorical)
        decimal = self.files.dialect.decimal
        understanding = Understanding(
            self.files.places, self.categorical, self.targets, self.missing_values, decimal
        )
        while True:
            inputs, targets = (
                TableScan(
                    names,
                    text=text,
                    missing=self.marks,
                    decimal=decimal,
                    keep=keep,
                    before=lambda nbytes: check_memory(self.files.path, nbytes),
                )
                for names in (self.chosen, self.targets)
            )
            width = len(self.chosen)
            names = [*self.chosen, *self.targets]
            for batch in self.files.batches(names, self.marks, self.advance, text):
                inputs.add(batch[:width])
                targets.add(batch[width:])
            if not inputs.rows:
                what = "has no rows below its header; at least one is needed"
                raise DataError(f"{self.files.path}: {what}")
            try:
                columns, faults = understanding.columns([*inputs.columns, *targets.columns])
            except AsText as late:
                text.update(late.names)
                continue
            return Seen(inputs, targets, columns[:width], columns[width:], faults)

    def _check_target(self, scan: ColumnScan, column: Column, targets: int) -> None:
        """Refuse a target of text or dates that the loss, or another of several, does not allow."""
        if column.kind == "category" and targets > 1:
            text = f"target {column.name!r} is not numeric; of several, all must be"
            raise DataError(f"{self.files.path}: {text}")
        if self.loss is None:
            return
        if column.kind == "date":
            raise ConfigError.of("target", self._no_dates(scan, column))
        two = self.loss.targets.binary and len(column.categories or ()) == 2
        if not (self.loss.targets.classes or two):
            raise ConfigError.of("target", self._not_numbers(scan, column, self.loss))

    def _no_dates(self, scan: ColumnScan, column: Column) -> str:
        of_column = f"df[{column.name!r}]"
        line = f"{of_column} = (pd.to_datetime({of_column}) - pd.Timestamp('2000-01-01')).dt.days"
        told = self._held_by(scan, column, "dates")
        return f"{told}, which are no targets; write numbers, {WITH_PANDAS}{line}"

    def _not_numbers(self, scan: ColumnScan, column: Column, loss: LossSettings) -> str:
        return f"{self._held_by(scan, column, 'text')}, {but_numbers(loss)}"

    def _held_by(self, scan: ColumnScan, column: Column, kind: str) -> str:
        """How many cells of a target hold text or dates, and where the first is."""
        text = scan.text
        first = "" if not column.categories or text is None else f" {text.texts[0]!r}"
        row = 0 if text is None or not len(text.first_rows) else text.first_rows[0]
        place = self.files.places([int(row)])[0]
        cells = counted(scan.rows - scan.missing, "cell")
        held = f"{column.name!r} of {self.files.path} holds {kind} in {cells}"
        return f"{held}, the first{first} in {place}"

    def _labels(self, cells: Array, columns: Sequence[Column]) -> tuple[Tensor, list[str] | None]:
        """Targets as numbers, or as labels and the names of the classes."""
        if columns[0].categories is not None:
            return torch.from_numpy(cells[:, 0].astype(np.int64)), columns[0].categories
        if self.loss is None or not self.loss.targets.classes or len(columns) > 1:
            return torch.from_numpy(cells), None
        return numbered_classes(cells, getattr(self.loss, "ignore_index", None))


_MOST_TOLD = 50  # faults, a line each
_FEW = 10  # numbers that are taken for classes, however few rows there are


def numbered_classes(cells: Array, ignored: int | None) -> tuple[Tensor, list[str] | None]:
    """Numbers [n, 1] as labels of classes that bear them as names; 0, 1, … are what they are."""
    labels = cells[:, 0]
    there = np.unique(labels[labels != ignored])
    whole = bool(len(there)) and bool((there == np.round(there)).all())
    counted = whole and bool((there == np.arange(len(there))).all())
    hardly_classes = len(there) > max(_FEW, len(labels) // 2)
    if not whole or counted or hardly_classes:
        return torch.from_numpy(cells), None
    places = np.searchsorted(there, labels)
    if ignored is not None:
        places = np.where(labels == ignored, ignored, places)
    return torch.from_numpy(places), [f"{label:.0f}" for label in there]


@dataclass(frozen=True)
class Seen:
    """What a pass over a table has seen. dropped: columns whose rows are left out if missing.

    faults: of columns that are not understood, and are taken for numbers here.
    """

    inputs: TableScan
    targets: TableScan
    columns: list[Column]
    target_columns: list[Column]
    faults: list[ColumnFault] = field(default_factory=list)
    dropped: Sequence[str] = ()

    def staying(self, cells: Array, targets: Array) -> Array:
        """Which rows have values in all columns where that is asked for, [n] bool."""
        bad = np.zeros(len(cells), dtype=bool)
        for part, columns in ((cells, self.columns), (targets, self.target_columns)):
            for place, column in enumerate(columns):
                if column.name in self.dropped:
                    bad |= np.isnan(part[:, place])
        return ~bad


def but_numbers(loss: LossSettings) -> str:
    """Why text can't be the targets of a loss over numbers, and what to do."""
    text = f"and {loss.name} learns numbers; use a loss over classes, such as cross_entropy, or "
    if find("loss", loss.name).is_built_in:
        return text + "write numbers"
    return text + "register it with targets=Targets(classes=True)"


# ── a table that has been read ──────────────────────────────────────────────────────────

# What ones and zeros may take in memory, and how many times what the table itself takes.
MOST_BYTES, MOST_TIMES = 256 << 20, 4
_AT_ONCE = 8  # float64 columns in a line of a cache


@dataclass(frozen=True)
class MissingRules:
    """What is done about missing cells: one rule for all columns, or one for each by name.

    indicator: whether columns with missing cells get a further input that says where. Those whose
    rows are dropped have no missing cells, and get none.

    Raises ConfigError for an indicator that would have no effect.
    """

    rule: Fill | Mapping[str, Fill] = "error"
    indicator: bool | Sequence[str] = False

    def __post_init__(self) -> None:
        if self.rule == "drop" and self.indicator:
            raise ConfigError.of("indicator", "has no effect beside missing: drop; remove one")
        for name in [] if isinstance(self.indicator, bool) else self.indicator:
            if self.of(name) == "drop":
                text = f"{name!r} has no missing cells once missing drops their rows; remove it"
                raise ConfigError.of("indicator", text)

    def of(self, name: str) -> Fill:
        if isinstance(self.rule, str):
            return self.rule
        return self.rule.get(name, "error")

    def indicated(self, name: str) -> bool:
        if isinstance(self.indicator, bool):
            return self.indicator and self.of(name) != "drop"
        return name in self.indicator


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

_SHOWN = 30


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
