"""Loaded data and what is done to it before training: labels, split, standardisation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from gdtrain.data.orders.order import generator
from gdtrain.data.sources import CHECKED_ROWS, as_tensor, check_finite
from gdtrain.data.tables.column import Column
from gdtrain.errors import DataError

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
        fields = asdict(self)
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
        return torch.arange(num_samples), torch.arange(0)
    count = max(1, round(validation_fraction * num_samples))
    if count >= num_samples:
        way = "use a smaller fraction" if num_samples > 1 else "leave it out, or give more samples"
        raise DataError(
            f"no samples to train on: {_SETTINGS[part]} {validation_fraction:g} takes "
            f"{count} of {num_samples}; {way}"
        )
    if not shuffle:
        everything = torch.arange(num_samples)
        return everything[:-count], everything[-count:]
    shuffled = torch.randperm(num_samples, generator=generator(seed, _KEYS[part]))
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
    places = torch.cat([(torch.arange(int(m)) + 0.5) / int(m) for m in counts])
    return order[torch.argsort(places, stable=True)]


def prepare(
    data: LoadedData,
    parts: tuple[Tensor, Tensor],
    *,
    standardize: bool,
    standardize_targets: bool,
    shape: list[int] | None,
    num_outputs: int,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None, Preprocessing]:
    """Cut the data in two and standardise it by the statistics of the training part.

    parts: which samples train and which validate, as :func:`split` gives them.
    Returns (training inputs, targets), the same for validation or None, and what was done.
    Raises DataError for values that are not finite, or a shape that does not hold the inputs.
    """
    inputs, targets = data.inputs, data.targets
    check_finite(inputs, "inputs")
    check_finite(targets, "targets")
    train, validation = parts
    input_shape = sample_shape(list(inputs.shape[1:]), shape)
    done = Preprocessing(input_shape, num_outputs, data.class_names, data.columns)
    if standardize:
        mean, std = _statistics(_rows(inputs, train), "inputs")
        done = replace(done, mean=mean, std=std)
    if standardize_targets:
        mean, std = _statistics(_rows(targets, train), "targets")
        done = replace(done, target_mean=mean, target_std=std)
        targets = standardized(targets, mean, std)
    ready = _in_parts(done, inputs) if standardize else done.apply(inputs)
    held_out = (ready[validation], targets[validation]) if len(validation) else None
    return (_rows(ready, train), _rows(targets, train)), held_out, done


def _in_parts(done: Preprocessing, inputs: Tensor) -> Tensor:
    """``done.apply(inputs)`` without further copies of all rows in between."""
    ready = torch.empty(0)
    for start in range(0, len(inputs), CHECKED_ROWS):
        part = done.apply(inputs[start : start + CHECKED_ROWS])
        if not start:
            ready = part.new_empty((len(inputs), *part.shape[1:]))
        ready[start : start + CHECKED_ROWS] = part
    return ready


def _rows(tensor: Tensor, chosen: Tensor) -> Tensor:
    """The chosen rows, rising; all of them are no copy."""
    return tensor if len(chosen) == len(tensor) else tensor[chosen]


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
