"""What a loader hands over: the plan of an epoch, its batches, and blocks of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.orders.asked_order import AskedOrder
from gdtrain.data.orders.permutation import Draws
from gdtrain.data.tree import Cutter, Rows, copied
from gdtrain.errors import ConfigError
from gdtrain.wording import counted


class Batch:
    """The samples of one update.

    inputs: [B, …]; a tuple of such tensors if the data has several inputs. For a Dataset,
        whatever its collate function makes: dicts, lists and dataclasses of these, names, numbers.
    targets: [B, …], or None for data without targets.
    indices: [B] int64 on the CPU, the samples' indices in the data set.

    ``len(batch)`` is the number of samples B. ``inputs, targets = batch`` unpacks a batch, as
    DataLoader users expect. is_view: whether tensors share the data set's memory, which a model
    that works in place would change.

    >>> import torch
    >>> from gdtrain import MiniBatchLoader
    >>> X, y = torch.arange(6.0).view(3, 2), torch.arange(3.0).view(3, 1)
    >>> batch = next(iter(MiniBatchLoader((X, y), batch_size=2, order="sequential")))
    >>> len(batch), batch.inputs.tolist(), batch.indices.tolist()
    (2, [[0.0, 1.0], [2.0, 3.0]], [0, 1])
    """

    __slots__ = ("indices", "inputs", "targets")
    is_view = False
    is_lazy = False  # read when it is touched
    _cutter = Cutter()

    def __init__(self, inputs: Any, targets: Any, indices: Tensor) -> None:
        self.inputs = inputs
        self.targets = targets
        self.indices = indices

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __iter__(self) -> Iterator[Any]:
        yield self.inputs
        yield self.targets

    def __repr__(self) -> str:
        return f"Batch({counted(len(self), 'sample')})"

    def split(self, size: int) -> Iterator[Batch]:
        """The batch as consecutive microbatches of ``size`` samples; the last may be shorter.

        Raises DataError for what can't be cut into samples; see :meth:`take`.
        """
        length = len(self)
        if 0 < length <= size:
            yield self
            return
        for start in range(0, length, size):
            yield self.take(slice(start, start + size))

    def take(self, rows: Rows) -> Batch:
        """Some of the batch's samples: a slice of them, or their numbers in it, [k] int64.

        Tensors and arrays [B, …] are cut along their first dimension, lists of B things as well,
        and single numbers, tensors of shape [], text and None are left whole. Raises DataError for
        anything else, such as a tensor whose first dimension is another.
        """
        kind = ViewBatch if self.is_view else Batch
        return kind(*self._taken(rows), self.indices[rows])

    def _taken(self, rows: Rows) -> tuple[Any, Any]:
        cut, length = self._cutter.cut, len(self)
        inputs = cut(self.inputs, length, rows, ("inputs",))
        return inputs, cut(self.targets, length, rows, ("targets",))

    def copy(self) -> Batch:
        """The batch with copies of all its tensors and arrays."""
        return Batch(copied(self.inputs), copied(self.targets), self.indices)

    def with_trees(self, inputs: Any, targets: Any) -> Batch:
        """The same samples with other inputs and targets of them."""
        return Batch(inputs, targets, self.indices)

    def describe(self, row: int) -> str:
        """Which sample the batch has at ``row``, in words."""
        return f"sample {int(self.indices[row])}"


class ViewBatch(Batch):
    """A batch whose tensors are the data set's own memory."""

    __slots__ = ()
    is_view = True

    def with_trees(self, inputs: Any, targets: Any) -> Batch:
        return ViewBatch(inputs, targets, self.indices)  # they may be parts of the same memory


@dataclass(frozen=True)
class Plan:
    """Which samples form which batch in one epoch; nothing has been read yet.

    epoch: the epoch it is for, from 0.
    num_samples: number of draws in the epoch, without those of a dropped last batch.
    batch_size: samples of every batch except the last, which may have fewer.
    indices: [num_samples] int64, or None for 0 … num_samples - 1 in sequence. For a large data set
        they are :class:`~gdtrain.data.orders.permutation.Draws`, which are sliced and indexed in
        the same way.
    rank, world_size: the process, of ``world_size`` processes, that reads with this plan. It reads
        a contiguous share of every batch; shares differ by one sample at most, and may be empty.
    asked: the order that gave the indices, if they can't be computed again.
    sizes: the number of samples of each batch, if they differ; then batch_size is the largest.
        See :meth:`of_batches`.

    ``len(plan)`` is the number of batches, and so of updates.

    >>> import torch
    >>> from gdtrain import Plan
    >>> plan = Plan(epoch=0, num_samples=5, batch_size=2, indices=torch.tensor([4, 1, 0, 3, 2]))
    >>> len(plan), plan.batch_indices(0).tolist(), plan.batch_sizes(0, 3)
    (3, [4, 1], [2, 2, 1])
    """

    epoch: int
    num_samples: int
    batch_size: int
    indices: Tensor | Draws | None
    rank: int = 0
    world_size: int = 1
    asked: AskedOrder | None = field(default=None, repr=False, compare=False)
    sizes: tuple[int, ...] | None = field(default=None, repr=False)

    @classmethod
    def of_batches(cls, epoch: int, batches: Iterable[Any]) -> Plan:
        """A plan from a list of batches, each given as the indices of its samples.

        batches: rows of whole numbers, as tensors, arrays or lists, of any lengths >= 1. Raises
        ConfigError for others: a batch makes an update, and an empty batch has no loss.

        >>> plan = Plan.of_batches(0, [[3, 1], [0, 2, 4]])
        >>> plan.batch_sizes(0, len(plan)), plan.batch_indices(1).tolist()
        ([2, 3], [0, 2, 4])
        """
        rows = [torch.as_tensor(batch, device="cpu") for batch in batches]
        if not rows:
            raise ConfigError.of("loader", f"gave no batch in epoch {epoch}; give at least one")
        for number, row in enumerate(rows):
            if row.ndim != 1 or not len(row) or row.is_floating_point():
                text = f"gave as batch {number} of epoch {epoch} no row of indices, but "
                text += f"{row.dtype} of shape {list(row.shape)}; leave out batches without samples"
                raise ConfigError.of("loader", text)
        sizes = tuple(len(row) for row in rows)
        return cls(epoch, sum(sizes), max(sizes), torch.cat(rows).long(), sizes=sizes)

    @cached_property
    def _first_draws(self) -> list[int]:
        """The first draw of each batch, and one after the last, of batches of several sizes."""
        return [0, *accumulate(self.sizes or ())]

    def first_draw(self, number: int) -> int:
        """Where batch ``number`` starts among the epoch's draws."""
        return number * self.batch_size if self.sizes is None else self._first_draws[number]

    def batches_with(self, draws: int) -> int:
        """How many batches the first ``draws`` draws are in."""
        if self.sizes is not None:
            return bisect_left(self._first_draws, draws)
        return -(-draws // self.batch_size)

    def __len__(self) -> int:
        if self.sizes is not None:
            return len(self.sizes)
        return -(-self.num_samples // self.batch_size)

    def __bool__(self) -> bool:
        return True  # a stream's has no length

    @property
    def num_batches(self) -> int | None:
        """How many batches there will be; None for a stream, where nobody knows."""
        return len(self)

    def remaining(self, start: int) -> int:
        """How many batches are there to be read from number ``start`` on.

        All that are left; of a stream, those that have arrived, waiting a moment for the first.
        """
        return len(self) - start

    def is_over(self, start: int) -> bool:
        """Whether there are no batches from number ``start`` on, and will be none."""
        if self.sizes is not None:
            return start >= len(self.sizes)
        return start * self.batch_size >= self.num_samples

    def seek(self, start: int, position: list[int] | None) -> None:
        """Go on from batch ``start``, before which :meth:`release` gave ``position``."""

    def release(self, stop: int) -> list[int] | None:
        """Be done with the batches before ``stop``; return where a stream stands then, else None.

        What the numbers mean is known to the stream's source alone.
        """
        return None

    def is_like(self, other: Plan) -> bool:
        """Whether both have batches of the same sizes."""
        return (
            self.num_samples == other.num_samples
            and self.batch_size == other.batch_size
            and self.sizes == other.sizes
        )

    def ends(self) -> list[int]:
        """The first batch and the last, as far as they are known."""
        return sorted({0, len(self) - 1})

    @property
    def smallest_batch(self) -> int:
        """Samples of the shortest batch that may come."""
        return min(self.sizes or self.batch_sizes(len(self) - 1, len(self)))

    def share(self, rank: int, world_size: int) -> Plan:
        """The plan by which one of ``world_size`` processes reads."""
        if (rank, world_size) == (self.rank, self.world_size):
            return self
        return replace(self, rank=rank, world_size=world_size)

    def bounds(self, number: int) -> tuple[int, int]:
        """Where this rank's share of batch ``number`` starts and stops among the epoch's draws."""
        start = self.first_draw(number)
        (size,) = self.batch_sizes(number, number + 1)
        low, high = self.rank * size, (self.rank + 1) * size
        return start + low // self.world_size, start + high // self.world_size

    def take(self, start: int, stop: int) -> Tensor:
        """The sample indices of draws ``start`` … ``stop - 1``, [stop - start] int64.

        They are the caller's: a model that writes to a batch's indices leaves the plan as it is.
        """
        if self.indices is None:
            return torch.arange(start, stop, device="cpu")
        taken = self.indices[start:stop]
        return taken.clone() if isinstance(self.indices, Tensor) else taken

    def rows(self, first: int, last: int) -> tuple[Tensor | None, int, list[int]]:
        """What to read for this rank's shares of the batches ``first`` … ``last - 1``.

        Returns their sample indices, one batch after the other, or None for consecutive
        samples; the first sample; and the size of each share.
        """
        if self.world_size == 1:
            start = first * self.batch_size if self.sizes is None else self.first_draw(first)
            sizes = self.batch_sizes(first, last)
            chosen = None if self.indices is None else self.take(start, start + sum(sizes))
            return chosen, start, sizes
        bounds = [self.bounds(number) for number in range(first, last)]
        sizes = [stop - start for start, stop in bounds]
        if self.indices is None and last - first == 1:
            return None, bounds[0][0], sizes
        positions = torch.cat([torch.arange(start, stop, device="cpu") for start, stop in bounds])
        return positions if self.indices is None else self.indices[positions], 0, sizes

    def batch_indices(self, number: int) -> Tensor:
        """The sample indices of this rank's share of batch ``number``, [B] int64."""
        return self.take(*self.bounds(number))

    def batch_sizes(self, start: int, stop: int) -> list[int]:
        """The samples, on all ranks, of each of the batches ``start`` … ``stop - 1``."""
        if self.sizes is not None:
            return list(self.sizes[start:stop])
        sizes = [self.batch_size] * (stop - start)
        if sizes and stop * self.batch_size > self.num_samples:
            sizes[-1] = self.num_samples - (stop - 1) * self.batch_size
        return sizes


@dataclass(slots=True)  # not frozen: that takes three times as long to make
class Block:
    """A run of consecutive steps in which nobody needs to look.

    plan: of the epoch in which it starts; start, stop: its batches ``start`` … ``stop - 1``. A
        block that reaches over the ends of epochs, whose batches all have the same sizes, counts
        on: where ``len(plan)`` is 8, batch 9 is the second one of the next epoch.
    batches: those batches, on the device, read as they are iterated.
    losses, weights, made: of each update as it is made, in order: the batch's loss before it, [],
        detached; what that loss is divided by; the samples on all ranks. Empty where an engine
        makes all updates at once.
    terms: of updates of which there are some, by their place in the block: the terms of the loss by
        name, each this process's share, and other numbers that were logged.
    rates: the learning rates, each with the number of updates that the block had made before it.
    added: of how many updates the losses are in the sums of epochs.
    is_undisturbed: whether nobody else's code runs between the updates.
    """

    plan: Plan
    start: int
    stop: int
    batches: Iterable[Batch]
    losses: list[Tensor] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    terms: dict[int, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    rates: list[tuple[int, float]] = field(default_factory=list)
    added: int = 0
    is_undisturbed: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    def note(self, loss: Tensor, weight: Any, size: int) -> None:
        """Keep what is known of an update that has been made."""
        self.losses.append(loss)
        self.weights.append(weight)
        self.made.append(size)

    def terms_of(self, step: int) -> dict[str, float]:
        """The terms and logged numbers of the block's update number ``step``, from 0."""
        of_loss, logged = self.terms.get(step, ({}, {}))
        return {name: float(value) for name, value in {**of_loss, **logged}.items()}

    def note_rate(self, rate: float | Tensor) -> None:
        """Keep the learning rate of the update that has been noted last."""
        if not self.rates or self.rates[-1][1] != rate:
            self.rates.append((len(self.made) - 1, float(rate)))

    def rate(self, step: int) -> float:
        """The learning rate of the block's update number ``step``, from 0."""
        return self.rates[bisect_right(self.rates, step, key=itemgetter(0)) - 1][1]

    def rates_at(self, steps: Iterable[int]) -> list[float]:
        """Those of several updates."""
        if len(self.rates) == 1:
            return [self.rates[0][1] for _ in steps]
        return [self.rate(step) for step in steps]

    def epoch(self, step: int) -> int:
        """The epoch, from 0, of the block's update number ``step``."""
        if self.plan.num_batches is None:
            return self.plan.epoch
        return self.plan.epoch + (self.start + step) // len(self.plan)

    def head(self, steps: int) -> Block:
        """The block of its first ``steps`` steps."""
        return self if steps == len(self) else replace(self, stop=self.start + steps)

    @property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The number of samples of each step, on all ranks, [steps]; the last may be smaller."""
        return self.sizes_of(0, len(self))

    def sizes_of(self, first: int, last: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Those of the steps ``first`` … ``last - 1``."""
        if self.made:
            return np.array(self.made[first:last], np.int64)
        start, stop, batches = self.start + first, self.start + last, self.plan.num_batches
        if batches is not None and stop > batches:
            skipped = start // batches
            of_epoch = np.array(self.plan.batch_sizes(0, batches), np.int64)
            several = np.tile(of_epoch, -(-stop // batches) - skipped)
            return several[start - skipped * batches :][: last - first]
        if self.plan.sizes is not None:
            return np.array(self.plan.batch_sizes(start, stop), np.int64)
        sizes = np.full(stop - start, self.plan.batch_size, np.int64)
        sizes[-1:] = self.plan.batch_sizes(stop - 1, stop)
        return sizes
