"""What must be true before training goes on: parameters, shapes, label ranges, same data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain.data.loaders import Loader
from gdtrain.errors import ConfigError, DataError, ModelError
from gdtrain.training.distributed import World

# Losses that compare output and target number by number, and would broadcast them.
ELEMENTWISE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.MultiLabelMarginLoss,
)
_ELEMENTWISE_FUNCTIONS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.kl_div,
    F.soft_margin_loss,
    F.hinge_embedding_loss,
)
_CLASS_INDEX = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_CLASS_INDEX_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)


def is_elementwise(loss: Any) -> bool:
    """Whether the loss needs output and targets of one shape."""
    return isinstance(loss, ELEMENTWISE) or loss in _ELEMENTWISE_FUNCTIONS


def check_loader(name: str, loader: Any) -> None:
    """Raise ModelError for data, or somebody else's loader, in the place of one of ours."""
    if not isinstance(loader, Loader):
        raise ModelError(
            f"{name}: must be a BatchLoader, SampleLoader or MiniBatchLoader, got a "
            f"{type(loader).__name__}; give its data set to one of these"
        )


def check_parts(
    loss: Any, optimizer: Any, loader: Any, *, needs_loss: bool
) -> torch.optim.Optimizer:
    """Raise ModelError for a part of a Trainer that is missing or of the wrong kind."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ModelError(f"optimizer: must be a torch.optim optimizer, got {optimizer!r}")
    if loader is not None:
        check_loader("loader", loader)
    if loss is None and needs_loss:
        raise ModelError("loss: missing; give a loss, or override compute_loss")
    return optimizer


def check_arguments(**arguments: tuple[Any, float | tuple[str, ...]]) -> None:
    """Raise ConfigError for a value that is not among its choices, or not over its bound.

    arguments: name -> (value, choices or exclusive lower bound); None passes any bound.
    """
    for key, (value, allowed) in arguments.items():
        if isinstance(allowed, tuple):
            if value not in allowed:
                raise ConfigError.of(key, f"must be one of {', '.join(allowed)}; got {value!r}")
        elif value is not None and not value > allowed:
            raise ConfigError.of(key, f"must be > {allowed:g}, got {value}")


def check_parameters(
    model: nn.Module, loss: Any, optimizer: torch.optim.Optimizer, own_code: bool
) -> None:
    """Raise ModelError unless the optimizer holds exactly what is to be trained.

    Parameters of the loss may be trained too, and any others by a trainer with a loss or an update
    of its own (own_code); parameters with ``requires_grad=False`` need not be held.
    """
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ModelError(
            "model: has no parameters to train; give it at least one with requires_grad=True"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for key, name in trained.items() if key not in held]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"optimizer: does not hold {len(missing)} of the model's parameters ({shown}); "
            "give it model.parameters(), or set requires_grad_(False) on those to keep"
        )
    own = {id(p) for p in model.parameters()}
    if isinstance(loss, nn.Module):
        own |= {id(p) for p in loss.parameters()}
    foreign = len(held - own)
    if foreign and not own_code:
        raise ModelError(
            f"optimizer: holds {foreign} parameters that are not the model's; "
            "make it from the parameters of the model that is given to the Trainer"
        )


class OutputCheck:
    """Raises ModelError if output and targets do not fit each other and the loss.

    Shapes are looked at in every batch, labels of the whole data set with the first one.
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self._elementwise = is_elementwise(loss)
        self._labels_checked = False

    def __call__(self, output: Any, targets: Any, loader: Loader | None) -> None:
        if self._elementwise:
            check_same_shape(output, targets)
        elif not self._labels_checked:
            known = loader.samples.targets if loader is not None else None
            check_classes(self.loss, output, targets, known)
            self._labels_checked = True


def check_same_shape(output: Tensor, targets: Any) -> None:
    """Raise ModelError if the loss would broadcast output and targets."""
    if isinstance(targets, Tensor) and output.shape == targets.shape:
        return
    said = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
    raise ModelError(
        f"loss: output has shape {list(output.shape)} and targets {said}; they must be the same, "
        "or the loss would be of their broadcast; reshape one of them"
    )


def check_classes(loss: Any, output: Tensor, targets: Any, all_targets: Tensor | None) -> None:
    """Raise ModelError if a loss over class indices can't take these targets.

    output: [B, C, …]; targets: [B, …] int64 in 0 … C - 1, ``ignore_index`` apart.
    all_targets: those of the whole data set where they are in memory, so that a bad label is
    found before the first update.
    """
    if not (isinstance(loss, _CLASS_INDEX) or loss in _CLASS_INDEX_FUNCTIONS):
        return
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        if isinstance(targets, Tensor) and targets.shape == output.shape:
            return  # class probabilities
        raise ModelError(
            f"loss: targets must be int64 class indices or probabilities of shape "
            f"{list(output.shape)}, got {_described(targets)}"
        )
    expected = [output.shape[0], *output.shape[2:]]
    if output.ndim < 2 or list(targets.shape) != expected:
        raise ModelError(
            f"loss: output has shape {list(output.shape)} and targets {list(targets.shape)}; "
            "class indices need outputs [B, C, …] and targets [B, …]"
        )
    if targets.dtype != torch.int64:
        raise ModelError(f"loss: class indices must be int64, got {targets.dtype}; use .long()")
    labels = targets if all_targets is None else all_targets
    counted = labels[labels != getattr(loss, "ignore_index", -100)]
    if counted.numel() == 0:
        return
    low, high, classes = int(counted.min()), int(counted.max()), output.shape[1]
    if low < 0 or high >= classes:
        raise ModelError(
            f"targets: label {low if low < 0 else high} is out of range; "
            f"the model has {classes} outputs, so labels must be in 0 … {classes - 1}"
        )


def check_same_data(world: World, loader: Loader) -> None:
    """Raise DataError on every rank if one of them was given other data than rank 0."""
    if world.size == 1:
        return
    seen = world.gather([loader.num_samples, loader.outline(0).batch_size, loader.samples.digest()])
    other = [rank for rank, theirs in enumerate(seen) if theirs != seen[0]]
    if other:
        names = ("samples", "batch_size", "data digest")
        said = "; ".join(
            f"{name} {mine} on rank 0, {theirs} on rank {other[0]}"
            for name, mine, theirs in zip(names, seen[0], seen[other[0]], strict=True)
            if mine != theirs
        )
        raise DataError(f"the processes see different data: {said}; give all of them the same")


def check_epochs(num_epochs: Any) -> int:
    """The number of epochs as an int. Raises ConfigError unless it is a whole number >= 0."""
    number = num_epochs.item() if isinstance(num_epochs, np.integer) else num_epochs
    if type(number) is not int or number < 0:
        raise ConfigError.of("num_epochs", f"must be a whole number >= 0, got {num_epochs!r}")
    return number


@cache
def needs_closure(step: Callable[..., Any]) -> bool:
    """Whether an optimizer with this ``step`` evaluates the loss by itself, as L-BFGS does."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _described(targets: Any) -> str:
    if not isinstance(targets, Tensor):
        return type(targets).__name__
    return f"{targets.dtype} of shape {list(targets.shape)}"


def explain_batch_of_one(error: ValueError) -> None:
    """Raise ModelError in place of what BatchNorm says of a single sample."""
    if "more than 1 value per channel" in str(error):
        raise ModelError(
            "model: a batch of one sample reached BatchNorm, which has no statistics of one; "
            "use GroupNorm or LayerNorm, another batch_size, or drop_last"
        ) from error
