"""How long a block may be: until somebody needs to look, and about a tenth of a second."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import is_
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Block, Plan, ViewBatch
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.samples import GATHER_BYTES, TensorSamples, cut, of_rows
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.run import Run

# Bounds how late a signal, a clock or a progress bar is looked at.
BLOCK_SECONDS = 0.1
# Epochs that are read at once.
MOST_AHEAD = 64


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
    if not (trainer.engine.reaches_over_epochs and may_go_on(trainer)):
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


def blocks(trainer: Run, until: int, length: BlockLength) -> Iterator[Block]:
    """Blocks from where the run stands on, the last of which ends with an epoch.

    They end where somebody looks, at the latest at the end of epoch ``until``, counted from 1; and
    there are no more once a process has been asked to stop after the first.
    Where batches arrive over time, a block ends at the latest with those that are there, and a
    wish to stop ends the wait for more. Raises DataError for data that can't be read on.
    """
    progress, plan = trainer.progress, trainer.plan
    assert plan is not None
    plan.seek(progress.step_in_epoch, progress.position)
    batches, arrived, begun = _batches(trainer), 0, False
    while not plan.is_over(start := progress.step_in_epoch):
        if plan.num_batches is not None:
            there = (reach(trainer, until) - progress.epoch) * len(plan) - start
        elif start < arrived:
            there = arrived - start
        else:
            there = plan.remaining(start)
            batches, arrived = _batches(trainer), start + there
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


def _batches(trainer: Run) -> Iterator[Batch]:
    """Batches from where the run stands on, over the ends of epochs.

    Nothing is done about one until it is asked for: that of the next epoch ends this one.
    """
    ahead = _ReadAhead(trainer)
    while True:
        assert trainer.loader is not None
        assert trainer.plan is not None
        plan, start = trainer.plan, trainer.progress.step_in_epoch
        batch = None
        if plan.batch_size == plan.num_samples:
            batch = None if plan.indices is None else ahead.batch(plan)
            batch = _whole(trainer, plan) if batch is None else batch
        if batch is not None:
            yield batch
        else:
            yield from trainer.read(trainer.loader, plan, start, views=True)
        if not trainer.pass_epoch(ahead.plan):
            return


class _ReadAhead:
    """Epochs of one batch each that are read at once, where nobody's code runs between them.

    Nothing of them outlives the block, nor a change of the data or of the loader's settings.
    """

    def __init__(self, trainer: Run) -> None:
        self.trainer = trainer
        self._block: Block | None = None
        self._epochs: dict[int, tuple[Plan, Batch]] = {}
        self._settings: list[Any] = []
        self._state: Any = None

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch, which may have been made already."""
        trainer, loader = self.trainer, self.trainer.loader
        assert loader is not None
        is_there = epoch in self._epochs and trainer.running is self._block
        return self._epochs[epoch][0] if is_there and self._is_of(loader) else loader.plan(epoch)

    def _is_of(self, loader: Loader) -> bool:
        """Whether loader and data are as they were when they were read."""
        settings, state = [*vars(loader).values()], loader.samples.state()
        return (
            len(settings) == len(self._settings)
            and all(map(is_, settings, self._settings))
            and state == self._state
        )

    def batch(self, plan: Plan) -> Batch | None:
        """The batch that is the epoch of this plan; None if it is not to be read with others."""
        block = self.trainer.running
        if block is not None and block.is_undisturbed and isinstance(plan.indices, Tensor):
            if block is not self._block or plan.epoch not in self._epochs:
                self._block, self._epochs = block, self._read(plan, len(block) - len(block.made))
            if plan.epoch in self._epochs and self._epochs[plan.epoch][0] is plan:
                return self._epochs.pop(plan.epoch)[1]
        return None

    def _read(self, plan: Plan, left: int) -> dict[int, tuple[Plan, Batch]]:
        """This epoch and others after it, of ``left`` at most; none if it would be alone."""
        trainer, loader = self.trainer, self.trainer.loader
        assert loader is not None
        placed = trainer.placed(loader.samples)
        count = min(left, MOST_AHEAD)
        if trainer.progress.step_in_epoch or not isinstance(placed, TensorSamples):
            return {}
        count = min(count, GATHER_BYTES // max(1, placed.nbytes + plan.num_samples * 8))
        if count < 2:
            return {}
        plans = [plan, *map(loader.plan, range(plan.epoch + 1, plan.epoch + count))]
        orders = [p.indices for p in plans if isinstance(p.indices, Tensor) and p.is_like(plan)]
        if len(orders) < len(plans):
            return {}
        self._settings, self._state = [*vars(loader).values()], loader.samples.state()
        chosen = torch.cat(orders)
        batches = cut(placed.chosen(chosen), chosen, [plan.num_samples] * len(plans))
        return {p.epoch: (p, batch) for p, batch in zip(plans, batches, strict=True)}


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
