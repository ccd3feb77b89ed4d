"""What the trainer asks of an engine."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gdtrain.data.batch import Block
from gdtrain.errors import ModelError
from gdtrain.training.callbacks.callback import Callback


class EngineError(ModelError):
    """An engine can't run what eager can."""


class Engine(Protocol):
    """Runs the steps of a block.

    name: as in the configuration. max_block_steps: how many losses may wait for a safe point.
    """

    name: str
    max_block_steps: int

    @property
    def reaches_over_epochs(self) -> bool:
        """Whether blocks may begin in one epoch and end in a later one."""

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return their losses, still on the device.

        [len(block)], or fewer: then the next update's loss or gradient is not finite, it was
        not made, and everything is as it was before it.
        """

    def publish(self, looker: Callback | None = None) -> None:
        """Bring model, loss and optimizer up to date, before anybody looks at them.

        looker: the callback that is about to look; None for code of which nothing is known.
        """
