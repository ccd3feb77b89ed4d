"""What the engines that capture a step have in common: when to do it again, and what they count."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gdtrain.data.batch import Block
from gdtrain.data.samples import Samples
from gdtrain.errors import ModelError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.engines.eager import stacked
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.engines.foreign_code import Structure, calls_known_code, only_reads
from gdtrain.training.engines.obstacles import UNEVEN, obstacles_in_step
from gdtrain.training.run import Run


class CompiledEngine(ABC):
    """Runs blocks by a step that is captured once, and not by Python code.

    Whatever such a step has as constants may be other once somebody else's code has run. So it is
    captured again then; what was compiled is used again if the graph and its constants are the
    same.
    """

    name: str
    max_block_steps: int

    def __init__(self, trainer: Run) -> None:
        self.trainer = trainer
        self._may_differ = True  # since the last capture, if there was one
        self._structure: Structure | None = None  # of what was captured; None if it can't be known

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return the losses of those made, [len(block)] or fewer."""
        parts: list[Tensor] = []
        try:
            if block.plan.sizes is not None:
                raise EngineError(UNEVEN)
            self._run_parts(block, parts)
        except ModelError as error:  # another engine makes the rest
            self.publish()
            self._keep(block, parts)
            self.trainer.choice.instead(self.name, error)
            block.stop = block.start + len(block.losses)
            return stacked(block.losses)
        except BaseException:
            self._keep(block, parts)
            raise
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def publish(self, looker: Callback | None = None) -> None:
        """Bring model, loss and optimizer up to date, before anybody looks at them."""
        if not only_reads(looker, self.trainer):
            self._may_differ = True

    @property
    def reaches_over_epochs(self) -> bool:
        return False

    @abstractmethod
    def _run_parts(self, block: Block, parts: list[Tensor]) -> None:
        """Make the updates, and put the losses of those made into ``parts`` as they come.

        Raises EngineError if the step can't be captured.
        """

    @staticmethod
    def _keep(block: Block, parts: list[Tensor]) -> None:
        """Keep the losses of what was made before an error."""
        block.losses.extend(loss for part in parts for loss in part.unbind())

    # ── what is captured ────────────────────────────────────────────────────────────────────

    def _samples(self) -> Samples:
        assert self.trainer.loader is not None
        return self.trainer.placed(self.trainer.loader.samples)

    def _is_current(self) -> bool:
        """Whether what was captured is the step of the trainer as it is now.

        Raises EngineError if the trainer has got something that can't be captured.
        """
        if not self._may_differ:
            return True
        for reason in obstacles_in_step(self.trainer, self.name):
            raise EngineError(reason)
        known, trainer = self._structure, self.trainer
        return known is not None and calls_known_code(trainer) and known.is_of(trainer)

    def _note_capture(self) -> None:
        """What was captured is of the trainer as it is now."""
        trainer = self.trainer
        self._structure = Structure(trainer) if calls_known_code(trainer) else None
