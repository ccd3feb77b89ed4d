"""How long a block may be: until somebody needs to look, and about a tenth of a second."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Block, Plan, ViewBatch
from gdtrain.data.samples import TensorSamples, of_rows
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.epochs_ahead import EpochsAhead
from gdtrain.training.run import Run

# Bounds how late a signal, a clock or a progress bar is looked at.
BLOCK_SECONDS = 0.1


class BlockLength:
    """Doubles the length of blocks while they take little time, and halves it when they do not.

    Lengths depend on the clock, so nothing that a run reports may depend on them.
    """

    _steps = 1

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


def reach(trainer: Run, until: int) -> int:
    """The epoch, counted from 1, with which a block that starts now has to end at the latest.

    until: the last one that may be trained.
    """
    loader, epoch = trainer.loader, trainer.progress.epoch
    assert loader is not None
    alone = until == epoch + 1 or not trainer.engine.reaches_over_epochs
    if alone or not may_go_on(trainer):
        return epoch + 1
    turns = loader.turns(until)
    later = bisect_right(turns, epoch)
    ends = [until, turns[later]] if later < len(turns) else [until]
    listeners = trainer.listeners
    if listeners.of["on_epoch_start"]:
        return epoch + 1
    ends += [callback.next_epoch_end(epoch) or until for callback in listeners.of["on_epoch_end"]]
    return min(ends)


def may_go_on(trainer: Run) -> bool:
    """Whether an epoch may follow another without anybody else's code between them."""
    loader, schedule = trainer.loader, trainer.schedule
    assert loader is not None
    if loader.is_stream or loader.calls_order:
        return False
    return schedule.scheduler is None or not (schedule.by_metric or schedule.own_code)


def blocks(trainer: Run, until: int, length: BlockLength, ahead: EpochsAhead) -> Iterator[Block]:
    """Blocks from where the run stands on, the last of which ends with an epoch.

    They end where somebody looks, at the latest at the end of epoch ``until``, counted from 1; and
    there are no more once a process has been asked to stop after the first.
    Where batches arrive over time, a block ends at the latest with those that are there, and a
    wish to stop ends the wait for more. Raises DataError for data that can't be read on.
    """
    progress, plan = trainer.progress, trainer.plan
    assert plan is not None
    plan.seek(progress.step_in_epoch, progress.position)
    batches, arrived, begun = _batches(trainer, ahead), 0, False
    while not plan.is_over(start := progress.step_in_epoch):
        if plan.num_batches is not None:
            there = (reach(trainer, until) - progress.epoch) * len(plan) - start
        elif start < arrived:
            there = arrived - start
        else:
            there = plan.remaining(start)
            batches, arrived = _batches(trainer, ahead), start + there
            if not there and trainer.should_stop:
                return
        left = min(there, trainer.engine.max_block_steps)
        steps = length.next(progress.step, left, trainer.callbacks)
        # Blocks follow the clock, and clocks differ.
        steps, stops = trainer.world.first_and_any(steps, begun and trainer.should_stop)
        if stops:
            return
        yield Block(plan, start, start + steps, islice(batches, steps))
        begun, plan = True, trainer.plan
        assert plan is not None


def _batches(trainer: Run, ahead: EpochsAhead) -> Iterator[Batch]:
    """Batches from where the run stands on, over the ends of epochs.

    Nothing is done about one until it is asked for: that of the next epoch ends this one.
    """
    while True:
        assert trainer.loader is not None
        assert trainer.plan is not None
        plan, start = trainer.plan, trainer.progress.step_in_epoch
        is_whole = plan.batch_size == plan.num_samples
        is_view = is_whole and plan.indices is None  # which takes less than a copy
        batches = None if is_view else ahead.batches(plan)
        if batches is not None:
            yield from batches
        elif is_whole and (batch := _whole(trainer, plan)) is not None:
            yield batch
        else:
            yield from trainer.read(trainer.loader, plan, start, views=True)
        if not trainer.pass_epoch(ahead.plan):
            return


def _whole(trainer: Run, plan: Plan) -> Batch | None:
    """The batch that is a whole data set in memory, without much ado; None for any other."""
    assert trainer.loader is not None
    if trainer.world.size > 1 or trainer.progress.step_in_epoch:
        return None
    placed = trainer.placed(trainer.loader.samples)
    if not isinstance(placed, TensorSamples):
        return None
    if plan.indices is None:
        size = plan.num_samples
        return of_rows([tensor[:size] for tensor in placed.tensors], torch.arange(size), ViewBatch)
    # A copy, to which whoever sees the batch may write.
    kept = plan.indices
    chosen = kept.clone() if isinstance(kept, Tensor) else plan.take(0, plan.num_samples)
    return of_rows(placed.chosen(chosen), chosen)
