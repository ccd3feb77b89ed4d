"""Which layer, loss or parameter it is that breaks the identity of a batch with its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.analysis.verify import finite_differences
from gdtrain.analysis.verify.float64_copy import Float64Copy, pick
from gdtrain.data.batch import Batch
from gdtrain.data.tree import map_tensors
from gdtrain.training.gradients.loss_weights import adds_up, has_own_loss, in_two_passes, weight_of
from gdtrain.training.trainer import Trainer

# Outputs that differ by more than rounding can account for.
DIFFERENT = 1e-9

# One call of a layer: its name, and the first sample's part of its inputs and outputs.
Call = tuple[str, list[Tensor], list[Tensor]]


def findings(copied: Float64Copy, batch: Batch, gradient: Tensor, takes_parts: bool) -> list[str]:
    """What breaks the identity, a sentence each.

    gradient: in one pass, [P]. takes_parts: whether no part of the batch raises an error.
    """
    found = []
    if (name := random_layer(copied, batch)) is not None:
        found.append(
            f"{layer_name(copied, name)} draws random numbers in eval mode too, so no two passes "
            "are alike; give it a generator that starts again in each pass"
        )
    mixing = mixing_layer(copied, batch) if len(batch) > 1 else None
    if mixing is not None:
        found.append(
            f"{layer_name(copied, mixing)} mixes samples: in training mode a sample's output "
            "depends on the others of its batch; use a layer that looks at one sample at a time, "
            "such as GroupNorm or LayerNorm, or put it in eval mode"
        )
    # A loss of the user's own that runs the model itself would be blamed for what a layer does.
    apart = not has_own_loss(copied.trainer) or (takes_parts and mixing is None)
    weighted = not in_two_passes(copied.trainer, batch)
    if (
        len(batch) > 1
        and apart
        and weighted
        and (values := loss_is_no_mean(copied, batch)) is not None
    ):
        found.append(
            f"loss {loss_name(copied.trainer)} is not a mean over samples: {values[0]:.6g} for the "
            f"batch, but {values[1]:.6g} as the weighted mean of its parts; "
            "let loss_weight(batch) say what it is divided by"
        )
    if wrong := wrong_parameters(copied, batch, gradient):
        found.append(
            f"the gradient of {', '.join(wrong)} is not the derivative of the loss: look for a "
            "detach, a .data, or an autograd.Function whose backward is wrong"
        )
    if not found and not takes_parts:
        found.append("the model does not take parts of a batch: see above for the error")
    elif not found:
        found.append("no single layer or loss was found to break it; look at compute_loss")
    return found


def wrong_parameters(copied: Float64Copy, batch: Batch, gradient: Tensor) -> list[str]:
    """Names of the parameters whose gradient differs from finite differences in it alone."""
    draw = torch.Generator().manual_seed(0)
    wrong, start = [], 0
    for name, parameter in copied.trained.items():
        part = slice(start, start := start + parameter.numel())
        direction = torch.zeros_like(gradient)
        direction[part] = finite_differences.half_random(gradient[part], draw)
        error = finite_differences.differences_error(copied, batch, gradient, direction)
        if not error <= finite_differences.TOLERANCE:
            wrong.append(name.removeprefix("model."))
    return wrong


def mixing_layer(copied: Float64Copy, batch: Batch) -> str | None:
    """The first layer in which a sample's output depends on the other samples of its batch.

    Two batches of this one's size pass through the model that have their first sample in common
    and no other. The layer is the first, in the order in which layers finish, whose inputs are
    the same for that sample and whose outputs are not; ``""`` is the model's own forward.
    """
    others = torch.arange(1, len(batch), device="cpu")
    halves = [others[::2], others[1::2] if len(batch) > 2 else torch.tensor([0], device="cpu")]
    first, second = (pick(batch, _led_by_first(half, len(batch))) for half in halves)
    return _first_differing(_calls(copied, first), _calls(copied, second))


def random_layer(copied: Float64Copy, batch: Batch) -> str | None:
    """The first layer whose output depends on the state of the random number generators."""
    return _first_differing(_calls(copied, batch, seed=0), _calls(copied, batch, seed=1))


def loss_is_no_mean(copied: Float64Copy, batch: Batch) -> tuple[float, float] | None:
    """The loss of a batch and the weighted mean of its parts' losses, if these two differ.

    J(batch) = Σ_p (N_p / N) J(p) on outputs that are computed once; where ``compute_loss`` is
    overridden, on outputs that are computed for each part.
    """
    trainer = copied.trainer
    with torch.no_grad(), copied.passing():
        output = None if has_own_loss(trainer) else trainer.forward(batch.inputs)

        def value(rows: Tensor) -> float:
            part = pick(batch, rows)
            if output is None:
                return float(copied(part))
            return float(trainer.output_loss(map_tensors(output, lambda t: t[rows]), part.targets))

        rows = torch.arange(len(batch), device="cpu")
        halves = torch.split(rows, len(rows) // 2)
        parts = [(weight_of(trainer, pick(batch, half)), half) for half in halves]
        total = 1.0 if adds_up(trainer) else sum(weight for weight, _ in parts)
        whole = value(rows)
        mean = sum(weight / total * value(r) for weight, r in parts if weight)
    return (whole, mean) if abs(whole - mean) > DIFFERENT * abs(whole) else None


def loss_name(trainer: Trainer) -> str:
    """What the user calls the loss."""
    if has_own_loss(trainer):
        return f"{type(trainer).__name__}.compute_loss"
    loss: Any = trainer.loss
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)


def layer_name(copied: Float64Copy, name: str) -> str:
    """A layer's path in the model and its type; the path of the model itself is empty."""
    layer = dict(copied.model.named_modules())[name]
    return f"layer {name!r} ({type(layer).__name__})" if name else f"model ({type(layer).__name__})"


def _led_by_first(others: Tensor, size: int) -> Tensor:
    """Row 0 and then the others, over and over, [size]."""
    return torch.cat([torch.tensor([0], device="cpu"), others.repeat(size)[: size - 1]])


def _calls(copied: Float64Copy, batch: Batch, seed: int | None = None) -> list[Call]:
    """What each layer makes of the batch's first sample, in the order in which layers finish."""
    calls: list[Call] = []

    def note(name: str, _: nn.Module, inputs: Any, options: Any, outputs: Any) -> None:
        size = len(batch)
        calls.append((name, _first_sample((inputs, options), size), _first_sample(outputs, size)))

    with torch.no_grad(), copied.passing(), _hooked(copied.model, note):
        if seed is not None:
            torch.manual_seed(seed)
        copied(batch)
    return calls


@contextmanager
def _hooked(model: nn.Module, note: Any) -> Iterator[None]:
    handles = [
        layer.register_forward_hook(partial(note, name), with_kwargs=True)
        for name, layer in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_sample(tree: Any, size: int) -> list[Tensor]:
    """The first sample's part of each tensor, a copy, since a later layer may work in place.

    Its place is the first dimension of the batch's size (not always the first of all, as in
    recurrent layers), or a share of the rows where samples and steps are one dimension.
    """
    found: list[Tensor] = []

    def take(tensor: Tensor) -> Tensor:
        if size in tensor.shape:
            found.append(tensor.select(list(tensor.shape).index(size), 0).clone())
        elif tensor.ndim and tensor.shape[0] and tensor.shape[0] % size == 0:
            found.append(tensor[: tensor.shape[0] // size].clone())
        return tensor

    map_tensors(tree, take)
    return found


def _first_differing(first: list[Call], second: list[Call]) -> str | None:
    for (name, inputs, outputs), (other, inputs_2, outputs_2) in zip(first, second, strict=False):
        if name != other:
            return None  # the data decides which layers run; nothing can be said from here on
        if _same(inputs, inputs_2) and not _same(outputs, outputs_2):
            return name
    return None


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=DIFFERENT, atol=DIFFERENT, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )
