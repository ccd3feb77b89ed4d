"""The guard before every update: a loss or gradient that is not finite changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import map_tensors
from gdtrain.training.seeding import RngState

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class NotFinite(Exception):  # noqa: N818
    """An update would be made from a loss or gradient that is not finite; caught by engines."""


class Guard:
    """Looks at loss and gradient before each update, and undoes what the forward pass changed.

    On a CPU it looks at once: :meth:`check` raises :class:`NotFinite` and the engine calls
    :meth:`undo`. On a device, where looking would wait for it, ``check`` keeps a flag there;
    the engine asks :meth:`sound_steps` after the block and, of a block that is not sound, goes
    back to :meth:`snapshot` and makes its sound steps once more. Either way parameters, buffers,
    optimizer state and torch's generators end as they were before the bad update.

    deferred: look after the block, if that can be. own_step: the trainer's ``train_step`` is
    somebody's own and need not call ``check``; whatever it does ends in ``optimizer.step``.
    found: what ``check`` saw last: the loss, if it was asked of it, and the first bad gradient.
    """

    def __init__(self, trainer: Trainer, *, deferred: bool, own_step: bool) -> None:
        self.trainer = trainer
        self._may_defer = deferred
        self.found: tuple[float | None, str | None] = (None, None)
        held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        self._names = {p: name for name, p in trainer.model.named_parameters()}
        self._parameters = [p for p in held if p.requires_grad]
        self._buffers = [b for b in trainer.model.buffers() if b.numel()]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        self._one = torch.ones((), device=trainer.device)
        self._flag = torch.zeros((), device=trainer.device)
        self._flags: list[Tensor] = []
        self._rng = torch.get_rng_state()
        if own_step:
            trainer.optimizer.register_step_pre_hook(lambda *_: self.check())

    @property
    def deferred(self) -> bool:
        """Whether to look after the block; not if a callback keeps a state of its own."""
        return self._may_defer and not self.trainer.listeners.has("on_gradient")

    # ── before each update ──────────────────────────────────────────────────────────────────

    def before_step(self) -> None:
        """Keep what a forward pass changes: buffers and the state of torch's generator."""
        if self.deferred:
            return
        self._rng = torch.default_generator.get_state()
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def check(self, loss: Tensor | None = None) -> None:
        """Raise NotFinite if ``loss`` (shape []) or a gradient is not finite; or keep a flag."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.deferred:
            flag = torch.zeros_like(self._flag)
            look(gradients, flag, self._one)
            self._flags.append(flag)
            return
        self._flag.zero_()
        look(gradients, self._flag, self._one)
        value = None if loss is None else loss.item()
        bad = bool(self._flag.item()) or (value is not None and not math.isfinite(value))
        if self._must_agree():
            bad = self.trainer.world.any(bad)
        if bad:
            named = ((self._names.get(p, "the loss's parameter"), p.grad) for p in self._parameters)
            self.found = (value, first_bad(named))
            raise NotFinite

    def undo(self) -> None:
        """Put back buffers and torch's generator as they were at :meth:`before_step`."""
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)
        torch.set_rng_state(self._rng)
        self.trainer.optimizer.zero_grad()

    def protect(self, update: Callable[[], object]) -> None:
        """Make an update that moves the weights while it looks for a step (L-BFGS), or none.

        Raises NotFinite, with weights and optimizer as before, if it leaves weights or state
        that are not finite.
        """
        before = Snapshot(self.trainer)
        try:
            update()
            held = [*self._parameters, *tensors_in(dict(self.trainer.optimizer.state))]
            if not all_finite(held):
                raise NotFinite
        except NotFinite:
            before.restore()
            raise

    def _must_agree(self) -> bool:
        """Whether one rank may see what the others do not.

        Ranks that hold the whole model share one gradient and one loss; only a callback that
        changes the gradient afterwards, or a split model, makes them differ.
        """
        trainer = self.trainer
        if trainer.world.size == 1:
            return False
        return trainer.is_sharded or trainer.listeners.see_updates

    # ── after a block whose flags stayed on the device ──────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """What to come back to if the block that follows is not sound."""
        self._flags.clear()
        return Snapshot(self.trainer)

    def sound_steps(self, losses: Sequence[Tensor]) -> int:
        """How many steps of the block came before the first loss or gradient that is not finite.

        The one moment at which the device is waited for.
        """
        if not losses:
            return 0
        bad = ~torch.isfinite(torch.stack(list(losses)))
        if len(self._flags) >= len(losses):  # with clipping, each step has two
            bad |= torch.stack(self._flags).view(len(losses), -1).any(dim=1)
        if self.trainer.world.size > 1:
            bad = self.trainer.world.sum(bad.float()) > 0
        wrong = bad.nonzero()
        if not len(wrong):
            return len(losses)
        self.found = (float(losses[int(wrong[0])]), None)
        return int(wrong[0])


class Snapshot:
    """Copies of everything that updates change: weights, buffers, optimizer, schedule, RNGs."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        model = trainer.model
        loss = [trainer.loss] if isinstance(trainer.loss, nn.Module) else []
        self._live = [t for m in (model, *loss) for t in (*m.parameters(), *m.buffers())]
        self._copies = [tensor.detach().clone() for tensor in self._live]
        optimizer = trainer.optimizer
        self._state = {p: map_tensors(dict(s), torch.clone) for p, s in optimizer.state.items()}
        self._groups = [
            {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups
        ]
        scheduler = trainer.schedule.scheduler
        self._schedule = dict(scheduler.state_dict()) if scheduler else {}
        self._rng = RngState.take(trainer.device)
        self._lr = trainer.lr

    def restore(self) -> None:
        """Put all of it back, bit for bit."""
        trainer = self.trainer
        with torch.no_grad():
            for live, copy in zip(self._live, self._copies, strict=True):
                live.copy_(copy)
        optimizer = trainer.optimizer
        optimizer.state.clear()
        optimizer.state.update(self._state)
        for group, kept in zip(optimizer.param_groups, self._groups, strict=True):
            group.update(kept)
        if trainer.schedule.scheduler:
            trainer.schedule.scheduler.load_state_dict(self._schedule)
        self._rng.restore(trainer.device)
        trainer.lr = self._lr
        optimizer.zero_grad()


def look(tensors: list[Tensor], flag: Tensor, one: Tensor) -> None:
    """Set ``flag`` to 1 if a value is NaN or infinite, without waiting for a device.

    The kernel is the one of torch.amp's gradient scaler: a single call for all tensors, which
    also multiplies them by ``one``, and so leaves their bits.
    """
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    plain: list[Tensor] = []
    other: list[Tensor] = []
    for tensor in local:
        # The kernel takes dense real numbers, and mps has had it in some releases only.
        fits = tensor.layout == torch.strided and tensor.is_floating_point()
        (plain if fits and tensor.device.type != "mps" else other).append(tensor)
    if plain:
        torch._amp_foreach_non_finite_check_and_unscale_(plain, flag, one)
    for tensor in other:
        values = tensor.coalesce().values() if tensor.is_sparse else tensor
        flag.logical_or_(~torch.isfinite(values).all())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number of every tensor is finite."""
    return first_bad(("", tensor) for tensor in tensors) is None


def first_bad(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    for name, tensor in named:
        if tensor is None:
            continue
        local = tensor.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        values = local.coalesce().values() if local.is_sparse else local
        if not bool(torch.isfinite(values).all()):
            return name
    return None


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested mappings, lists and tuples."""
    found: list[Tensor] = []
    map_tensors(tree, found.append)
    return found
