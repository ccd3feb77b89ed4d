"""A batch too large to hold: its microbatches are read as they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor

from gdtrain.data.batch import Batch

# (first sample, size, whether only targets are wanted) -> the batch in parts of that size
Read = Callable[[int, int, bool], Iterator[Batch]]
Places = Callable[[int, int], Tensor]
Transform = Callable[[Iterator[Batch]], Iterator[Batch]]


class _Part(Batch):
    """Part ``number`` of a batch, read when it is touched, if it is not the newest of its pass."""

    is_lazy = True
    __slots__ = ("_all", "_labels", "_length", "_number", "_places", "_start")

    def __init__(
        self, whole: _Pass, labels: _Pass, number: int, length: int, places: Places
    ) -> None:
        self._all, self._labels = whole, labels
        self._number, self._start = number, number * whole.size
        self._length = length
        self._places = places

    def __len__(self) -> int:
        return self._length

    @property
    def indices(self) -> Tensor:  # type: ignore[override]
        """[B] int64 on the CPU, made when asked for."""
        return self._places(self._start, self._start + self._length)

    @property
    def inputs(self) -> Any:
        """[B, …], read now if they were not."""
        return self._all.part(self._number).inputs

    @property
    def targets(self) -> Any:
        """[B, …], read now, without the inputs, if they were not."""
        held = self._all if self._all.holds(self._number) else self._labels
        return held.part(self._number).targets


class LazyBatch(_Part):
    """A batch whose microbatches are read, ahead of their use, when they are first touched.

    Only one microbatch of a pass is held at a time; using them in order is fast, in another
    order correct. Touching ``inputs`` or ``targets`` of the whole batch reads and keeps it whole.

    read: gives the batch in parts from a sample on, with ``inputs`` None if only targets are
    wanted, as for the normaliser of a loss. places: (start, stop) -> indices of those samples.
    """

    __slots__ = ("_read",)

    def __init__(self, read: Read, length: int, places: Places) -> None:
        self._read = read
        super().__init__(*self._passes(length), 0, length, places)

    def split(self, size: int) -> Iterator[Batch]:
        """The batch as consecutive microbatches of ``size`` samples; the last may be shorter."""
        passes = self._passes(size)
        for number, start in enumerate(range(0, len(self), size)):
            yield _Part(*passes, number, min(size, len(self) - start), self._places)

    def through(self, transform: Transform) -> LazyBatch:
        """The same batch, its parts given through ``transform`` as they are read."""
        read = self._read
        return LazyBatch(lambda *wanted: transform(read(*wanted)), len(self), self._places)

    def _passes(self, size: int) -> tuple[_Pass, _Pass]:
        return _Pass(self._read, size, False), _Pass(self._read, size, True)


class _Pass:
    """One reading of a batch in parts, of which the newest is held."""

    def __init__(self, read: Read, size: int, only_targets: bool) -> None:
        self.size = size
        self._read = read
        self._only_targets = only_targets
        self._parts: Iterator[Batch] = iter(())
        self._number = -1
        self._part: Batch | None = None

    def holds(self, number: int) -> bool:
        return self._part is not None and self._number == number

    def part(self, number: int) -> Batch:
        if self._part is None or self._number != number:
            if self._part is None or self._number + 1 != number:
                self._parts = self._read(number * self.size, self.size, self._only_targets)
            self._part = None  # let go of the last one before the next is there
            self._part, self._number = next(self._parts), number
        return self._part


def through(transform: Transform, batches: Iterator[Batch]) -> Iterator[Batch]:
    """``transform`` of the batches, or, where they are lazy, of the parts that will be read."""
    for batch in batches:
        if isinstance(batch, LazyBatch):
            yield batch.through(transform)
        else:  # and then none of them is
            yield from transform(chain([batch], batches))
