"""The engine that runs every model: one call of ``train_step`` for each batch of a block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gdtrain.data.batch import Block

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class EagerEngine:
    """Runs blocks step by step, with the bits of the hand-written PyTorch loop."""

    name = "eager"

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return their losses [len(block)], still on the device."""
        step, after = self.trainer.train_step, self.trainer.after_update
        losses = []
        for batch in block.batches:
            losses.append(step(batch))
            after()
        return torch.stack(losses)
