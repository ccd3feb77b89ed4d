"""Metrics of outputs and targets: means over samples, which stream, or functions of all of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from gdtrain.data.rows import join
from gdtrain.data.tree import tensors_of
from gdtrain.errors import ConfigError
from gdtrain.registry import find, index, names, register_metric
from gdtrain.settings import LossSettings, OptionsOnly
from gdtrain.training.losses.known_means import of_torch

Function = Callable[[Any, Any], Any]
Piece = tuple[Any, Any]  # outputs and targets of a part


@runtime_checkable
class Streaming(Protocol):
    """A metric that is given outputs and targets part by part, as those of torchmetrics are."""

    def update(self, output: Any, targets: Any) -> Any: ...

    def compute(self) -> Any: ...

    def reset(self) -> Any: ...


class MeanOverSamples:
    """A metric that is a mean over samples, and so can be taken of any part of them.

    function: ``(output, targets) -> mean over these samples``.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, output: Any, targets: Any) -> Any:
        return self.function(output, targets)

    def __reduce__(self) -> Any:
        """By name where it stands in a module, where the function's name is this object's."""
        name = getattr(self, "__qualname__", "")
        if getattr(sys.modules.get(self.__module__), name, None) is self:
            return name
        return type(self), (self.function,)

    def part(self, output: Any, targets: Any, size: int, loss: Any) -> tuple[Any, Any]:
        """Its value for ``size`` samples, and what that value counts for in the mean.

        loss: the trainer's, which may say that some targets do not count.
        """
        return self(output, targets), size


Metric = Function | MeanOverSamples | Streaming


def mean_over_samples(function: Function) -> MeanOverSamples:
    """Marks a metric ``(output, targets) -> number`` as a mean over samples.

    The metric is then computed part by part, weighted by the samples, and no outputs have to be
    kept; any other function is called once, on all outputs and targets. Use it for a mean with
    equal weights for all samples, such as an error; not for a ratio such as F1, or a median. It
    also works as a decorator.

    >>> import torch
    >>> from gdtrain import mean_over_samples
    >>> @mean_over_samples
    ... def error(outputs, targets):
    ...     return (outputs - targets).abs().mean()
    >>> error(torch.ones(2, 1), torch.zeros(2, 1))
    tensor(1.)
    """
    return MeanOverSamples(function)


class _Accuracy(MeanOverSamples):
    """Leaves out the targets that the loss ignores."""

    def part(self, output: Any, targets: Any, size: int, loss: Any) -> tuple[Any, Any]:
        if targets.shape == output.shape:
            return self(output, targets), size
        known = of_torch(loss)
        ignore_index = -100 if known is None else known.setting("ignore_index", -100)
        counted = targets != ignore_index
        return _share_right(output, targets, counted), counted.sum()


@_Accuracy
def accuracy(output: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose predicted class is the target.

    output: [B, C, …] scores with targets [B, …] class indices, or [B, …] logits of the class 1
    with targets of the same shape in 0..1, compared at one half. Class indices that the trainer's
    loss ignores are left out, -100 if it says of none.
    """
    if targets.shape == output.shape:
        return ((output > 0) == (targets > 0.5)).double().mean()
    return _share_right(output, targets, targets != -100)


def _share_right(output: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    right = (output.argmax(dim=1) == targets) & counted
    return right.sum().double() / counted.sum()


@mean_over_samples
def probability_accuracy(output: Tensor, targets: Tensor) -> Tensor:
    """Share of samples on the right side of one half: output and targets [B, …] in 0..1."""
    return ((output > 0.5) == (targets > 0.5)).double().mean()


@mean_over_samples
def mean_absolute_error(output: Tensor, targets: Tensor) -> Tensor:
    """mean |output - target|, in the units of the target."""
    return (output - targets).abs().mean()


class Accuracy(OptionsOnly):
    """Share of samples whose predicted class is the target."""


@register_metric("accuracy", Accuracy)
class AccuracyUnder:
    """Makes the accuracy that goes with a loss. Raises ConfigError if none does."""

    def __new__(cls, loss: LossSettings | None) -> Any:
        if loss is None or is_open(loss):
            return accuracy
        if "accuracy" not in loss.metrics:
            others = "; use mae, rmse or r2" if loss.targets.unit else ""
            raise ConfigError.of("metrics", f"accuracy is not defined for {loss.name}{others}")
        return probability_accuracy if "sigmoid" in loss.output_activations else accuracy


def is_open(loss: LossSettings) -> bool:
    """Whether it is not known what the loss takes, since the model computes it."""
    return loss.name == "model"


class Mae(OptionsOnly):
    """Mean absolute error, in the unit of the targets."""

    has_unit: ClassVar[bool] = True


@register_metric("mae", Mae)
class MeanAbsoluteErrorUnder:
    """Makes the mean absolute error, for a loss of errors. Raises ConfigError for others."""

    def __new__(cls, loss: LossSettings | None) -> Any:
        if loss is not None and not (is_open(loss) or loss.targets.unit or _may_be_of_errors(loss)):
            raise ConfigError.of("metrics", f"mae needs a loss of {', '.join(losses_of_errors())}")
        return mean_absolute_error


def _may_be_of_errors(loss: LossSettings) -> bool:
    """Whether a loss is its user's own, of numbers."""
    return loss.name not in index()["loss"] and not loss.targets.classes


def losses_of_errors() -> list[str]:
    """The names of the losses whose targets have a unit."""
    settings: dict[str, Any] = {n: find("loss", n).settings for n in names("loss")}
    return [name for name, its in settings.items() if getattr(its.targets, "unit", False)]


def check_metrics(metrics: Any) -> dict[str, Metric]:
    """The metrics by name. Raises ConfigError for anything else."""
    wanted = (
        "must be a list of names, such as ['mae'], or a mapping of names to functions (output, "
        "targets) -> number, or to objects with update, compute and reset"
    )
    if not isinstance(metrics, Mapping):
        raise ConfigError.of("metrics", f"{wanted}; got {metrics!r}")
    for name, metric in metrics.items():
        if name == "loss":
            raise ConfigError.of("metrics", "'loss' is the loss itself; name the metric otherwise")
        is_object = not isinstance(metric, type)
        if not is_object or not (callable(metric) or isinstance(metric, Streaming)):
            raise ConfigError.of("metrics", f"{wanted}; {name} is {metric!r}")
    return dict(metrics)


def streams(metric: Metric) -> bool:
    """Whether a metric is taken part by part."""
    return isinstance(metric, MeanOverSamples | Streaming)


def values_of(metrics: Mapping[str, Metric], pieces: Sequence[Piece], loss: Any) -> list[Any]:
    """Each metric of a batch, of which outputs and targets are given in parts.

    loss: the trainer's, which may say that some targets do not count.
    """
    sizes = [next(iter(tensors_of(piece))).shape[0] for piece in pieces]
    return [_value(metric, pieces, sizes, loss) for metric in metrics.values()]


def _value(metric: Metric, pieces: Sequence[Piece], sizes: Sequence[int], loss: Any) -> Any:
    if isinstance(metric, MeanOverSamples):
        found = [metric.part(*p, size, loss) for p, size in zip(pieces, sizes, strict=True)]
        if len(found) == 1:
            return found[0][0]
        weights = [weight for _, weight in found]
        return sum(v * w for v, w in found if w) / sum(weights)
    if isinstance(metric, Streaming):
        metric.reset()
        for piece in pieces:
            metric.update(*piece)
        value = metric.compute()
        metric.reset()
        return _only(value)
    outputs = join([output for output, _ in pieces], sizes, "outputs")
    targets = join([targets for _, targets in pieces], sizes, "targets")
    return metric(outputs, targets)


def _only(value: Any) -> Any:
    """The number of a metric; of several, the one that has no name of its own."""
    if not isinstance(value, Mapping):
        return value
    if "" not in value:
        names_ = ", ".join(list(value)[:3])
        message = f"one gives several numbers ({names_}, …), and there is room for one of a batch"
        raise ConfigError.of("metrics", f"{message}; choose another")
    return value[""]
