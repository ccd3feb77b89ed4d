"""What a loader is: the batches of each epoch as a pure function of the epoch, and an iterable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.orders.asked_order import AskedOrder
from gdtrain.data.orders.order import ORDER_VERSION
from gdtrain.data.orders.permutation import Draws
from gdtrain.data.samples import Samples, copies
from gdtrain.data.sources import as_samples
from gdtrain.data.streams.stream import StreamPlan, StreamSamples
from gdtrain.data.wording import counted
from gdtrain.errors import ConfigError, DataError


class Loader(ABC):
    """Cuts each epoch of a data set into batches, one batch for one update.

    A loader is a pure function of its arguments: ``plan(epoch)`` says which samples form which
    batch. It is also an iterable for hand-written loops; see ``__iter__``.

    A loader of your own needs only :meth:`plan`; everything else follows from it.
    data, seed, and num_workers, collate_fn, allow_nonfinite and transform: as for
    :class:`BatchLoader`; a stream's batches are those of MiniBatchLoader.

    samples: the source of the batches. is_stream: whether samples are read as they arrive.

    >>> import torch
    >>> from gdtrain import Loader, Plan
    >>> class Thirds(Loader):
    ...     def plan(self, epoch):
    ...         third = self.num_samples // 3
    ...         return Plan.of_batches(epoch, torch.arange(self.num_samples).tensor_split([third]))
    >>> [len(batch) for batch in Thirds((torch.zeros(9, 2), torch.zeros(9, 1)))]
    [3, 6]
    """

    samples: Samples
    seed: int = 0
    is_stream: bool = False
    _next_epoch: int = 0
    _pinned_epoch: int | None = None

    def __init__(self, data: Any, *, seed: int = 0, **reading: Any) -> None:
        self.seed = whole_number("seed", seed, minimum=0)
        self.samples = as_samples(data, seed=self.seed, **reading)
        if isinstance(self.samples, StreamSamples):
            text = f"{type(self).__name__} can't cut a stream; use MiniBatchLoader or SampleLoader"
            raise ConfigError.of("loader", text)

    @abstractmethod
    def plan(self, epoch: int) -> Plan:
        """Which samples form which batch in ``epoch`` (from 0); reads none of them.

        The result is always the same for the same epoch: all randomness comes from :attr:`seed` and
        the epoch.
        """

    def cut(self, epoch: int, indices: Tensor | Draws) -> Plan:
        """The plan of ``epoch`` in which the samples come as in ``indices``, given before.

        Only of loaders with an :meth:`asked_order`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no order that is asked")

    def draws_of(self, epochs: range) -> Tensor:
        """The sample indices of several epochs, one after the other, [draws] int64."""
        plans = [self.plan(epoch) for epoch in epochs]
        return torch.cat([plan.take(0, plan.num_samples) for plan in plans])

    def outline(self, epoch: int) -> Plan:
        """:meth:`plan` for its sizes alone, whose indices need not be right.

        Never asks a callable order: of one, the sizes are those that are :meth:`expected
        <gdtrain.data.orders.asked_order.AskedOrder.expected>`.
        """
        return self.plan(epoch)

    def asked_order(self, epoch: int) -> AskedOrder | None:
        """The order of ``epoch``, where it is a callable or a sampler."""
        return None

    def num_batches(self, epoch: int) -> int:
        """Batches of ``epoch``, which a callable order is asked for, if it has to be."""
        return len(self.outline(epoch))

    def use_orders(self, version: int) -> None:  # noqa: B027
        """Go on with the orders of this :data:`~gdtrain.data.orders.order.ORDER_VERSION`."""

    def turns(self, num_epochs: int) -> Sequence[int]:
        """The epochs, of 0 … num_epochs - 1, from which on batches are of another size; 0 first.

        All of them, unless more is known. A callable order may change them unannounced.
        """
        return range(num_epochs)

    @property
    def is_even(self) -> bool:
        """Whether all epochs have batches of the same sizes, as far as is known."""
        return False

    @property
    def has_known_plans(self) -> bool:
        """Whether the project's code alone makes the plans, as far as no order is a callable.

        Else somebody's may look at the model, and is to be called in the moment.
        """
        kind = type(self)
        if not all(of.__module__.startswith("gdtrain.") for of in (kind, kind.plan)):
            return False
        return not any(map(callable, vars(self).values()))  # put in the place of a method

    @property
    def calls_order(self) -> bool:
        """Whether an order is a callable, which may look at the model."""
        return False

    def fingerprint(self, version: int | None = None) -> dict[str, Any]:
        """What decides which samples come when, in numbers and words; alike for like loaders.

        Of a form of your own its public attributes that are numbers and words, unless it says so
        itself. version: that of the orders, if they were others than the loader's, as ``orders``
        says. What was made by version 1 lacks that key.
        """
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        marks = {"loader": type(self).__name__, "samples": self.num_samples}
        marks |= {n: v for n, v in plain.items() if isinstance(v, bool | int | float | str)}
        marks |= {"data": self.samples.fingerprint(version or ORDER_VERSION)}
        return marks if version == 1 else marks | {"orders": version or ORDER_VERSION}

    @property
    def num_samples(self) -> int:
        """Samples in the data set. Raises DataError for a stream, where nobody knows."""
        if self.is_stream:
            raise DataError("a stream has no number of samples, and can't be evaluated as a whole")
        return len(self.samples)

    def updates(self, num_epochs: int) -> int:
        """How many batches the epochs 0 … num_epochs - 1 have in all; of no stream."""
        starts = [*self.turns(num_epochs), num_epochs]
        return sum(len(self.outline(a)) * (b - a) for a, b in pairwise(starts))

    def smallest_batch(self, num_epochs: int) -> int:
        """Samples of the shortest batch that may come in the epochs 0 … num_epochs - 1."""
        return min(self.outline(epoch).smallest_batch for epoch in self.turns(num_epochs))

    def largest_batch(self, num_epochs: int) -> int:
        """Samples of the largest batch in those epochs."""
        return max(self.outline(epoch).batch_size for epoch in self.turns(num_epochs))

    @property
    def extent(self) -> str:
        """How much there is, in words."""
        if self.is_stream:
            return "a stream"
        updates = counted(len(self.outline(0)), "update")
        which = "an epoch" if self.is_even else "in the first epoch"
        return f"{counted(self.num_samples, 'sample')}, {updates} {which}"

    def __len__(self) -> int:
        """Batches of the next iteration, and so of the next epoch by hand; of no stream."""
        if self.is_stream:
            raise TypeError("a stream has no length")
        return self.num_batches(self._iteration_epoch)

    def __bool__(self) -> bool:
        return True  # or Python would ask for the length, and that a callable order

    def __iter__(self) -> Iterator[Batch]:
        """One epoch of batches for a hand-written loop, in a fresh order at each iteration.

        The epochs count 0, 1, 2, …, unless :meth:`set_epoch` has pinned one. The trainer never
        uses or moves this cursor. The batches are copies: work on them in place leaves the data
        alone.
        """
        epoch = self._iteration_epoch
        self._next_epoch = epoch + 1
        plan = self.plan(epoch)
        return copies(
            plan.each_batch() if isinstance(plan, StreamPlan) else self.samples.read(plan)
        )

    def set_epoch(self, epoch: int | None) -> None:
        """Pin the epoch that iterations give; None lets them count on from the last one."""
        self._pinned_epoch = None if epoch is None else whole_number("epoch", epoch, minimum=0)

    @property
    def _iteration_epoch(self) -> int:
        return self._next_epoch if self._pinned_epoch is None else self._pinned_epoch
