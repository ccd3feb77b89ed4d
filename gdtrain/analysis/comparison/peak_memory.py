"""How much memory one update takes at its peak, counted tensor by tensor, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gdtrain.analysis.trial_updates import trial_updates
from gdtrain.data.batch import Block
from gdtrain.data.tree import map_tensors
from gdtrain.training.blocks import known_plan
from gdtrain.training.trainer import Trainer


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one update.

    step: what the update allocates, at its peak: the gathered batch, activations, gradients and
    what the optimizer needs in between. held: what is there before and after it: parameters,
    buffers, the optimizer's state, and what callbacks such as SAGA keep. The data set is in
    neither.
    """

    step: int
    held: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensor storages that operators make, while they are alive.

    Every operator passes here, those of the backward pass and of the optimizer too. ``peak`` is the
    largest sum so far. What an operator allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):  # a view's is that of an argument
            if storage._cdata not in before and storage not in self._known:
                self._known.add(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def step_memory(trainer: Trainer) -> StepMemory | None:
    """Measure an update with the first batch of the loader's first epoch, the second one of a run.

    The first one makes the optimizer's state. The update is made eagerly, whatever the trainer's
    engine: what XLA or a CUDA graph allocate is not seen. Of the callbacks only corrections of the
    gradient take part. The trainer, and these, are put back into the state that they were in. None
    if an update's loss or gradient is not finite.
    """
    correcting = [c for c in trainer.callbacks if c.listens_to("on_gradient")]
    kept = [map_tensors(callback.state_dict(), torch.clone) for callback in correcting]
    try:
        with trial_updates(trainer, correcting):
            if not len(trainer.engine.run(_first_update(trainer))):
                return None
            held = _held(trainer)
            trainer.optimizer.zero_grad(set_to_none=True)
            with LiveBytes() as live:
                made = len(trainer.engine.run(_first_update(trainer)))
            return StepMemory(live.peak, held) if made else None
    finally:
        for callback, state in zip(correcting, kept, strict=True):
            callback.load_state_dict(state)


def _first_update(trainer: Trainer) -> Block:
    """That update alone: many small batches are otherwise gathered at once, for speed."""
    assert trainer.loader is not None
    plan = known_plan(trainer, trainer.loader, 0)
    size = min(plan.batch_size, plan.num_samples)
    indices = None if plan.indices is None else plan.take(0, size)
    if plan.asked is not None:  # any samples are as large
        indices = torch.arange(size, device="cpu") % trainer.loader.num_samples
    first = replace(plan, num_samples=size, indices=indices)
    return Block(first, 0, 1, trainer.read(trainer.loader, first))


def _held(trainer: Trainer) -> int:
    """Bytes of parameters, buffers and the optimizer's and callbacks' state, each storage once."""
    states = [list(state.values()) for state in trainer.optimizer.state.values()]
    kept = [callback.state_dict() for callback in trainer.callbacks]
    modules = [trainer.model, trainer.loss]
    tensors = [
        [*module.parameters(), *module.buffers()]
        for module in modules
        if isinstance(module, torch.nn.Module)
    ]
    return sum({s._cdata: s.nbytes() for s in _storages((states, tensors, kept))}.values())


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
