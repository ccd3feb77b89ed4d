"""What comes next: the plan of the epoch that runs, its batches, and how many make a block.

A block ends where somebody needs to look, and after about a tenth of a second. Epochs of a few
batches are read at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import is_
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Block, Plan, ViewBatch
from gdtrain.data.loaders.loader import FormLoader, Loader
from gdtrain.data.orders.asked_order import check_indices
from gdtrain.data.samples import CUT_AT_ONCE, GATHER_BYTES, Samples, TensorSamples, cut, of_rows
from gdtrain.data.sources import ArrangedSamples, rows_in_memory
from gdtrain.errors import CheckpointError, ConfigError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.run import Run
from gdtrain.training.state.plain_values import demand

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
        return of_rows(
            [tensor[:size] for tensor in placed.tensors],
            torch.arange(size, device="cpu"),
            ViewBatch,
        )
    # A copy, to which whoever sees the batch may write.
    kept = plan.indices
    chosen = kept.clone() if isinstance(kept, Tensor) else plan.take(0, plan.num_samples)
    return of_rows(placed.chosen(chosen), chosen)


# ── epochs that are read ahead ──────────────────────────────────────────────────────────────────

MOST_AHEAD = 64
# To compare so much with a copy takes less time than to plan and read an epoch.
COMPARED_BYTES = 1 << 15
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


@dataclass(eq=False)
class EpochsAhead:
    """Plans and batches of the epochs of a fit that come next.

    What was read is used while loader and data are what they were. Little data is compared with a
    copy of it; more is read ahead only in a block in which nobody's code runs.
    """

    trainer: Run
    _epochs: dict[int, tuple[Plan, list[Batch]]] = field(default_factory=dict)
    _source: _Source | None = None
    _in_vain: bool = False  # what was read had changed

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch, which may have been made already."""
        assert self.trainer.loader is not None
        if epoch in self._epochs and self._is_current():
            return self._epochs[epoch][0]
        return self.trainer.loader.plan(epoch)

    def batches(self, plan: Plan) -> Iterator[Batch] | None:
        """Those of the epoch of this plan; None if it is not to be read with others."""
        epoch = plan.epoch
        if plan.asked is not None or self.trainer.progress.step_in_epoch:
            return None
        if epoch in self._epochs:  # which has just been found current, if it is that plan
            if self._epochs[epoch][0] is not plan and not self._is_current():
                return None
        elif not self._reads(plan):
            return None
        assert self._source is not None
        return self._source.unchanged(plan, self._epochs.pop(epoch)[1])

    def _is_current(self) -> bool:
        """Whether what was read is what would be read now; else forget it."""
        assert self._source is not None
        if self._source.is_current(self.trainer):
            return True
        self._in_vain |= self._source.copies is not None
        self._epochs = {}
        return False

    def _reads(self, plan: Plan) -> bool:
        """Read this epoch and others after it; whether there are any."""
        trainer, loader, block = self.trainer, self.trainer.loader, self.trainer.running
        assert loader is not None
        if self._in_vain or trainer.world.size > 1 or trainer.num_epochs - plan.epoch < 2:
            return False
        placed = trainer.placed(loader.samples)
        rows, source = rows_in_memory(placed), rows_in_memory(loader.samples)
        if rows is None or source is None or any(map(Tensor.is_inference, source.tensors)):
            return False
        bytes_of_epoch = max(1, rows.nbytes + 8 * plan.num_samples)
        count = min(MOST_AHEAD, CUT_AT_ONCE // len(plan), GATHER_BYTES // bytes_of_epoch)
        is_little = source.nbytes <= COMPARED_BYTES and trainer.device.type == "cpu"
        if compares := is_little and _is_plain(loader) and all(map(_has_bits, source.tensors)):
            count = min(count, trainer.num_epochs - plan.epoch)
        elif block is not None and block.is_undisturbed and plan.indices is not None:
            count = min(count, (len(block) - len(block.made)) // len(plan))
        else:
            return False
        if count < 2 or trainer.has_own("read"):
            return False
        plans = [plan, *map(loader.plan, range(plan.epoch + 1, plan.epoch + count))]
        kinds = {type(each.indices) for each in plans}
        if not (all(map(plan.is_like, plans)) and kinds in ({Tensor}, {NoneType})):
            return False
        self._source = _Source(trainer, loader, placed, source, compares=compares)
        chosen, per_epoch = _indices(plans), len(plan)
        sizes = plan.batch_sizes(0, per_epoch) * count
        batches = cut(rows.chosen(chosen), chosen, sizes)
        if isinstance(placed, ArrangedSamples):
            batches = map(placed.function, batches)
        self._epochs = {each.epoch: (each, [*islice(batches, per_epoch)]) for each in plans}
        return True


class _Source:
    """What batches were read from, as it was then.

    compares: whether the data are compared with copies; else they stay as they are in a block.
    """

    def __init__(
        self, trainer: Run, loader: Loader, placed: Samples, rows: TensorSamples, *, compares: bool
    ) -> None:
        self._loader, self._settings = loader, [*vars(loader).values()]
        self._block, self._dtype, self._placed = trainer.running, trainer.dtype, placed
        self._rows, self._tensors = rows, rows.tensors
        self._versions = [tensor._version for tensor in rows.tensors]
        # As whole numbers, of which 0 and -0, too, are two.
        self._as = [_INTEGERS[tensor.itemsize] for tensor in rows.tensors] if compares else []
        viewed = map(Tensor.view, rows.tensors, self._as)
        self.copies = [tensor.clone() for tensor in viewed] if compares else None

    def is_current(self, trainer: Run) -> bool:
        """Whether loader and data are as they were."""
        loader = trainer.loader
        if loader is not self._loader or trainer.dtype is not self._dtype:
            return False
        settings = vars(loader).values()
        if len(settings) != len(self._settings) or not all(map(is_, settings, self._settings)):
            return False
        tensors = self._rows.tensors
        if tensors is not self._tensors or [t._version for t in tensors] != self._versions:
            return False
        block = trainer.running
        if block is not None and block is self._block and block.is_undisturbed:
            return True
        if self.copies is None:
            return False
        return all(map(torch.equal, map(Tensor.view, tensors, self._as), self.copies))

    def unchanged(self, plan: Plan, batches: list[Batch]) -> Iterator[Batch]:
        """An epoch's batches, read again from where on they are of other values."""
        for number, batch in enumerate(batches):
            if number and [t._version for t in self._tensors] != self._versions:
                yield from self._placed.read(plan, number)
                return
            yield batch


def _is_plain(loader: Loader) -> bool:
    """Whether its settings, which are compared, say all about its plans."""
    if not (isinstance(loader, FormLoader) and loader.has_known_plans):
        return False
    return isinstance(loader.order, str) and isinstance(loader.batch_size, int | None)


def _has_bits(tensor: Tensor) -> bool:
    """Whether :data:`_INTEGERS` has a type for its values."""
    return tensor.itemsize in _INTEGERS and not (tensor.is_conj() or tensor.is_neg())


def _indices(plans: list[Plan]) -> Tensor:
    """The samples of several epochs, one after the other, [k] int64."""
    given = [plan.indices for plan in plans]
    if given[0] is None:
        return torch.arange(plans[0].num_samples, device="cpu").repeat(len(plans))
    return torch.cat([indices for indices in given if isinstance(indices, Tensor)])


# ── the plan of the epoch that runs ─────────────────────────────────────────────────────────────


def present_plan(trainer: Run) -> Plan:
    """The plan of the epoch that runs, or runs next; the trainer's ``plan`` from now on.

    A callable order, or a sampler, is asked for it if it has not been: on every process, of which
    the first one's answer counts. What it gave holds until the epoch has ended, over stops,
    errors and resumes.
    """
    loader, epoch, plan = trainer.loader, trainer.progress.epoch, trainer.plan
    assert loader is not None
    asked = loader.asked_order(epoch)
    if asked is None:
        plan = loader.plan(epoch)
    elif plan is None or plan.epoch != epoch or plan.asked is not asked:
        plan = loader.plan(epoch)
        if trainer.world.size > 1 and isinstance(plan.indices, Tensor):
            plan = loader.cut(epoch, trainer.world.first_row(plan.indices))
    trainer.plan = plan
    return plan


def known_plan(trainer: Run, loader: Loader, epoch: int) -> Plan:
    """The plan of an epoch for whoever only looks: of an order that is asked, never asks.

    Then it is what the order gave for the epoch that runs or ran last, or else has its sizes alone.
    """
    asked, running = loader.asked_order(epoch), trainer.plan
    if asked is None:
        return loader.plan(epoch)
    if running is not None and running.asked is asked:
        return running
    return loader.outline(epoch)


def order_state(trainer: Run) -> dict[str, Any] | None:
    """What an order that is asked has given for the epoch that runs, and what it keeps itself.

    None for other orders, which are functions of the epoch.
    """
    loader, epoch, plan = trainer.loader, trainer.progress.epoch, trainer.plan
    asked = loader.asked_order(epoch) if loader is not None else None
    if asked is None:
        return None
    running = plan is not None and plan.epoch == epoch and plan.asked is asked
    # Draws are functions of a position, and whoever gave them gives them again.
    indices = plan.indices if running and plan is not None else None
    return {
        "epoch": epoch,
        "indices": indices if isinstance(indices, Tensor) else None,
        "source": asked.state_dict(),
    }


def kept_plan(state: Any, loader: Loader | None, epoch: int) -> Plan | None:
    """The plan that :func:`order_state` has kept, if any.

    Raises CheckpointError for anything that it does not give, or that does not fit the loader.
    """
    asked = loader.asked_order(epoch) if loader is not None else None
    if state is None or asked is None or loader is None:
        return None
    parts = {"epoch", "indices", "source"}
    demand(isinstance(state, dict) and set(state) == parts, "order: it is not what one has given")
    demand(isinstance(state["source"], dict), "order: source is not a mapping")
    demand(state["epoch"] == epoch, "order: it is of another epoch than the progress")
    if state["indices"] is None:
        return None
    try:
        return loader.cut(epoch, check_indices(state["indices"], loader.num_samples))
    except ConfigError as error:
        raise CheckpointError(f"the state's {error}") from error


def restore_source(state: Any, loader: Loader | None) -> None:
    """Give an order that is asked what it kept itself; raises CheckpointError if it can't be."""
    asked = loader.asked_order(state["epoch"]) if loader is not None and state else None
    if asked is None:
        return
    try:
        asked.load_state_dict(state["source"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the state of the order does not fit it: {error}") from error
