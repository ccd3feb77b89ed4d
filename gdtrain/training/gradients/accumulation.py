"""The gradient of a batch's loss as the sum over its parts, each weighted by its share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from operator import truediv
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gdtrain.data.batch import Batch
from gdtrain.errors import ModelError
from gdtrain.training.descent import NO_GRADIENT, backward
from gdtrain.training.gradients.loss_weights import adds_up, weights_of
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.exchange import Exchange
from gdtrain.training.run import Run

# What a part counts for, which may be a number that other processes have a part in.
Share = Callable[[], float | Tensor]


class Added(NamedTuple):
    """What a process has added to ``.grad``.

    loss: its share of the batch's loss, [], detached. weight: what the batch's loss was divided by,
    on all processes; None if it is a sum, or is not known. has_graph: whether a trained parameter
    has a part in this share of the loss; in the batch's, one has if it has in any share.
    """

    loss: Tensor
    weight: float | Tensor | None = None
    has_graph: bool = True


def add_parts(
    trainer: Run,
    parts: Sequence[Batch],
    world: World,
    accumulator: Accumulator | None = None,
    exchange: Exchange | None = None,
) -> Added:
    """Add Σ_p (N_p / N) ∂J_p over this process's parts to ``.grad``, one after the other.

    N_p is what the loss J_p of a part is divided by (see
    :func:`gdtrain.training.gradients.loss_weights.weights_of`) and N the sum over all parts of all
    processes; the shares of sums are 1. A part of weight 0, whose targets are all ignored, is
    computed for what it does to the model, and adds zeros; if all are such, they count alike: the
    loss is then 0/0, as it is in one pass. Models that leave layers out for some samples may have
    parts in which no trained parameter has a part. exchange: is given the gradients of the last
    pass as they come.
    """
    shares, total = _shares(trainer, parts, world)
    last = max((n for n, share in enumerate(shares) if share is not None), default=-1)

    def work() -> tuple[Tensor, bool]:
        result, has_graph = torch.zeros((), device=trainer.device), False
        for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
            value = scalar(trainer.batch_loss(part))
            has_graph |= value.requires_grad
            if share is None:
                trainer.terms.passed = {}
                _add_zeros(value, trained(trainer.updater))
                continue
            weight = share()
            if trainer.terms.passed:
                trainer.terms.add(weight.to(value) if isinstance(weight, Tensor) else weight)
            value = value * (weight.to(value) if isinstance(weight, Tensor) else weight)
            scaled = value if trainer.loss_scale is None else trainer.loss_scale.of(value)
            sends = exchange is not None and number == last
            with exchange.during() if exchange is not None and sends else nullcontext():
                if scaled.requires_grad:
                    backward(scaled)
            result = result.to(value) + value.detach()
            if accumulator is not None:
                accumulator.take()
        return result, has_graph

    loss, has_graph = trainer.microbatches.attempt(work)
    if not has_graph and world.size == 1:
        raise ModelError(NO_GRADIENT)
    return Added(loss, total(), has_graph)


def _add_zeros(value: Tensor, parameters: list[Tensor]) -> None:
    """The gradient of a part of weight 0, whose own loss is 0/0.

    Optimizers tell zeros, on which momentum and weight decay go on, from no gradient.
    """
    held = [(p, p.grad) for p in parameters if p.is_leaf]
    if not held or not value.requires_grad:
        return
    for parameter, _ in held:
        parameter.grad = None
    torch.autograd.backward(value * 0.0, inputs=[p for p, _ in held])
    for parameter, before in held:
        if before is not None:
            parameter.grad = before
        elif parameter.grad is not None:
            parameter.grad = torch.zeros_like(parameter.grad)


def _shares(
    trainer: Run, parts: Sequence[Batch], world: World
) -> tuple[Sequence[Share | None], Callable[[], float | Tensor | None]]:
    """N_p / N of each part, None for those that count for nothing; and N.

    To be asked for when they are used: of several processes, N is added up while the first pass
    is made.
    """
    if adds_up(trainer):
        return [lambda: 1.0] * len(parts), lambda: None
    weights = weights_of(trainer, parts)
    if world.size == 1:
        total = sum(weights)
        if not total:
            return [lambda: 1.0 / len(parts)] * len(parts), lambda: total
        return [
            partial(truediv, weight, total) if weight else None for weight in weights
        ], lambda: total
    # Of several processes the sums stay on the device, where reading them would wait for it.
    sums = torch.tensor([sum(weights), len(parts)], dtype=torch.float64, device=trainer.device)
    wait = cache(world.sum_later(sums))

    def share(weight: float) -> Tensor:
        wait()
        return torch.where(sums[0] != 0, weight / sums[0], 1.0 / sums[1])

    def summed() -> Tensor:
        wait()
        return sums[0]

    some_count = not all(weights) and float(summed())
    return [
        None if some_count and not weight else partial(share, weight) for weight in weights
    ], summed


class Accumulator:
    """Sums the gradients of one batch's parts in float64, then gives them back as ``.grad``."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._sums: dict[Tensor, Tensor] = {}

    def take(self) -> None:
        """Move ``.grad`` of every parameter into the sums."""
        for parameter in trained(self.optimizer):
            if parameter.grad is None:
                continue
            wide = torch.promote_types(parameter.grad.dtype, torch.float64)
            gradient, held = parameter.grad.to(wide), self._sums.get(parameter)
            self._sums[parameter] = gradient if held is None else held.add_(gradient)
            parameter.grad = None

    def give_back(self) -> None:
        """Set ``.grad`` to the sums."""
        for parameter, held in self._sums.items():
            parameter.grad = held.to(parameter.dtype)


def trained(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that the optimizer holds and that require a gradient, as of now."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def clip(parameters: Iterable[Tensor], norm: float | None, value: float | None) -> None:
    """Bound each element of ``.grad`` to ±value, then the 2-norm of all of it to ``norm``."""
    held = list(parameters)
    if value is not None:
        nn.utils.clip_grad_value_(held, value)
    if norm is not None:
        nn.utils.clip_grad_norm_(held, norm)


def clip_gradient(trainer: Run, name: str | None = None) -> None:
    """Clip as the trainer is set to. name: of the optimizer whose gradient it is, of several."""
    norm, value = trainer.clip_grad_norm, trainer.clip_grad_value
    apart = isinstance(norm, Mapping) or isinstance(value, Mapping)
    for of in [name] if name else [*trainer.optimizers] if apart else [""]:
        bounds = [b.get(of) if isinstance(b, Mapping) else b for b in (norm, value)]
        held = trained(trainer.optimizers[of]) if of else _clipped(trainer)
        clip(held, *bounds)


def _clipped(trainer: Run) -> list[Tensor]:
    """Parameters in the order in which a norm is added up: model, loss, then any others.

    The order decides the last bits, and everybody clips ``model.parameters()``.
    """
    held = [p for group in trainer.updater.param_groups for p in group["params"]]
    of_loss = trainer.loss.parameters() if isinstance(trainer.loss, nn.Module) else ()
    return list(dict.fromkeys([*trainer.model.parameters(), *of_loss, *held]))


def scalar(value: Tensor | Mapping[str, Any]) -> Tensor:
    """A batch's loss, alone or among its terms. Raises ModelError if it is not one number."""
    loss: Tensor = value["loss"] if isinstance(value, Mapping) else value
    if loss.ndim:
        raise ModelError(
            f"loss: must be one number per batch, got shape {list(loss.shape)}; "
            "use a loss with reduction='mean'"
        )
    return loss
