"""The three loaders: every sample in one batch, one sample a batch, or B samples a batch."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.bijection import Draws
from gdtrain.data.order import Order, check_order, epoch_indices
from gdtrain.data.samples import Samples
from gdtrain.data.settings import whole_number
from gdtrain.data.sources import as_samples
from gdtrain.data.stream import StreamPlan, StreamSamples
from gdtrain.errors import ConfigError, DataError

logger = logging.getLogger("gdtrain")


class Loader:
    """Cuts each epoch of a data set into batches, one batch for one update.

    A loader is a pure function of its arguments: ``plan(epoch)`` says which samples form which
    batch. It is also an iterable for hand-written loops; see ``__iter__``. Use one of its three
    forms, :class:`BatchLoader`, :class:`SampleLoader` and :class:`MiniBatchLoader`.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int | None,
        order: Order | None,
        seed: int,
        drop_last: bool = False,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.seed = whole_number("seed", seed, minimum=0)
        self.samples: Samples = as_samples(
            data,
            num_workers=num_workers,
            collate_fn=collate_fn,
            seed=self.seed,
            allow_nonfinite=allow_nonfinite,
        )
        self.is_stream = isinstance(self.samples, StreamSamples)
        if self.is_stream:
            order = self._stream_order(order)
        else:
            order = check_order("reshuffle" if order is None else order, len(self.samples))
        self.order: Order = order
        self.drop_last = drop_last
        self._next_epoch = 0
        self._pinned_epoch: int | None = None

    @property
    def num_samples(self) -> int:
        """Samples in the data set. Raises DataError for a stream, where nobody knows."""
        if self.is_stream:
            raise DataError("a stream has no number of samples, and can't be evaluated as a whole")
        return len(self.samples)

    @property
    def extent(self) -> str:
        """How much there is, in words."""
        if self.is_stream:
            return "a stream"
        return f"{self.num_samples:,} samples, {len(self):,} updates an epoch"

    def plan(self, epoch: int) -> Plan:
        """Which samples form which batch in ``epoch`` (from 0); reads none of them.

        Raises ConfigError if ``drop_last`` leaves no batch at all.
        """
        epoch = whole_number("epoch", epoch, minimum=0)
        if self.is_stream:
            assert self.batch_size is not None
            assert isinstance(self.samples, StreamSamples)
            stream, drop_last = self.samples, self.drop_last
            return StreamPlan(epoch, 0, self.batch_size, None, samples=stream, drop_last=drop_last)
        num_samples = len(self.samples)
        indices = epoch_indices(self.order, num_samples, self.seed, epoch)
        draws = num_samples if indices is None else len(indices)
        size = draws if self.batch_size is None else min(self.batch_size, draws)
        if self.drop_last and self.batch_size is not None:
            self._check_drop_last(draws, self.batch_size)
            draws -= draws % size
            if indices is not None:
                indices = indices.head(draws) if isinstance(indices, Draws) else indices[:draws]
        return Plan(epoch, draws, size, indices)

    def fingerprint(self) -> dict[str, Any]:
        """What decides which samples come when, in numbers and words; alike for like loaders.

        ``data`` is a digest of up to 4,096 samples, None for a Dataset or a stream.
        """
        order: Any = self.order if isinstance(self.order, str) else "a callable"
        if isinstance(self.order, Tensor):
            order = f"{len(self.order)} indices, {zlib.crc32(self.order.numpy().tobytes()):08x}"
        elif isinstance(self.order, Draws):
            order = repr(self.order)
        return {
            "samples": None if self.is_stream else self.num_samples,
            "batch_size": self.batch_size,
            "order": order,
            "seed": self.seed,
            "drop_last": self.drop_last,
            "data": self.samples.fingerprint(),
        }

    def __len__(self) -> int:
        """Batches of the next iteration, and so of the next epoch by hand; of no stream."""
        if self.is_stream:
            raise TypeError("a stream has no length")
        if self.batch_size is None:
            return 1
        if callable(self.order):
            return len(self.plan(self._iteration_epoch))
        full, ragged = divmod(self._draws, self.batch_size)
        return full + (ragged > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """One epoch of batches for a hand-written loop, in a fresh order at each iteration.

        The epochs count 0, 1, 2, …, unless :meth:`set_epoch` has pinned one. The trainer never
        uses or moves this cursor.
        """
        epoch = self._iteration_epoch
        self._next_epoch = epoch + 1
        plan = self.plan(epoch)
        return plan.each_batch() if isinstance(plan, StreamPlan) else self.samples.read(plan)

    def set_epoch(self, epoch: int | None) -> None:
        """Pin the epoch that iterations give; None lets them count on from the last one."""
        self._pinned_epoch = None if epoch is None else whole_number("epoch", epoch, minimum=0)

    @property
    def _iteration_epoch(self) -> int:
        return self._next_epoch if self._pinned_epoch is None else self._pinned_epoch

    @property
    def _draws(self) -> int:
        """Draws in every epoch; a callable order alone decides it anew for each."""
        return len(self.order) if isinstance(self.order, Tensor | Draws) else self.num_samples

    def _stream_order(self, order: Order | None) -> Order:
        """A stream's own order. Raises ConfigError for another, or for one batch of everything."""
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


class BatchLoader(Loader):
    """Batch gradient descent: every sample, then one update.

    data: inputs and targets as tensors or arrays, ``(X, y)`` or ``(X1, X2, y)``, each
    [n, …] with any trailing shape; or a map-style torch ``Dataset``.
    order: the order of the samples inside the batch; see :func:`gdtrain.data.order.epoch_indices`.
    seed: with the epoch, decides the order. Global RNG state never does.
    num_workers, collate_fn: as in ``torch.utils.data.DataLoader``; only for a ``Dataset``.
    allow_nonfinite: accept NaN and infinity in the data, for models that mask them.

    Raises DataError for data that can't be used and ConfigError for a wrong setting.
    """

    def __init__(
        self,
        data: Any,
        *,
        order: Order = "sequential",
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            data,
            batch_size=None,
            order=order,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_fn,
            allow_nonfinite=allow_nonfinite,
        )


class SampleLoader(Loader):
    """Stochastic gradient descent in its classic form: one sample per update.

    A batch keeps its batch dimension: inputs are [1, …]. order: ``reshuffle`` if left out; a
    stream, such as an ``IterableDataset``, has its own. Other arguments as in
    :class:`BatchLoader`.
    """

    def __init__(
        self,
        data: Any,
        *,
        order: Order | None = None,
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            data,
            batch_size=1,
            order=order,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_fn,
            allow_nonfinite=allow_nonfinite,
        )


class MiniBatchLoader(Loader):
    """Mini-batch gradient descent: ``batch_size`` samples per update.

    The last batch of an epoch has the samples that are left over, and is a real batch with an
    update of its own; ``drop_last`` leaves it out. A batch size over n gives one batch of n.
    Other arguments as in :class:`SampleLoader`.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        order: Order | None = None,
        seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            data,
            batch_size=whole_number("batch_size", batch_size, minimum=1),
            order=order,
            seed=seed,
            drop_last=drop_last,
            num_workers=num_workers,
            collate_fn=collate_fn,
            allow_nonfinite=allow_nonfinite,
        )
        if not self.is_stream and not callable(self.order) and batch_size > self._draws:
            if drop_last:
                self._check_drop_last(self._draws, batch_size)
            logger.warning(
                "batch_size %d is over the %d samples: each epoch is one batch of %d",
                batch_size,
                self._draws,
                self._draws,
            )
