"""The engine that runs every model: one update after the other, each as soon as asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Block
from gdtrain.data.samples import TensorSamples
from gdtrain.training.engines.lean import LeanStep, fits
from gdtrain.training.guard import NotFinite

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class EagerEngine:
    """Runs blocks step by step, with the bits of the hand-written PyTorch loop."""

    name = "eager"
    max_block_steps = 4096

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._whole: tuple[Any, int, tuple[Any, Any, Tensor]] | None = None
        self._step: Callable[[Batch], Tensor] | None = None  # until somebody may change a setting

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return their losses, still on the device.

        [len(block)], or fewer: then the next update's loss or gradient is not finite, it was
        not made, and everything is as it was before it.
        """
        trainer, guard = self.trainer, self.trainer.guard
        if not guard.deferred:
            return _stacked(self._steps(self._batches(block)))
        start = guard.snapshot()
        losses = self._steps(block.batches)
        sound = guard.sound_steps(losses)
        if sound < len(losses):
            start.restore()
            assert trainer.loader is not None
            again = trainer.read(trainer.loader, block.plan, block.start)
            losses = self._steps(islice(again, sound))
        return _stacked(losses)

    def _batches(self, block: Block) -> Iterable[Batch]:
        """The block's batches; of one that is a whole data set in memory, the views kept."""
        trainer, plan = self.trainer, block.plan
        if plan.indices is not None or plan.num_batches != 1 or trainer.world.size > 1:
            return block.batches
        assert trainer.loader is not None
        samples = trainer.loader.samples
        size = plan.num_samples  # of a batch that leaves some out, it is less than there are
        if self._whole is None or self._whole[0] is not samples or self._whole[1] != size:
            batch = next(iter(block.batches))
            if not isinstance(trainer.placed(samples), TensorSamples):
                return [batch]
            self._whole = samples, size, (batch.inputs, batch.targets, batch.indices)
        return [Batch(*self._whole[2])]

    def publish(self) -> None:
        """Every update is made where everybody can see it; whoever looks may change settings."""
        self._step = None

    def _steps(self, batches: Iterable[Batch]) -> list[Tensor]:
        guard, after = self.trainer.guard, self.trainer.after_update
        if self._step is None:
            self._step = LeanStep(self.trainer) if fits(self.trainer) else self.trainer.train_step
        step = self._step
        losses: list[Tensor] = []
        for batch in batches:
            guard.before_step()
            try:
                losses.append(step(batch))
            except NotFinite:
                guard.undo()
                break
            after()
        return losses


def _stacked(losses: list[Tensor]) -> Tensor:
    if len(losses) == 1:
        return losses[0].reshape(1)
    return torch.stack(losses) if losses else torch.empty(0)
