"""What a loader is, and the three forms: every sample in one batch, one a batch, or B a batch."""

from __future__ import annotations

import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.phases import BatchSizes, following
from gdtrain.data.orders.asked_order import AskedOrder
from gdtrain.data.orders.order import (
    ORDER_VERSION,
    CheckedOrder,
    Order,
    Weighted,
    check_order,
    epoch_indices,
    reshuffles,
)
from gdtrain.data.orders.permutation import Draws
from gdtrain.data.samples import Samples, copies
from gdtrain.data.sources import Transform, as_samples
from gdtrain.data.streams.stream import StreamPlan, StreamSamples
from gdtrain.errors import ConfigError, DataError
from gdtrain.registry import OneOfKinds, OrderSetting, register_loader
from gdtrain.settings import LoaderSettings, Positive, Settings
from gdtrain.wording import counted, first_guesses


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
        return f"{counted(len(self.samples), 'sample')}, {updates} {which}"

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


logger = logging.getLogger("gdtrain")

# What is written here in place of what other libraries' loaders take.
_PAIR = "inputs and targets are one argument: {}, with options by name"
_PAIR_AND_SIZE = _PAIR.format("MiniBatchLoader((X, y), 32)")
_SHUFFLE = "is called order here: order='reshuffle' for True, order='sequential' for False"
_NO_SIZE = "is an argument of MiniBatchLoader: MiniBatchLoader((X, y), batch_size=32)"


class FormLoader(Loader):
    """What the three forms have in common.

    batch_size: None for every sample in one batch.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int | BatchSizes | None,
        order: Order | None,
        seed: int,
        drop_last: bool = False,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
        transform: Transform | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.seed = whole_number("seed", seed, minimum=0)
        self.samples: Samples = as_samples(
            data,
            num_workers=num_workers,
            collate_fn=collate_fn,
            seed=self.seed,
            allow_nonfinite=allow_nonfinite,
            transform=transform,
        )
        self.is_stream = isinstance(self.samples, StreamSamples)
        self.order: CheckedOrder = (
            self._stream_order(order)
            if self.is_stream
            else check_order(
                "reshuffle" if order is None else order, len(self.samples), self.seed, self.samples
            )
        )
        self.order_version = ORDER_VERSION
        self.drop_last = drop_last

    def __repr__(self) -> str:
        kind, size = type(self).__name__, self.batch_size
        order = self.order if isinstance(self.order, str) else type(self.order).__name__
        options = [] if size is None or kind == "SampleLoader" else [f"batch_size={size}"]
        options += [f"order={order}", f"seed={self.seed}"]
        return f"{kind}({', '.join([self.extent, *options])})"

    def plan(self, epoch: int) -> Plan:
        """Which samples form which batch in ``epoch`` (from 0); reads none of them.

        Raises ConfigError if ``drop_last`` leaves no batch at all.
        """
        epoch = whole_number("epoch", epoch, minimum=0)
        if isinstance(self.samples, StreamSamples):
            assert isinstance(self.batch_size, int)
            stream, drop_last = self.samples, self.drop_last
            return StreamPlan(epoch, 0, self.batch_size, None, samples=stream, drop_last=drop_last)
        num_samples = len(self.samples)
        if self.batch_size is None and isinstance(self.order, str) and self.order == "sequential":
            return Plan(epoch, num_samples, num_samples, None)
        indices = epoch_indices(self.order, num_samples, self.seed, epoch, self.order_version)
        return self._cut(epoch, num_samples if indices is None else len(indices), indices)

    def draws_of(self, epochs: range) -> Tensor:
        whole = self.plan(epochs[0])  # which alone says how many of an epoch's draws are used
        if not isinstance(whole.indices, Tensor) or self.order != "reshuffle":
            return super().draws_of(epochs)
        several = reshuffles(self.num_samples, self.seed, epochs, self.order_version)
        return several[:, : whole.num_samples].reshape(-1)

    def cut(self, epoch: int, indices: Tensor | Draws) -> Plan:
        return self._cut(epoch, len(indices), indices)

    def outline(self, epoch: int) -> Plan:
        if self.is_stream:
            return self.plan(epoch)
        if not isinstance(self.order, AskedOrder):
            return self._cut(epoch, self._draws, None)
        # Expected draws that do not fill a batch are no reason to refuse: there may be more.
        least = self._size_in(epoch) if self.drop_last else None
        draws, there = max(self.order.expected(), least or 1), self.num_samples
        # What is read by it is some samples, however many draws there are.
        indices = torch.arange(draws, device="cpu") % there if draws > there else None
        return self._cut(epoch, draws, indices)

    def asked_order(self, epoch: int) -> AskedOrder | None:
        return self.order if isinstance(self.order, AskedOrder) else None

    def num_batches(self, epoch: int) -> int:
        if isinstance(self.order, AskedOrder):
            return len(self._cut(epoch, self.order.count(epoch), None))
        return len(self.outline(epoch))

    def use_orders(self, version: int) -> None:
        self.order_version = version

    def turns(self, num_epochs: int) -> list[int]:
        if not isinstance(self.batch_size, BatchSizes):
            return [0]
        return [start for start, _, _ in self.batch_size.spans(num_epochs)]

    @property
    def is_even(self) -> bool:
        return not isinstance(self.batch_size, BatchSizes) or len(self.batch_size.pairs) == 1

    @property
    def calls_order(self) -> bool:
        return isinstance(self.order, AskedOrder)

    def fingerprint(self, version: int | None = None) -> dict[str, Any]:
        """What decides which samples come when, in numbers and words; alike for like loaders.

        ``data`` is a digest of the samples, None for a stream; see :meth:`Samples.fingerprint`.
        ``files``, where there are some, see :meth:`Samples.marks`, need not be alike.
        """
        version = version or self.order_version
        order: Any = self.order if isinstance(self.order, str) else repr(self.order)
        if isinstance(self.order, Tensor):
            order = f"{len(self.order)} indices, {zlib.crc32(self.order.numpy().tobytes()):08x}"
        size = self.batch_size
        marks = {
            "samples": None if self.is_stream else len(self.samples),
            "batch_size": str(size) if isinstance(size, BatchSizes) else size,
            "order": order,
            "seed": self.seed,
            "drop_last": self.drop_last,
            "data": self.samples.fingerprint(version),
        }
        files = self.samples.marks()
        named = {} if files is None else {"files": files}
        return marks if version == 1 else marks | {"orders": version} | named

    def _cut(self, epoch: int, draws: int, indices: Tensor | Draws | None) -> Plan:
        """The plan of an epoch of so many draws."""
        wanted = self._size_in(epoch)
        size = draws if wanted is None else min(wanted, draws)
        if self.drop_last and wanted is not None:
            self._check_drop_last(draws, wanted)
            draws -= draws % size
            if indices is not None:
                indices = indices.head(draws) if isinstance(indices, Draws) else indices[:draws]
        asked = self.order if isinstance(self.order, AskedOrder) else None
        return Plan(epoch, draws, size, indices, asked=asked)

    def _size_in(self, epoch: int) -> int | None:
        size = self.batch_size
        return size.at(epoch) if isinstance(size, BatchSizes) else size

    @property
    def _draws(self) -> int:
        """Draws in every epoch; an order that is asked alone decides it again for each."""
        of_its_own = isinstance(self.order, Tensor | Draws | Weighted)
        return len(self.order) if of_its_own else len(self.samples)  # type: ignore[arg-type]

    def _stream_order(self, order: Order | None) -> CheckedOrder:
        """A stream's own order. Raises ConfigError for another, or for one batch of everything."""
        if isinstance(self.batch_size, BatchSizes):
            message = "must be one number on a stream, which is one epoch"
            raise ConfigError.of("batch_size", message)
        if self.batch_size is None:
            raise ConfigError.of(
                "loader",
                "BatchLoader needs every sample for one update, and a stream has no last one; "
                "use MiniBatchLoader or SampleLoader",
            )
        if order is not None and not (isinstance(order, str) and order == "sequential"):
            raise ConfigError.of("order", "a stream comes in its own order; leave order out")
        return "sequential"

    @staticmethod
    def _check_drop_last(draws: int, batch_size: int) -> None:
        if draws < batch_size:
            raise ConfigError.of(
                "drop_last", f"leaves no batch: {draws} samples do not fill one of {batch_size}"
            )


class BatchSizePhase(Settings):
    """A batch size until the end of an epoch."""

    until_epoch: Positive | None = None
    """The last epoch with this batch size, counted from 1; omit it in the last phase."""
    value: Positive
    """Samples per update."""


class GrowingBatchSize(Settings):
    """B = min(largest, ⌊initial · factor^⌊e / every_n_epochs⌋⌋) in epoch e = 0, 1, …"""

    initial: Positive
    """Samples per update in the first epoch."""
    factor: Annotated[float, Field(ge=1.01, le=1e6)] = 2.0
    """By how much the batch size is multiplied each time."""
    every_n_epochs: Positive = 1
    """Number of epochs between two increases."""
    largest: Positive
    """The largest batch size."""

    @field_validator("largest")
    @classmethod
    def _over_initial(cls, value: int, info: ValidationInfo) -> int:
        initial = info.data.get("initial", 1)
        if value <= initial:
            raise ValueError(f"must be > {initial}, the initial batch size, got {value}")
        return value


class BatchSettings(LoaderSettings):
    """Every sample, then one update."""

    order: OrderSetting = "sequential"
    """The name of an order, or a list of sample indices."""

    def refuses(self, key: str, value: Any) -> str | None:
        if key == "variance_reduction" and value is not None and self.order != "replacement":
            return "has no effect under batch, whose gradient has no variance; remove it"
        return None


class SampleSettings(LoaderSettings):
    """One sample per update."""

    order: OrderSetting = "reshuffle"
    """The name of an order, or a list of sample indices."""


class MiniBatchSettings(LoaderSettings):
    """batch_size samples per update."""

    batch_size: Annotated[
        Any,
        OneOfKinds(
            one=Positive,
            several=Annotated[list[BatchSizePhase], Field(min_length=1), AfterValidator(following)],
            mapping=GrowingBatchSize,
        ),
    ]
    """Samples per update; the last batch of an epoch has the rest. One number, or numbers that
    change with the epoch: a list of {until_epoch, value}, or {initial, factor, every_n_epochs,
    largest} (Smith et al., 2018)."""
    order: OrderSetting = "reshuffle"
    """The name of an order, or a list of sample indices."""
    drop_last: bool = False
    """Drop the last batch of an epoch if it is not full."""


@register_loader("batch", BatchSettings)
class BatchLoader(FormLoader):
    """Batch gradient descent: every sample, then one update.

    data: inputs and targets as tensors or arrays, ``(X, y)`` or ``(X1, X2, y)``, each
    [n, …] with any trailing shape; or a map-style torch ``Dataset``.
    order: the order of the samples inside the batch; see
    :func:`gdtrain.data.orders.order.epoch_indices`.
    seed: determines the order, together with the epoch. Global RNG state does not.
    num_workers, collate_fn: as in ``torch.utils.data.DataLoader``; only for a ``Dataset``.
    allow_nonfinite: accept NaN and infinity in the data, for models that mask them.
    transform: ``(sample, generator) -> sample``, applied to each sample as it is read, such as a
    random crop; a sample is ``(x, y)``, or an item of the Dataset. The torch.Generator is seeded
    from (seed, epoch, index). ``evaluate`` reads samples as in epoch 0.

    Raises DataError for data that can't be used and ConfigError for a wrong setting.

    >>> import torch
    >>> from gdtrain import BatchLoader
    >>> loader = BatchLoader((torch.zeros(500, 2), torch.zeros(500, 1)))
    >>> [len(batch) for batch in loader]
    [500]
    """

    @first_guesses(
        by_place=_PAIR.format("BatchLoader((X, y))"), batch_size=_NO_SIZE, shuffle=_SHUFFLE
    )
    def __init__(
        self,
        data: Any,
        *,
        order: Order = "sequential",
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(
            data,
            batch_size=None,
            order=order,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_fn,
            allow_nonfinite=allow_nonfinite,
            transform=transform,
        )


@register_loader("sample", SampleSettings)
class SampleLoader(FormLoader):
    """Stochastic gradient descent in its classic form: one sample per update.

    A batch keeps its batch dimension: inputs are [1, …]. order: ``reshuffle`` if left out; a
    stream, such as an ``IterableDataset``, has its own. Other arguments as in
    :class:`BatchLoader`.

    >>> import torch
    >>> from gdtrain import SampleLoader
    >>> loader = SampleLoader((torch.zeros(500, 2), torch.zeros(500, 1)))
    >>> len(list(loader)), next(iter(loader)).inputs.shape
    (500, torch.Size([1, 2]))
    """

    @first_guesses(
        by_place=_PAIR.format("SampleLoader((X, y))"), batch_size=_NO_SIZE, shuffle=_SHUFFLE
    )
    def __init__(
        self,
        data: Any,
        *,
        order: Order | None = None,
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(
            data,
            batch_size=1,
            order=order,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_fn,
            allow_nonfinite=allow_nonfinite,
            transform=transform,
        )


@register_loader("minibatch", MiniBatchSettings)
class MiniBatchLoader(FormLoader):
    """Mini-batch gradient descent: ``batch_size`` samples per update.

    batch_size: a number, or one for each epoch: :class:`BatchSizes`, its pairs,
    ``[(5, 32), (None, 128)]``, or what a configuration says of these. The last batch of an epoch
    has the remaining samples, and makes an update like any other; ``drop_last`` drops it. A batch
    size above n gives one batch of n.
    Other arguments as in :class:`SampleLoader`.

    >>> import torch
    >>> from gdtrain import MiniBatchLoader
    >>> loader = MiniBatchLoader((torch.zeros(7, 2), torch.zeros(7, 1)), batch_size=3)
    >>> [len(batch) for batch in loader]
    [3, 3, 1]
    """

    @first_guesses(by_place=_PAIR_AND_SIZE, shuffle=_SHUFFLE)
    def __init__(
        self,
        data: Any,
        batch_size: int
        | BatchSizes
        | Sequence[tuple[int | None, int] | BatchSizePhase]
        | GrowingBatchSize,
        *,
        order: Order | None = None,
        seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
        transform: Transform | None = None,
    ) -> None:
        if getattr(batch_size, "ndim", 0) > 0:
            raise ConfigError.of("data", _PAIR_AND_SIZE)
        if isinstance(batch_size, list | tuple | GrowingBatchSize):
            batch_size = _sizes_of(batch_size)
        elif not isinstance(batch_size, BatchSizes):
            batch_size = whole_number("batch_size", batch_size, minimum=1)
        super().__init__(
            data,
            batch_size=batch_size,
            order=order,
            seed=seed,
            drop_last=drop_last,
            num_workers=num_workers,
            collate_fn=collate_fn,
            allow_nonfinite=allow_nonfinite,
            transform=transform,
        )
        if self.is_stream or isinstance(self.order, AskedOrder):
            return
        largest = max(batch_size.values) if isinstance(batch_size, BatchSizes) else batch_size
        if largest > self._draws:
            if drop_last:
                self._check_drop_last(self._draws, largest)
            logger.warning(
                "batch_size %s is over the %s: each epoch is one batch of %s",
                f"{largest:,}",
                counted(self._draws, "sample"),
                f"{self._draws:,}",
            )


def _sizes_of(phases: Any) -> BatchSizes:
    """Batch sizes as pairs, or as a configuration says them."""
    if isinstance(phases, GrowingBatchSize):
        return BatchSizes.growing(**dict(phases))
    if all(isinstance(phase, BatchSizePhase) for phase in phases):
        phases = [(phase.until_epoch, phase.value) for phase in phases]
    return BatchSizes(phases)
