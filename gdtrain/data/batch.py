"""What a loader hands over: the plan of an epoch, its batches, and blocks of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.asked_order import AskedOrder
from gdtrain.data.bijection import Draws


class Batch:
    """The samples of one update.

    inputs: [B, …]; a tuple of such tensors where the data has several inputs.
    targets: [B, …], or None for data without targets.
    indices: [B] int64 on the CPU, the samples' places in the data set.

    ``len(batch)`` is B. ``inputs, targets = batch`` unpacks, as DataLoader users expect.
    """

    __slots__ = ("indices", "inputs", "targets")

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
        return f"Batch({len(self)} samples)"

    def split(self, size: int) -> Iterator[Batch]:
        """The batch as consecutive microbatches of ``size`` samples; the last may be shorter."""
        for start in range(0, len(self), size):
            cut = slice(start, start + size)
            yield Batch(
                map_tensors(self.inputs, lambda t, cut=cut: t[cut]),
                map_tensors(self.targets, lambda t, cut=cut: t[cut]),
                self.indices[cut],
            )


def map_tensors(tree: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor in nested tuples, lists and dicts; leave the rest."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple | list):
        items = [map_tensors(item, function) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, Mapping):
        return {key: map_tensors(item, function) for key, item in tree.items()}
    return tree


@dataclass(frozen=True)
class Plan:
    """Which samples form which batch in one epoch; nothing has been read yet.

    epoch: the epoch it is for, from 0.
    num_samples: draws in the epoch, those of a dropped ragged batch not counted.
    batch_size: samples of every batch but the last, which may have fewer.
    indices: [num_samples] int64, or None for 0 … num_samples - 1 in sequence. Of a large data set
        they are :class:`~gdtrain.data.bijection.Draws`, which are sliced and indexed alike.
    rank, world_size: of ``world_size`` processes, the one that reads by this plan. It reads its
        contiguous share of every batch; shares differ by one sample at most, and may be empty.
    asked: the order that was asked for the indices, where they can't be computed anew.

    ``len(plan)`` is the number of batches, and so of updates.
    """

    epoch: int
    num_samples: int
    batch_size: int
    indices: Tensor | Draws | None
    rank: int = 0
    world_size: int = 1
    asked: AskedOrder | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __bool__(self) -> bool:
        return True  # a stream's has no length

    @property
    def num_batches(self) -> int | None:
        """How many batches there will be; None for a stream, where nobody knows."""
        return -(-self.num_samples // self.batch_size)

    def remaining(self, start: int) -> int:
        """How many batches are there to be read from number ``start`` on.

        All that are left; of a stream, those that have arrived, waiting a moment for the first.
        """
        return len(self) - start

    def is_over(self, start: int) -> bool:
        """Whether there are no batches from number ``start`` on, and will be none."""
        return start * self.batch_size >= self.num_samples

    def seek(self, start: int, position: list[int] | None) -> None:
        """Go on from batch ``start``, before which :meth:`release` gave ``position``."""

    def release(self, stop: int) -> list[int] | None:
        """Be done with the batches before ``stop``; return where a stream stands then, else None.

        What the numbers mean is known to the stream's source alone.
        """
        return None

    def ends(self) -> list[int]:
        """The first batch and the last, as far as they are known."""
        return sorted({0, len(self) - 1})

    @property
    def smallest_batch(self) -> int:
        """Samples of the shortest batch that may come."""
        return self.num_samples - (len(self) - 1) * self.batch_size

    def share(self, rank: int, world_size: int) -> Plan:
        """The plan by which one of ``world_size`` processes reads."""
        if (rank, world_size) == (self.rank, self.world_size):
            return self
        return replace(self, rank=rank, world_size=world_size)

    def bounds(self, number: int) -> tuple[int, int]:
        """Where this rank's share of batch ``number`` starts and stops among the epoch's draws."""
        start = number * self.batch_size
        size = min(self.batch_size, self.num_samples - start)
        low, high = self.rank * size, (self.rank + 1) * size
        return start + low // self.world_size, start + high // self.world_size

    def take(self, start: int, stop: int) -> Tensor:
        """The sample indices of draws ``start`` … ``stop - 1``, [stop - start] int64."""
        if self.indices is None:
            return torch.arange(start, stop)
        return self.indices[start:stop]

    def rows(self, first: int, last: int) -> tuple[Tensor | None, int, list[int]]:
        """What to read for this rank's shares of the batches ``first`` … ``last - 1``.

        Returns their sample indices, one batch after the other, or None for consecutive
        samples; the first sample; and the size of each share.
        """
        if self.world_size == 1:
            start = first * self.batch_size
            sizes = self.batch_sizes(first, last)
            chosen = None if self.indices is None else self.take(start, start + sum(sizes))
            return chosen, start, sizes
        bounds = [self.bounds(number) for number in range(first, last)]
        sizes = [stop - start for start, stop in bounds]
        if self.indices is None and last - first == 1:
            return None, bounds[0][0], sizes
        positions = torch.cat([torch.arange(start, stop) for start, stop in bounds])
        return positions if self.indices is None else self.indices[positions], 0, sizes

    def batch_indices(self, number: int) -> Tensor:
        """The sample indices of this rank's share of batch ``number``, [B] int64."""
        return self.take(*self.bounds(number))

    def batch_sizes(self, start: int, stop: int) -> list[int]:
        """The samples, on all ranks, of each of the batches ``start`` … ``stop - 1``."""
        sizes = [self.batch_size] * (stop - start)
        if sizes and stop * self.batch_size > self.num_samples:
            sizes[-1] = self.num_samples - (stop - 1) * self.batch_size
        return sizes


@dataclass(slots=True)  # not frozen: that takes three times as long to make
class Block:
    """A run of consecutive steps of one epoch in which nobody needs to look.

    plan: the epoch's plan; start, stop: its batches ``start`` … ``stop - 1``.
    batches: those batches, on the device, read as they are iterated.
    losses, weights, made: of each update as it is made, in order: the batch's loss before it, [],
        detached; what that loss is divided by; the samples on all ranks. Empty where an engine
        makes all updates at once.
    """

    plan: Plan
    start: int
    stop: int
    batches: Iterable[Batch]
    losses: list[Tensor] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    made: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.stop - self.start

    def note(self, loss: Tensor, weight: Any, size: int) -> None:
        """Keep what is known of an update that has been made."""
        self.losses.append(loss)
        self.weights.append(weight)
        self.made.append(size)

    def head(self, steps: int) -> Block:
        """The block of its first ``steps`` steps."""
        return self if steps == len(self) else replace(self, stop=self.start + steps)

    @property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The number of samples of each step, on all ranks, [steps]; the last may be smaller."""
        if self.made:
            return np.array(self.made, np.int64)
        sizes = np.full(self.stop - self.start, self.plan.batch_size, np.int64)
        sizes[-1:] = self.plan.batch_sizes(self.stop - 1, self.stop)
        return sizes
