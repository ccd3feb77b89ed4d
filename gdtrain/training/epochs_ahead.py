"""Epochs of a few batches, which are read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import is_
from types import NoneType

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.loaders.loader import FormLoader, Loader
from gdtrain.data.samples import CUT_AT_ONCE, GATHER_BYTES, Samples, TensorSamples, cut
from gdtrain.data.sources import ArrangedSamples, rows_in_memory
from gdtrain.training.run import Run

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
        return torch.arange(plans[0].num_samples).repeat(len(plans))
    return torch.cat([indices for indices in given if isinstance(indices, Tensor)])
