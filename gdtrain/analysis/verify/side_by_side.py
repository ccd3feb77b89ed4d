"""Is a run what a loop written by hand would have made of it: both, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.analysis.verify.finite_differences import relative_error
from gdtrain.data.batch import Batch
from gdtrain.errors import NonFiniteError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.placement.device import autocast
from gdtrain.training.safety.checks import needs_closure
from gdtrain.training.state.snapshot import parameter_names
from gdtrain.training.trainer import Trainer

# Relative, of a tensor's 2-norm, where sums are added up in another order than by hand.
TOLERANCES = {torch.float64: 1e-9}
TOLERANCE = 1e-4  # of other types
# Rungs of the trainer that say themselves what an update is.
_RUNGS = ("fit", "_run_epoch", "train_step", "batch_gradient", "finish_gradient", "after_update")


@dataclass(frozen=True)
class SideBySide:
    """How a run compares with the plain loop; ``str()`` says it in a sentence or two.

    updates: how many were compared. engine: that made gdtrain's. tensors: compared after the
    last of them. tolerance: 0.0 where both must have the same bits. error: the largest relative
    difference of a tensor. first, name: the first update after which they differ, and the first
    tensor that does; None if they agree. skipped: why there is nothing to compare, or "".
    """

    updates: int = 0
    engine: str = "eager"
    tensors: int = 0
    tolerance: float = 0.0
    error: float = 0.0
    first: int | None = None
    name: str | None = None
    skipped: str = ""

    @property
    def holds(self) -> bool:
        """Whether no difference was found."""
        return self.first is None

    def __str__(self) -> str:
        if self.skipped:
            return f"A plain PyTorch loop was not compared: {self.skipped}"
        made = f"{self.updates:,} update{'s' * (self.updates != 1)}"
        head = f"{made} by gdtrain (engine {self.engine}) and by a plain PyTorch loop: "
        if self.first is None:
            same = f"all {self.tensors} tensors of model, loss and optimizer "
            if not self.tolerance:
                return head + same + "have the same bits"
            bound = f"{self.error:.1e}, tolerance {self.tolerance:.0e}"
            return head + same + f"agree (largest relative error {bound})"
        return head + (
            f"DIFFERENT: update {self.first:,} is the first after which they differ; the first "
            f"tensor that does is {self.name} (relative error {self.error:.1e}, tolerance "
            f"{self.tolerance:.0e})"
        )


def side_by_side(make: Callable[[], Trainer], updates: int, num_epochs: int) -> SideBySide:
    """Train as ``fit`` does and as a plain PyTorch loop does, and compare the weights.

    make: gives a new trainer each time, seeded alike and not trained yet; the plain loop takes
    model, loss, optimizer, schedule and the loader's batches out of one of them, and
    ``compute_loss`` where that is somebody's own. updates: how many to make, or all of
    ``num_epochs`` epochs where there are fewer; of a run in phases, of the first.

    Under the eager engine on whole batches both must have the same bits; microbatches and
    compiled engines add up in another order, so there the tolerance is relative. If they differ,
    the first update that does is found by training again, half as far each time.
    """
    first = make()
    if reason := _obstacle(first):
        return SideBySide(skipped=reason)
    if first.phases is not None:
        num_epochs = first.phases.end(0, num_epochs)
    del first
    seen = _compare(make, updates, num_epochs)
    if seen.holds:
        return seen
    agreed, differs = 0, seen
    while differs.updates - agreed > 1:
        middle = _compare(make, (agreed + differs.updates) // 2, num_epochs)
        if middle.holds:
            agreed = middle.updates
        else:
            differs = middle
    return replace(differs, updates=seen.updates)


def plain_loop(trainer: Trainer) -> Iterator[None]:
    """The loop that a careful person would write, with the trainer's parts; yields after an update.

    Of the trainer it uses what holds them, and ``compute_loss`` and ``forward`` where these are
    somebody's own: nothing that makes or counts an update.
    """
    model, loss, optimizer = trainer.model, trainer.loss, trainer.updater
    schedulers, per = trainer.schedule.schedulers, trainer.schedule.per
    model.train()
    for epoch in count():
        for batch in _batches(trainer, epoch):

            def gradient(batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()
                value = _loss(trainer, batch)
                value.backward()  # type: ignore[no-untyped-call]
                _clip(trainer, model, loss)
                return value.detach()

            if needs_closure(type(optimizer).step):
                optimizer.step(gradient)  # type: ignore[arg-type]
            else:
                gradient()
                optimizer.step()
            trainer.progress.step += 1  # which an own compute_loss may look at
            if per == "step":
                _step(schedulers)
            yield
        if per == "epoch":
            _step(schedulers)


def _step(schedulers: Mapping[str, Any]) -> None:
    for scheduler in schedulers.values():
        scheduler.step()


def _batches(trainer: Trainer, epoch: int) -> Iterator[Batch]:
    """The loader's batches of an epoch, in copies: the model may work in place."""
    assert trainer.loader is not None
    for batch in trainer.read(trainer.loader, trainer.loader.plan(epoch)):
        yield batch.copy()


def _loss(trainer: Trainer, batch: Batch) -> Tensor:
    with autocast(trainer.precision, trainer.device):
        if trainer.has_own("compute_loss", "forward"):
            return scalar(trainer.compute_loss(batch))
        inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
        assert trainer.loss is not None
        return trainer.loss(trainer.model(*inputs), batch.targets)


def _clip(trainer: Trainer, model: nn.Module, loss: Any) -> None:
    everything = [*model.parameters()]
    if isinstance(loss, nn.Module):
        everything += loss.parameters()
    bounds = (
        (nn.utils.clip_grad_value_, trainer.clip_grad_value),
        (nn.utils.clip_grad_norm_, trainer.clip_grad_norm),
    )
    for clip, bound in bounds:
        if isinstance(bound, Mapping):
            for name, of_one in bound.items():
                groups = trainer.optimizers[name].param_groups
                clip([p for group in groups for p in group["params"]], of_one)
        elif bound is not None:
            clip(everything, bound)


# ── the comparison ──────────────────────────────────────────────────────────────────────────


class _StopAfter(Callback):
    def __init__(self, updates: int) -> None:
        super().__init__(every_n_steps=updates)

    def on_safe_point(self, trainer: Trainer) -> None:
        trainer.stop("enough updates to compare")


def _compare(make: Callable[[], Trainer], updates: int, num_epochs: int) -> SideBySide:
    """Both after so many updates, each from its start."""
    trainer = make()
    trainer.callbacks.append(_StopAfter(updates))
    with suppress(NonFiniteError):  # with weights as they were before: as far as that goes
        trainer.fit(num_epochs)
    made, engine, got = trainer.progress.step, trainer.engine.name, _state(trainer)
    hand = make()
    drawn = torch.get_rng_state()
    for _ in islice(plain_loop(hand), made):
        pass
    expected, tolerance = _state(hand), _tolerance(trainer)
    if tolerance and not torch.equal(drawn, torch.get_rng_state()):
        return SideBySide(
            skipped="the model or the loss draws random numbers, and microbatches and compiled "
            "engines draw others than one pass"
        )
    worst = 0.0
    for name in dict.fromkeys([*expected, *got]):
        error = _error(got.get(name), expected.get(name))
        if error > tolerance:
            return SideBySide(made, engine, len(expected), tolerance, error, made, name)
        worst = max(worst, error)
    return SideBySide(made, engine, len(expected), tolerance, worst)


def _state(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of every tensor of model, loss and optimizer, by name."""
    found = dict(trainer.model.state_dict())
    if isinstance(trainer.loss, nn.Module):
        found |= {f"loss/{name}": value for name, value in trainer.loss.state_dict().items()}
    names = parameter_names(trainer)
    for parameter, kept in trainer.updater.state.items():
        found |= {f"{key} of {names[parameter]}": value for key, value in kept.items()}
    return {k: v.detach().clone() for k, v in found.items() if isinstance(v, Tensor)}


def _error(got: Tensor | None, expected: Tensor | None) -> float:
    """Relative, 0 for the same bits alone; infinite where one is missing or of another shape."""
    if got is None or expected is None:
        return math.inf
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if torch.equal(got, expected):
        return 0.0
    if not (got.is_floating_point() or got.is_complex()):
        return math.inf
    one, other = (t.to(torch.promote_types(t.dtype, torch.float64)) for t in (got, expected))
    same = (one == other) | (one.isnan() & other.isnan())
    if bool(same.all()):
        return 0.0
    error = relative_error(one[~same], other[~same])
    return math.inf if math.isnan(error) else max(error, math.ulp(0.0))


def _tolerance(trainer: Trainer) -> float:
    if trainer.engine.name == "eager" and not trainer.microbatches:
        return 0.0
    return TOLERANCES.get(trainer.dtype, TOLERANCE)


def _obstacle(trainer: Trainer) -> str:
    """Why no plain loop can be compared with this trainer's run, or ""."""
    if trainer.loader is None or trainer.loader.is_stream:
        return "a stream is read once"
    if trainer.world.size > 1 or trainer.is_sharded:
        return "several processes train together; start it without torchrun"
    if own := [rung for rung in _RUNGS if trainer.has_own(rung)]:
        return f"{type(trainer).__name__} says itself what an update is ({', '.join(own)})"
    for callback in trainer.callbacks:
        if callback.listens_to("on_gradient"):
            return f"{type(callback).__name__} corrects the gradient of every update"
    if trainer.schedule.by_metric:
        return "ReduceLROnPlateau follows what is evaluated in between"
    if trainer.microbatches and any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        for layer in trainer.model.modules()
    ):
        return "microbatch_allow accepts other gradients than those of whole batches"
    return ""
