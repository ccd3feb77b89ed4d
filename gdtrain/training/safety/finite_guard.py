"""The guard before every update: a loss or gradient that is not finite changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gdtrain.data.samples import TensorSamples
from gdtrain.data.tree import map_tensors
from gdtrain.errors import ConfigError
from gdtrain.training.descent import Work, call_post_hooks, gathered, known_step, steps_as_torch
from gdtrain.training.losses.known_means import of_torch
from gdtrain.training.placement.exchange import Total
from gdtrain.training.run import Run
from gdtrain.training.safety.checks import check_returned
from gdtrain.training.state import lbfgs_state
from gdtrain.training.state.keeper import Keeper, Part, may_write, modules_of, roots_of

# Dtypes of which torch.amp's kernel, which looks at many tensors at once, leaves the bits.
_ONE_KERNEL = (torch.float32, torch.float64)
_WITH_NORM = (*_ONE_KERNEL, torch.float16, torch.bfloat16)
# Elements from which the sum of a tensor takes less time than that kernel, which also writes.
_MANY = 16384


class NotFinite(Exception):  # noqa: N818
    """An update would be made from a loss or gradient that is not finite; caught by engines."""


class Guard:
    """Looks at loss and gradient before each update, and undoes what the forward pass changed.

    On a CPU it looks at once: :meth:`check` raises :class:`NotFinite` and the engine calls
    :meth:`undo`. On a device, where looking would wait for it, ``check`` keeps a flag there;
    the engine asks :meth:`sound_steps` after the block and, of a block that is not sound, goes
    back to :meth:`snapshot` and makes its sound steps once more. Either way parameters, buffers,
    optimizer state and torch's generators end as they were before the bad update.

    deferred: look after the block, if that can be.
    found: what ``check`` saw last: the loss, if it was asked of it, and the first bad gradient.
    totals: of gradients that nobody changes before the next check.
    broken_off: whether the last update was made in part: an own ``train_step`` had stepped the
        optimizer once before what is not finite. stepped: the names of those, of several.
    """

    def __init__(self, trainer: Run, *, deferred: bool) -> None:
        self.trainer = trainer
        self._may_defer = deferred
        self.found: tuple[float | None, str | None] = (None, None)
        self.totals: Sequence[Total] = ()
        self.broken_off = False
        self.stepped: list[str] = []
        self._before: Keeper | None = None
        self._of_any_pass: Keeper | None = None
        self._weights: Keeper | None = None
        self._before_search: Keeper | None = None  # for a step, see :meth:`protect`
        self._started_at: int | None = None  # updates, before the first of this guard
        self._watched: Optimizer | None = None
        self._hooks: list[RemovableHandle] = []
        # In float32 under any default dtype: so the kernel wants it.
        self._one = torch.ones((), dtype=torch.float32, device=trainer.device)
        self._flag = torch.zeros((), dtype=torch.float32, device=trainer.device)
        self._flags: list[Tensor] = []

    @property
    def deferred(self) -> bool:
        """Whether to look after the block; not if a callback keeps a state of its own."""
        return self._may_defer and not self.trainer.listeners.of["on_gradient"]

    # ── before each update ──────────────────────────────────────────────────────────────────

    def before_step(self, own_step: bool) -> None:
        """Keep what a forward pass changes: buffers and the state of torch's generator.

        own_step: the trainer's ``train_step`` is a subclass's.
        """
        if own_step:
            self.watch()
        if self._may_defer and self.deferred:
            return
        if self._of_any_pass is None:
            self._of_any_pass = Keeper(self.trainer, "buffers", "draws", "own")
        else:
            self._of_any_pass.keep()
        self._before = self._of_any_pass
        if self._started_at is None or self.trainer.progress.step == self._started_at:
            self._keep_weights(own_step)
        else:
            self._weights = None

    def _keep_weights(self, own_step: bool) -> None:
        """Before the first update, which may be refused: some layers set weights in forward.

        PyTorch's own don't, and draw from its generators alone: where no other code runs, on a
        CPU, nothing is copied.
        """
        trainer, modules = self.trainer, modules_of(roots_of(self.trainer, whole=True))
        assert trainer.loader is not None
        others = (
            own_step
            or trainer.listeners.see_updates
            or of_torch(trainer.loss) is None
            or trainer.has_own("batch_gradient", "finish_gradient", "output_loss")
            or not steps_as_torch(trainer.updater)
            or not isinstance(trainer.placed(trainer.loader.samples), TensorSamples)
            or may_write(trainer, modules)
        )
        parts: list[Part] = ["parameters"] if others else []
        if others or trainer.device.type != "cpu":
            parts.append("generators")
        self._started_at = trainer.progress.step
        self._weights = Keeper(trainer, *parts)

    def keeping(self, *parts: Part) -> Callable[[], None]:
        """What to call instead where it is known which parts a forward pass may change."""
        keeper = Keeper(self.trainer, *parts)

        def keep() -> None:
            self._before, self._weights = keeper, None
            keeper.keep()

        return keep

    def check(
        self, loss: Tensor | None = None, work: Work | None = None, of: Optimizer | None = None
    ) -> None:
        """Raise NotFinite if ``loss`` (shape []) or a gradient is not finite; or keep a flag.

        work: the gradients, where they have been gathered. of: the optimizer whose gradients they
        are, if there are several.
        """
        if work is None:
            seen = [
                gradient
                for group in (of or self.trainer.updater).param_groups
                for parameter in group["params"]
                if (gradient := parameter.grad) is not None
            ]
        elif len(work) == 1:
            seen = list(work[0][2])
        else:
            seen = [gradient for _, _, gradients in work for gradient in gradients]
        if self._may_defer and self.deferred:
            flag = torch.zeros_like(self._flag)
            look(seen, flag, self._one)
            self._flags.append(flag)
            return
        if loss is not None:
            seen.append(loss)
        if work is not None and (loss is None or loss.dtype in _ONE_KERNEL):
            # A sum is finite if all its terms are; finite terms may have one that is not.
            known = self._with_totals(seen) if self.totals else seen
            sums = [g.sum() if g.numel() > _MANY else g for g in known]
            try:
                torch._amp_foreach_non_finite_check_and_unscale_(sums, self._flag, self._one)
            except RuntimeError:  # of gradients that the kernel does not take
                look(seen, self._flag, self._one)
            flagged = bool(self._flag.item())
            bad = flagged and not all_finite(seen)
        else:
            look(seen, self._flag, self._one)
            bad = flagged = bool(self._flag.item())
        if flagged:
            self._flag.zero_()
        if self.trainer.world.size > 1 and self._must_agree():
            bad = self.trainer.world.any(bad)
        if bad:
            self.found = (None if loss is None else loss.item(), first_bad(self._gradients()))
            raise NotFinite

    def _with_totals(self, seen: list[Tensor]) -> list[Tensor]:
        """Gradients, or in their places the totals that are known of them."""
        known = {id(t.gradient): t.value for t in self.totals if t.gradient._version == t.version}
        self.totals = ()
        return [known.get(id(gradient), gradient) for gradient in seen]

    def undo(self) -> None:
        """Put back buffers and torch's generator as they were at :meth:`before_step`."""
        assert self._before is not None
        self._before.restore()
        self.trainer.updater.zero_grad()

    def take_back(self) -> None:
        """As :meth:`undo`, of an update that is refused: no weight is to have changed either."""
        self.undo()
        if self._weights is not None:
            self._weights.restore()

    def protect(self, update: Callable[[], object]) -> None:
        """Make an update that moves the weights while it looks for a step (L-BFGS), or none.

        Raises NotFinite, with weights and optimizer as before, if it leaves weights or state
        that are not finite; and likewise whatever else breaks it off.
        """
        if self._before_search is None:
            self._before_search = self._keeper()
        else:
            self._before_search.keep()
        before, optimizer = self._before_search, self.trainer.updater
        known = lbfgs_state.newest(optimizer)
        try:
            update()
            held = [p for group in optimizer.param_groups for p in group["params"]]
            state: Any = dict(optimizer.state)
            if known:
                state = [lbfgs_state.since(one, known) for one in state.values()]
            if not all_finite([*held, *tensors_in(state)]):
                raise NotFinite
        except BaseException:
            before.restore()
            optimizer.zero_grad()
            raise

    def _gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """The gradients of what is trained, by name."""
        names = {p: name for name, p in self.trainer.model.named_parameters()}
        for group in self.trainer.updater.param_groups:
            for parameter in group["params"]:
                yield names.get(parameter, "the loss's parameter"), parameter.grad

    def _must_agree(self) -> bool:
        """Whether one rank may see what the others do not.

        Ranks that hold the whole model share one gradient and one loss; only a callback that
        changes the gradient afterwards, or a split model, makes them differ.
        """
        trainer = self.trainer
        return trainer.is_sharded or trainer.listeners.see_updates

    def _keeper(self) -> Keeper:
        return Keeper(self.trainer, "buffers", "parameters", "optimizer", "generators", "own")

    # ── a train_step that is somebody's own ─────────────────────────────────────────────────

    def watch(self) -> None:
        """See to it that an own ``train_step`` steps the optimizer under this guard.

        Whatever it does ends in ``optimizer.step``: before it, gradients must be finite and the
        trainer's settings have been used; after it, the update has been made.
        """
        if self._watched is not self.trainer.updater:
            self.unwatch()
            self._watched = self.trainer.updater
            for optimizer in self.trainer.optimizers.values():
                try:
                    made = optimizer.register_step_post_hook(self._after_step)
                except AttributeError as error:
                    raise ConfigError.of(
                        "optimizer",
                        f"{type(optimizer).__name__} is made without Optimizer.__init__, so that "
                        "its steps in a train_step can't be counted; call that in its __init__",
                    ) from error
                optimizer._optimizer_step_post_hooks.move_to_end(made.id, last=False)  # type: ignore[attr-defined]
                self._hooks += [optimizer.register_step_pre_hook(self._ahead_of_step), made]
        self.trainer.called_rungs.clear()
        self.stepped = []

    def unwatch(self) -> None:
        """Take the hooks of :meth:`watch` away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._watched = [], None

    def step(self, optimizer: Optimizer) -> None:
        """``optimizer.step()`` of a subclass's ``train_step``; faster where it is known."""
        first, *others = optimizer._optimizer_step_pre_hooks.values() or [None]
        watched = not others and first == self._ahead_of_step
        step = known_step(optimizer, hooked=True) if watched else None
        work = gathered(optimizer) if step is not None else None
        if step is not None and work is not None:
            self.check_rungs()
            self.check(work=work, of=optimizer)
            if step(optimizer, work):
                call_post_hooks(optimizer)  # that of this guard among them
                return
        optimizer.step()

    def check_rungs(self) -> None:
        """Raise ConfigError if an own ``train_step`` leaves a setting of the trainer unused."""
        trainer, used = self.trainer, self.trainer.called_rungs
        if self._watched is None or not self._has_settings():
            return
        clip = "clip_grad_norm" if trainer.clip_grad_norm is not None else "clip_grad_value"
        clips = trainer.clip_grad_norm is not None or trainer.clip_grad_value is not None
        looks = bool(trainer.listeners.of["on_before_update"])
        for key, is_set, rung in (
            (clip, clips, "finish_gradient"),
            ("callbacks", looks, "finish_gradient"),
            ("microbatch_size", bool(trainer.microbatches), "batch_gradient"),
            ("precision: fp16", trainer.loss_scale is not None, "batch_gradient"),
            ("several processes", trainer.world.size > 1, "batch_gradient"),
        ):
            if is_set and rung not in used:
                owner = type(trainer).__name__
                call = "batch_gradient(batch)" if rung == "batch_gradient" else "finish_gradient()"
                raise ConfigError.of(
                    key,
                    f"{owner}.train_step makes an update without it; call self.{call} before "
                    "optimizer.step(), or leave the setting out",
                )

    def _has_settings(self) -> bool:
        """Whether there is anything that an own ``train_step`` may leave unused; mostly not."""
        trainer = self.trainer
        return bool(
            trainer.clip_grad_norm is not None
            or trainer.clip_grad_value is not None
            or trainer.callbacks
            or trainer.microbatches
            or trainer.loss_scale is not None
            or trainer.world.size > 1
        )

    def check_made(self, loss: Tensor) -> None:
        """Look at what a subclass's ``train_step`` has returned, when it is over.

        Raises ModelError unless it is a loss, NotFinite for one that is not finite.
        """
        if type(loss) is not Tensor or loss.ndim:
            check_returned(type(self.trainer).__name__, loss)
        if not self.deferred and not math.isfinite(value := loss.item()):
            self.found = (value, None)
            raise NotFinite

    def _ahead_of_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.check_rungs()
        self.check(work=gathered(optimizer), of=optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.trainer.progress.made()
        if optimizer is not self.trainer.updater:
            names = [n for n, one in self.trainer.optimizers.items() if one is optimizer]
            self.stepped += [name for name in names if name not in self.stepped]

    # ── after a block whose flags stayed on the device ──────────────────────────────────────

    def snapshot(self) -> Keeper:
        """What to come back to if the block that follows is not sound."""
        self._flags.clear()
        return self._keeper()

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


def look(tensors: list[Tensor], flag: Tensor, one: Tensor) -> None:
    """Set ``flag`` to 1 if a value is NaN or infinite, without waiting for a device.

    The kernel is the one of torch.amp's gradient scaler: a single call for all tensors, which
    also multiplies them by ``one``, and so leaves their bits.
    """
    plain: list[Tensor] = []
    for tensor in tensors:
        if tensor._is_zerotensor():  # torch.sgn gives such gradients, and nothing writes to them
            continue
        # mps has had the kernel in some releases only.
        if (
            type(tensor) is Tensor
            and tensor.dtype in _ONE_KERNEL
            and tensor.layout is torch.strided
            and tensor.device.type != "mps"
        ):
            plain.append(tensor)
        else:
            flag.logical_or_(~torch.isfinite(_values(tensor)).all())
    try:
        if plain:
            torch._amp_foreach_non_finite_check_and_unscale_(plain, flag, one)
    except RuntimeError:  # it writes, and some may lie in one place of memory many times
        for tensor in plain:
            flag.logical_or_(~torch.isfinite(tensor).all())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number of every tensor is finite."""
    groups: dict[Any, list[Tensor]] = {}  # one call for all of a group, which only reads
    others: list[Tensor] = []
    for tensor in tensors:
        plain = type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided
        if plain and tensor.dtype in _WITH_NORM and tensor.numel():
            groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        else:
            others.append(tensor)
    with torch.no_grad():
        for group in groups.values():
            if not math.isfinite(_sum(group)):  # as it is of large numbers, too
                others.append(torch.stack(torch._foreach_norm(group, math.inf)))
    return first_bad(("", tensor) for tensor in others) is None


def _sum(tensors: list[Tensor]) -> float:
    """Of all numbers of tensors of one dtype and device: finite only if all of them are."""
    small = [tensor for tensor in tensors if tensor.numel() <= _MANY]
    flat = [tensor for tensor in tensors if tensor.numel() > _MANY]
    if small:
        flat.append(_flatten_dense_tensors(small))  # type: ignore[no-untyped-call]
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return float(torch.stack([tensor.sum(dtype=dtype) for tensor in flat]).sum())


def first_bad(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    for name, tensor in named:
        if tensor is not None and not bool(torch.isfinite(_values(tensor)).all()):
            return name
    return None


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested mappings, lists and tuples."""
    found: list[Tensor] = []
    map_tensors(tree, found.append)
    return found


def _values(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that may be split over processes, or sparse."""
    local: Any = tensor.detach()
    local = local.to_local() if hasattr(local, "to_local") else local
    values: Tensor = local.coalesce().values() if local.is_sparse else local
    return values
