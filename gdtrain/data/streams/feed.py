"""Where a stream's samples come from: what all feeds have, and that of an IterableDataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from gdtrain.data.batch import Batch
from gdtrain.data.collate import Collated
from gdtrain.data.streams.records import Array

# Where a stream stands after a sample. Of records: the offset of the next byte, lines read, bad
# lines skipped. Of an IterableDataset: the samples read.
Position = list[int]


@dataclass
class Piece:
    """Some consecutive samples of a stream.

    rows: [inputs, targets], arrays [k, …]; or k items of a dataset. positions: [k, …] int64, one
    :data:`Position` after each. notes: what is to be said of lines before or among them.
    """

    rows: list[Any]
    positions: Array
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.positions.shape[0])


class Feed:
    """Hands over the samples of a stream, piece by piece.

    name: for messages. start: its position at its beginning. seekable: whether it can go on from
    any position. restartable: whether it can begin again. ended: whether all has been handed over.
    ahead: samples that may be taken before they are needed. alike: whether samples are rows of one
    shape, so that those of several batches can be had together.
    """

    name: str
    start: Position
    seekable: bool
    restartable: bool
    ended = False
    ahead: int
    alike = False

    def open(self, position: Position) -> None:
        """Go on from ``position``: the start, or any one if it is seekable."""
        raise NotImplementedError

    def get(self, wait: float, most: int) -> Piece | None:
        """The next samples, or None if none have come within ``wait`` seconds or at the end.

        most: how many are wanted; of a source that is the user's own, no more are taken.

        Raises DataError at a fault, or whatever the source has raised, after all that was before
        it; again at each call, until :meth:`retry`.
        """
        raise NotImplementedError

    def retry(self, epoch: int) -> None:
        """Training goes on, or begins, in ``epoch``: what has failed may be tried once more."""

    def batch(self, parts: list[tuple[Piece, int, int]], places: Tensor) -> Batch:
        """The samples ``start`` … ``stop - 1`` of each piece, in a row. places: their numbers."""
        raise NotImplementedError


class IterableFeed(Feed):
    """The items of an IterableDataset, which is iterated in the process and thread that trains.

    What it raises comes after the samples before it. When training goes on after that, it is asked
    for the next item; one that is at its end then, as a generator that has raised is, is iterated
    again, past the items that it gave before. One that has ``set_epoch`` is told the epoch before
    it is iterated.
    """

    seekable = False
    restartable = True
    # It may draw random numbers, or look at the model: its items are taken when a hand-written
    # loop would take them, and no sooner.
    ahead = 0

    def __init__(self, dataset: IterableDataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.name = type(dataset).__name__
        self.start = [0]
        self.dataset = dataset
        self.collate = collate
        self._collated = Collated(collate)
        self._items: Iterator[Any] | None = None
        self._count = self._epoch = 0
        self._error: Exception | None = None  # to be raised after all that was before it
        self._last: Exception | None = None  # after which the next item is the first

    def __reduce__(self) -> Any:
        return IterableFeed, (self.dataset, self.collate)  # an iterator can't be copied

    def open(self, position: Position) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self._epoch)
        self._items, self._count, self.ended = iter(self.dataset), 0, False
        self._error = self._last = None

    def retry(self, epoch: int) -> None:
        if self._error is not None:
            self._last, self._error = self._error, None
        self._epoch = epoch

    def get(self, wait: float, most: int) -> Piece | None:
        items: list[Any] = []
        until = time.monotonic() + wait
        while not self.ended and self._error is None and len(items) < most:
            try:
                items.append(self._next())
            except StopIteration:
                if self._last is None:
                    self.ended = True
                else:
                    self._reopen()
            except Exception as error:
                self._error = error
            if time.monotonic() >= until:
                break
        if not items:
            if self._error is not None:
                raise self._error
            return None
        places = self._count + 1 + np.arange(len(items))[:, None]
        self._count += len(items)
        return Piece(items, places)

    def _reopen(self) -> None:
        """Iterate again, up to the item at which the last pass was broken off."""
        self._items, self._last = iter(self.dataset), None
        try:
            for _ in range(self._count):
                next(self._items)
        except StopIteration:  # it has fewer now
            self.ended = True
        except Exception as error:
            self._error = error

    def _next(self) -> Any:
        if self._items is None:
            self.open(self.start)
        assert self._items is not None
        item = next(self._items)
        self._last = None
        return item

    def batch(self, parts: list[tuple[Piece, int, int]], places: Tensor) -> Batch:
        items = [item for piece, start, stop in parts for item in piece.rows[start:stop]]
        return self._collated.batch(self.collate(items), places)
