"""The engine that runs every model: one call of ``train_step`` for each batch of a block."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Block
from gdtrain.training.guard import NotFinite

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class EagerEngine:
    """Runs blocks step by step, with the bits of the hand-written PyTorch loop."""

    name = "eager"

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return their losses, still on the device.

        [len(block)], or fewer: then the next update's loss or gradient is not finite, it was
        not made, and everything is as it was before it.
        """
        trainer, guard = self.trainer, self.trainer.guard
        if not guard.deferred:
            return _stacked(self._steps(block.batches))
        start = guard.snapshot()
        losses = self._steps(block.batches)
        sound = guard.sound_steps(losses)
        if sound < len(losses):
            start.restore()
            assert trainer.loader is not None
            again = trainer.read(trainer.loader, block.plan, block.start)
            losses = self._steps(islice(again, sound))
        return _stacked(losses)

    def _steps(self, batches: Iterable[Batch]) -> list[Tensor]:
        guard, step, after = self.trainer.guard, self.trainer.train_step, self.trainer.after_update
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
    return torch.stack(losses) if losses else torch.empty(0)
