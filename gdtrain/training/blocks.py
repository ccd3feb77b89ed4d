"""How long a block may be: until somebody needs to look, and about a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from gdtrain.data.batch import Batch, Block, Plan
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.run import Run

# Bounds how late a signal, a clock or a progress bar is looked at.
BLOCK_SECONDS = 0.1


class BlockLength:
    """Doubles the length of blocks while they take little time, and halves it when they do not.

    Lengths depend on the clock, so nothing that a run reports may depend on them.
    """

    def __init__(self) -> None:
        self._steps = 1

    def next(self, step: int, remaining: int, callbacks: Iterable[Callback]) -> int:
        """Steps of the block that starts after ``step`` updates, of ``remaining`` at most.

        It ends at the latest where a callback with ``every_n_steps`` is due.
        """
        if remaining == 1:  # as in every epoch, where a batch is everything
            return 1
        cadences = [c.every_n_steps for c in callbacks if c.every_n_steps is not None]
        return min(self._steps, remaining, *(every - step % every for every in cadences))

    def observe(self, steps: int, seconds: float) -> None:
        """Learn from a block of ``steps`` that took ``seconds``."""
        if steps == self._steps and seconds < BLOCK_SECONDS / 2:
            self._steps *= 2
        elif seconds > 2 * BLOCK_SECONDS:
            self._steps = max(1, self._steps // 2)


def _read(trainer: Run, plan: Plan, start: int) -> Iterator[Batch]:
    """The plan's batches from ``start`` on; nothing is done about it until one is asked for."""
    assert trainer.loader is not None
    yield from trainer.read(trainer.loader, plan, start, views=True)


def blocks(trainer: Run, plan: Plan, start: int, length: BlockLength) -> Iterable[Block]:
    """Cut the plan's batches from ``start`` on into blocks that end where somebody looks.

    Where batches arrive over time, a block ends at the latest with those that are there, and a
    wish to stop ends the wait for more. Raises DataError for data that can't be read on.
    """
    if plan.num_batches == 1 and start == 0:  # one block, however often and whoever looks
        return (Block(plan, 0, 1, _read(trainer, plan, 0)),)
    return _cut(trainer, plan, start, length)


def _cut(trainer: Run, plan: Plan, start: int, length: BlockLength) -> Iterator[Block]:
    plan.seek(start, trainer.progress.position)
    while not plan.is_over(start):
        arrived = start + plan.remaining(start)
        if arrived == start and trainer.should_stop:
            return
        batches = _read(trainer, plan, start)
        while start < arrived:
            left = min(arrived - start, trainer.engine.max_block_steps)
            steps = length.next(trainer.progress.step, left, trainer.callbacks)
            steps = trainer.world.first(steps)  # blocks follow the clock, and clocks differ
            block = Block(plan, start, start + steps, islice(batches, steps))
            yield block
            start = block.stop  # an engine may have ended it earlier
