"""Loaded data and what is done to it before training: checks, labels, split, standardisation."""

from __future__ import annotations

import cmath
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from gdtrain.data.orders.order import generator
from gdtrain.data.tables.formats.arrow_arrays import Array
from gdtrain.errors import ConfigError, DataError
from gdtrain.wording import nearest

SPLIT_KEY = 0x5911  # keeps the split's draw apart from those of the orders
TEST_KEY = 0x7E57  # and that of the test part from both


@dataclass(frozen=True)
class LoadedData:
    """Samples as a source gives them.

    inputs: [n, …] floating point or integer, an array or a tensor. targets: [n] or [n, …].
    class_names: names of the labels 0, 1, …, where the targets are labels of named classes.
    columns: how the inputs were made from the columns of a table, for :class:`Preprocessing`.
    """

    inputs: Tensor
    targets: Tensor
    class_names: list[str] | None = None
    columns: list[Column] | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            tensor = as_tensor(getattr(self, name), name)
            if tensor.is_complex():
                raise DataError(f"{name}: are complex; give real and imaginary parts as columns")
            object.__setattr__(self, name, tensor)
        n, m = self.inputs.shape[0], self.targets.shape[0]
        if n != m:
            raise DataError(
                f"different numbers of samples: inputs {n} and targets {m}; "
                "each sample needs one of each"
            )
        if n == 0:
            raise DataError("the data set is empty; at least one sample is needed")
        for name in ("inputs", "targets"):
            if getattr(self, name).numel() == 0:
                raise DataError(
                    f"{name}: hold no numbers, their shape is {list(getattr(self, name).shape)}; "
                    "each sample needs at least one"
                )


@dataclass(frozen=True)
class PreparedData:
    """Samples as loaders take them, (inputs, targets) or a Dataset, and what was done to them.

    notes: what is to be said of them before training. test: samples for when training is over.
    """

    training: Any
    validation: Any | None
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    test: Any | None = None


@dataclass(frozen=True)
class Preprocessing:
    """What was done to the data before training, so that predictions can repeat it.

    mean, std: of each input column over the training part, empty if not standardised; the
    target_ ones likewise. input_shape: of one sample, after ``shape``. num_outputs: of the model.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    input_shape: list[int]
    num_outputs: int
    class_names: list[str] | None = None
    columns: list[Column] | None = None
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    target_mean: list[float] = field(default_factory=list)
    target_std: list[float] = field(default_factory=list)

    def apply(self, inputs: Tensor) -> Tensor:
        """Inputs [n, …] as the model takes them, [n, *input_shape].

        Raises DataError if a sample does not have as many numbers as those of the training.
        """
        expected = torch.Size(self.input_shape).numel()
        if inputs.ndim == 0 or inputs.shape[1:].numel() != expected:
            raise DataError(
                f"inputs of shape {list(inputs.shape)} do not fit: the model was trained on "
                f"{expected} numbers per sample"
            )
        if self.mean:
            inputs = standardized(inputs, self.mean, self.std)
        return inputs.reshape(inputs.shape[0], *self.input_shape)

    def apply_to_targets(self, targets: Tensor) -> Tensor:
        """Targets [n, …] as the loss takes them."""
        if not self.target_mean:
            return targets
        return standardized(targets, self.target_mean, self.target_std)

    def restore_targets(self, outputs: Tensor) -> Tensor:
        """Outputs [n, …] of a model trained on standardised targets, in the targets' units."""
        if not self.target_mean:
            return outputs
        flat = outputs.reshape(outputs.shape[0], len(self.target_mean))
        std, mean = (flat.new_tensor(values) for values in (self.target_std, self.target_mean))
        return (flat * std + mean).reshape(outputs.shape)

    def save(self, path: Path) -> None:
        """Write as JSON; floats keep all their bits."""
        path.write_text(self.text(), "utf-8")

    def text(self) -> str:
        """What :meth:`save` writes."""
        fields = dict(vars(self))
        if self.columns is not None:
            fields["columns"] = [column.fields() for column in self.columns]
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Preprocessing:
        """Read what :meth:`save` wrote. Raises DataError if it is not such a file."""
        try:
            # json, not pydantic, reads the text: it is known to keep every bit of a float.
            fields: Any = json.loads(path.read_text("utf-8"))
            return TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            reason = f"{place}: {fault['msg']}" if place else fault["msg"]
            raise DataError(f"{path}: is not a preprocessing file; {reason}") from error
        except RecursionError as error:
            raise DataError(f"{path}: is not a preprocessing file; nested too deep") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: is not a preprocessing file; {error}") from error


def class_labels(targets: Tensor, ignore_index: int | None = None, first_row: int = 0) -> Tensor:
    """Targets as class labels [n] int64; ``ignore_index`` may be among them.

    first_row: the number of the first of them in the data set. Raises DataError unless all
    others are whole and >= 0.
    """
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1:
        raise DataError(
            f"targets: class labels must be one number per sample, got shape "
            f"{list(targets.shape)}; use one target column, or another loss"
        )
    if targets.is_floating_point():
        check_finite(targets, "targets", first_row)
        fractional = (targets != targets.round()).nonzero()
        if len(fractional):
            row = int(fractional[0])
            raise DataError(
                f"targets: row {first_row + row} is {targets[row].item():g}; class labels must be "
                "whole numbers 0, 1, …, or use a loss for numbers such as mse"
            )
    labels = targets.to(torch.int64)
    negative = (labels < 0) if ignore_index is None else (labels < 0) & (labels != ignore_index)
    if bool(negative.any()):
        row = int(negative.nonzero()[0])
        raise DataError(
            f"targets: row {first_row + row} has label {targets[row].item():g}, which is out of "
            "range; class labels must be 0, 1, …"
        )
    return labels


def number_targets(targets: Tensor) -> Tensor:
    """Targets as numbers [n, k], a single column as [n, 1], as models give their outputs."""
    floating = targets if targets.is_floating_point() else targets.to(torch.float32)
    return floating[:, None] if floating.ndim == 1 else floating


def split(
    num_samples: int,
    validation_fraction: float,
    seed: int,
    *,
    shuffle: bool = True,
    labels: Tensor | None = None,
    part: Literal["validation", "test"] = "validation",
) -> tuple[Tensor, Tensor]:
    """Which samples train and which validate: two rising rows of int64 indices.

    The validation part is a uniformly random round(validation_fraction · n) of the samples, at
    least one unless the fraction is 0. shuffle: or else the last ones. labels: [n] int64, of which
    each has its share of them, up to rounding. part: the test part is another draw. Raises
    DataError if that leaves none to train on.
    """
    if validation_fraction == 0:
        return torch.arange(num_samples, device="cpu"), torch.arange(0, device="cpu")
    count = max(1, round(validation_fraction * num_samples))
    if count >= num_samples:
        way = "use a smaller fraction" if num_samples > 1 else "leave it out, or give more samples"
        raise DataError(
            f"no samples to train on: {_SETTINGS[part]} {validation_fraction:g} takes "
            f"{count} of {num_samples}; {way}"
        )
    if not shuffle:
        everything = torch.arange(num_samples, device="cpu")
        return everything[:-count], everything[-count:]
    shuffled = torch.randperm(num_samples, generator=generator(seed, _KEYS[part]), device="cpu")
    if labels is not None:
        shuffled = shuffled[_spread(labels[shuffled])]
    return shuffled[count:].sort().values, shuffled[:count].sort().values


_SETTINGS = {"validation": "validation_fraction", "test": "test.fraction"}
_KEYS = {"validation": SPLIT_KEY, "test": TEST_KEY}


def _spread(labels: Tensor) -> Tensor:
    """An order in which every part from the front on has its share of each label.

    The k-th of m samples of a label stands where (k + ½) / m says.
    """
    order = torch.argsort(labels, stable=True)
    _, counts = torch.unique_consecutive(labels[order], return_counts=True)
    places = torch.cat([(torch.arange(int(m), device="cpu") + 0.5) / int(m) for m in counts])
    return order[torch.argsort(places, stable=True)]


def prepare(
    data: LoadedData,
    parts: tuple[Tensor, Tensor],
    *,
    standardize: bool,
    standardize_targets: bool,
    shape: list[int] | None,
    num_outputs: int,
    in_float32: bool = False,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None, Preprocessing]:
    """Cut the data in two and standardise it by the statistics of the training part.

    parts: which samples train and which validate, as :func:`split` gives them.
    in_float32: whether float32 must hold the inputs.
    Returns (training inputs, targets), the same for validation or None, and what was done.
    Raises DataError for values that are not finite, or a shape that does not hold the inputs.
    """
    inputs, targets = data.inputs, data.targets
    check_finite(inputs, "inputs", in_float32=in_float32)
    check_finite(targets, "targets")
    train, validation = parts
    input_shape = sample_shape(list(inputs.shape[1:]), shape)
    done = Preprocessing(input_shape, num_outputs, data.class_names, data.columns)
    trained: slice | Tensor = slice(None) if len(train) == len(inputs) else train  # all: no copy
    if standardize:
        mean, std = _statistics(inputs[trained], "inputs")
        done = replace(done, mean=mean, std=std)
    if standardize_targets:
        mean, std = _statistics(targets[trained], "targets")
        done = replace(done, target_mean=mean, target_std=std)
        targets = standardized(targets, mean, std)
    ready = _in_parts(done, inputs) if standardize else done.apply(inputs)
    held_out = (ready[validation], targets[validation]) if len(validation) else None
    return (ready[trained], targets[trained]), held_out, done


def _in_parts(done: Preprocessing, inputs: Tensor) -> Tensor:
    """``done.apply(inputs)`` without further copies of all rows in between."""
    ready = torch.empty(0, device="cpu")
    for start in range(0, len(inputs), CHECKED_ROWS):
        part = done.apply(inputs[start : start + CHECKED_ROWS])
        if not start:
            ready = part.new_empty((len(inputs), *part.shape[1:]))
        ready[start : start + CHECKED_ROWS] = part
    return ready


def sample_shape(held: list[int], shape: list[int] | None) -> list[int]:
    """The shape of one sample's inputs: ``shape`` if given, else as they are held.

    Raises DataError if it does not hold as many numbers.
    """
    count = math.prod(held)
    if shape is not None and count != math.prod(shape):
        raise DataError(
            f"shape {shape} holds {math.prod(shape)} numbers, but a sample has {count} inputs"
        )
    return shape or held or [1]


def _statistics(rows: Tensor, name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (over n) of each column; 1 for a constant column's."""
    flat = rows.reshape(rows.shape[0], -1).double()
    mean, std = flat.mean(dim=0), flat.std(dim=0, correction=0)
    return usable_statistics(mean, std, flat.amin(dim=0), flat.amax(dim=0), name)


def usable_statistics(
    mean: Tensor, std: Tensor, low: Tensor, high: Tensor, name: str
) -> tuple[list[float], list[float]]:
    """Mean and deviation to standardise columns by, 1 for a constant column's, as lists.

    All [columns] float64; low, high: the columns' extremes. Raises DataError for a column whose
    deviation float64 does not hold.
    """
    std = torch.where(low == high, 1.0, std)  # a constant's rounded std may not be exactly 0
    unusable = (~(mean.isfinite() & std.isfinite() & (std > 0))).nonzero()
    if len(unusable):
        column = int(unusable[0])
        raise DataError(
            f"{name}: column {column} can't be standardised, its deviation is out of the range of "
            f"float64; it spans {low[column]:g} … {high[column]:g}, rescale it"
        )
    return mean.tolist(), std.tolist()


def standardized(values: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """(values - mean) / std by column, computed in float64 and rounded once."""
    flat = values.reshape(values.shape[0], len(mean)).double()
    scaled = (flat - flat.new_tensor(mean)) / flat.new_tensor(std)
    return scaled.to(values.dtype if values.is_floating_point() else torch.float32).reshape(
        values.shape
    )


Fill = Literal["error", "drop", "mean", "median", "most_frequent"]


# ── arrays and tensors that a user has ──────────────────────────────────────────────────

CHECKED_ROWS = 1 << 16


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a tensor [n, …] that shares its memory where that is possible."""
    tensor = value.detach() if isinstance(value, Tensor) else _from_array(value, name)
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else "sparse"
        raise DataError(f"{name}: a {kind} tensor can't be cut into rows; give a dense one")
    if tensor.ndim == 0:
        raise DataError(f"{name}: a single number has no rows; give a tensor of shape [n, …]")
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch gathers none of them
        tensor = tensor.to(torch.int64)
        if bool((tensor < 0).any()):
            raise DataError(f"{name}: a value is over 2^63 - 1, the largest int64; rescale it")
    return tensor


def _from_array(value: Any, name: str) -> Tensor:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: make no array; give rows of equal length") from error
    if array.dtype.kind not in "biufc":
        raise DataError(f"{name}: an array of {array.dtype} is not numeric; encode it first")
    if np.ma.is_masked(value):
        raise DataError(f"{name}: holds masked values; fill them in or remove the rows")
    if array.dtype.char in "gG":
        raise DataError(f"{name}: torch has no {array.dtype}; convert the array to float64")
    # torch shares memory only with native, writable, forward-strided arrays.
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    writable = native if native.flags.writeable else native.copy()
    # ascontiguousarray would make a row of a single number.
    return torch.from_numpy(writable if writable.ndim == 0 else np.ascontiguousarray(writable))


def check_finite(
    tensor: Tensor, name: str, first_row: int = 0, *, in_float32: bool = False
) -> None:
    """Raise DataError, naming row and column, if a value is NaN or infinite.

    first_row: the number of the tensor's first row in the data set. in_float32: whether a value
    that float32 does not hold is refused too.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return
    # Neither needs a second array. A sum is finite if every value is, barring overflow; but one in
    # float64 makes float64 of what it sums up, so that is done in parts.
    most = torch.finfo(torch.float32).max
    if in_float32 and tensor.dtype == torch.float64:
        low, high = tensor.aminmax()  # which NaN passes through
        is_right = bool(-low <= most and high <= most)
    else:
        parts = (tensor,) if len(tensor) <= CHECKED_ROWS else torch.split(tensor, CHECKED_ROWS)
        dtype = None if tensor.is_complex() else torch.float64
        is_right = all(cmath.isfinite(part.sum(dtype=dtype).item()) for part in parts)
    if is_right:
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    is_finite = not len(bad)
    if is_finite and in_float32:
        bad = (tensor.abs() > most).nonzero()
    if not len(bad):
        return
    row, *column = bad[0].tolist()
    place = f"row {first_row + row}" + (f", column {', '.join(map(str, column))}" if column else "")
    value = tensor[tuple(bad[0].tolist())].item()
    if is_finite:
        way_out = "rescale it, or set precision: fp64"
        raise DataError(f"{name}: {place} is {value:g}, which float32 does not hold; {way_out}")
    more = f" (and {bad.shape[0] - 1} more)" if bad.shape[0] > 1 else ""
    raise DataError(
        f"{name}: {place} is {value}{more}; remove the row or fill in a number before training"
    )


# ── columns of a table, and how their cells become inputs ───────────────────────────────


@dataclass(frozen=True)
class Column:
    """A column of a table: a number as it is, days, or one input for each category.

    first_day: of a column of dates, whose input is the days since then, counted from 1970-01-01.
    fill: what stands for a missing cell, a number or a category; None: none may be missing.
    indicator: a further input, 1 where the cell is missing. missing, distinct: how many cells
    were missing in training, and different values there were (None: too many to count).
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    name: str
    categories: list[str] | None = None
    first_day: float | None = None
    fill: float | str | None = None
    indicator: bool = False
    missing: int = field(default=0, compare=False)
    distinct: int | None = field(default=None, compare=False)

    @property
    def kind(self) -> Literal["number", "date", "category"]:
        if self.categories is not None:
            return "category"
        return "number" if self.first_day is None else "date"

    @property
    def width(self) -> int:
        """How many inputs it makes."""
        return (1 if self.categories is None else len(self.categories)) + self.indicator

    def fields(self) -> dict[str, Any]:
        """Its fields as JSON holds them; of those that came after 0.1.0, the ones that say more."""
        known = asdict(self)
        extra = {key: known[key] for key in _LATER if known[key]}
        if self.first_day is not None:
            extra["first_day"] = self.first_day
        if self.fill is not None:
            extra["fill"] = self.fill
        return {"name": self.name, "categories": self.categories} | extra

    def learn(self, cells: Array, rule: Fill) -> Column:
        """The column with what stands for missing cells, learnt from those of the training part.

        cells: [n] float64 as :class:`TableScan` keeps them.
        """
        if rule in ("error", "drop"):
            return self
        missing = np.isnan(cells)
        present = cells[~missing] if missing.any() else cells
        if not len(present):
            return replace(self, fill=self.categories[0] if self.categories else 0.0)
        if self.categories is not None:
            counts = np.bincount(present.astype(np.int64), minlength=len(self.categories))
            return replace(self, fill=self.categories[int(counts.argmax())])
        if rule == "most_frequent":
            values, counts = np.unique(present, return_counts=True)
            return replace(self, fill=float(values[counts.argmax()]))
        value = float(np.mean(present) if rule == "mean" else np.median(present))
        return replace(self, fill=value)


CACHED = 1 << 17  # numbers that stay in a core's cache
_LATER = ("indicator", "missing", "distinct")


def inputs_of(cells: Array, columns: Sequence[Column]) -> Tensor:
    """Inputs [n, width] float64 of cells [n, columns] float64: numbers, days, places of categories.

    A missing cell is NaN, and so is what it makes, unless its column has a ``fill``; a category
    of -1, one that is none of the column's, is all zeros.
    """
    plain = all(column.kind == "number" and not column.indicator for column in columns)
    filled = any(column.fill is not None for column in columns)
    if plain and not (filled and np.isnan(cells).any()):
        return torch.from_numpy(cells)
    out = np.zeros((len(cells), sum(column.width for column in columns)))
    rows = max(1, CACHED // max(1, out.shape[1]))
    for start in range(0, len(cells), rows):
        _fill_rows(out[start : start + rows], cells[start : start + rows], columns)
    return torch.from_numpy(out)


def _fill_rows(out: Array, cells: Array, columns: Sequence[Column]) -> None:
    """Columns without missing cells and unknown categories are filled in together."""
    missing = np.atleast_1d(np.isnan(cells).any(axis=0))
    numbers: list[tuple[int, int]] = []
    categories: list[tuple[int, int]] = []
    at = 0
    for place, column in enumerate(columns):
        is_category = column.categories is not None
        is_odd = missing[place] or (is_category and (cells[:, place] < 0).any())
        if is_odd or column.indicator or column.first_day is not None:
            _fill_in(out[:, at : at + column.width], cells[:, place], column)
        else:
            (categories if is_category else numbers).append((place, at))
        at += column.width
    for first, stop, start in _runs(numbers):
        out[:, start : start + stop - first] = cells[:, first:stop]
    if categories:
        places, starts = map(list, zip(*categories, strict=True))
        begins = np.arange(len(cells))[:, None] * at + starts
        out.reshape(-1)[cells[:, places].astype(np.int64) + begins] = 1.0


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Columns that stand side by side in cells and in inputs: first, stop, the first's input."""
    numbered = enumerate(places)
    for _, run in groupby(numbered, lambda each: (each[1][0] - each[0], each[1][1] - each[0])):
        (_, (first, start)), *more = run
        yield first, first + len(more) + 1, start


def _fill_in(out: Array, cells: Array, column: Column) -> None:
    missing = np.isnan(cells)
    if column.indicator:
        out[:, -1] = missing
    if column.fill is not None and missing.any():
        fill = column.fill
        value = column.categories.index(str(fill)) if column.categories else fill
        cells = np.where(missing, value, cells)
        missing[:] = False
    if column.categories is None:
        out[:, 0] = cells if column.first_day is None else cells - column.first_day
        return
    known = np.flatnonzero(~missing & (cells >= 0))
    out[known, cells[known].astype(np.int64)] = 1.0
    out[missing, : len(column.categories)] = np.nan


# ── which columns are inputs ────────────────────────────────────────────────────────────

_SHOWN_NAMES = 50


def check_columns(
    path: str,
    header: list[str],
    features: list[str] | None,
    wanted: list[str],
    categorical: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    missing: Collection[str] = (),
    indicator: Sequence[str] = (),
) -> list[str]:
    """Names of the input columns: ``features``, or all but the targets ``wanted`` and ``exclude``.

    missing, indicator: columns that these settings name. Raises DataError for names that the
    header does not have, and ConfigError for a choice of columns that makes no sense.
    """
    there = set(header)
    if not wanted:
        raise ConfigError.of("target", "must name at least one column")
    of_cells = {"categorical": categorical, "keep": keep, "missing": missing}
    for name in (*wanted, *(features or ()), *exclude, *chain(*of_cells.values()), *indicator):
        if name not in there:
            near = nearest(name, header)
            hint = f"did you mean {near}?" if near else f"it has {_listed(header)}"
            alone = "; if it should have several, set delimiter" if len(header) == 1 else ""
            raise DataError(f"{path}: has no column {name!r}; {hint}{alone}")
    left_out = {*wanted, *exclude}
    chosen = [n for n in header if n not in left_out] if features is None else features
    if not chosen:
        raise DataError(f"{path}: has no input columns besides the target; at least one is needed")
    used = [*chosen, *wanted]
    counts = Counter(used)
    for name in used:
        if counts[name] > 1:
            raise DataError(f"{path}: column {name!r} is chosen twice; as feature or target, once")
    for key, names in of_cells.items():
        for name in names:
            if name not in counts:
                raise ConfigError.of(key, f"{name!r} is neither a feature nor the target")
    for name in indicator:
        if name not in chosen:
            raise ConfigError.of("indicator", f"{name!r} is no feature; remove it")
    for name in exclude:
        if name in counts:
            raise ConfigError.of("exclude", f"{name!r} is a feature or the target too; remove one")
    return chosen


def _listed(names: list[str]) -> str:
    """The names, or the first of many and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
