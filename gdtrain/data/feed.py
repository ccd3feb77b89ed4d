"""Where a stream's samples come from: what all feeds have, and that of an IterableDataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from gdtrain.data.collate import as_batch
from gdtrain.data.records import Array

# Items of a dataset that are gathered at once, if they come in this time.
ITEMS_AT_ONCE = 256
GATHER_SECONDS = 0.01

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
    any position. restartable: whether it can begin anew. ended: whether all has been handed over.
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

    def get(self, wait: float) -> Piece | None:
        """The next samples, or None if none have come within ``wait`` seconds or at the end.

        Raises DataError at a fault, again at each call, after all that was before it.
        """
        raise NotImplementedError

    def batch(self, parts: list[tuple[Piece, int, int]]) -> tuple[Any, Any]:
        """Inputs and targets of the samples ``start`` … ``stop - 1`` of each piece, in a row."""
        raise NotImplementedError


class IterableFeed(Feed):
    """The items of an IterableDataset, which is iterated in the process and thread that trains."""

    seekable = False
    restartable = True
    ahead = ITEMS_AT_ONCE

    def __init__(self, dataset: IterableDataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.name = type(dataset).__name__
        self.start = [0]
        self.dataset = dataset
        self.collate = collate
        self._items: Iterator[Any] | None = None
        self._count = 0

    def open(self, position: Position) -> None:
        self._items, self._count, self.ended = iter(self.dataset), 0, False

    def get(self, wait: float) -> Piece | None:
        if self._items is None:
            self.open(self.start)
        assert self._items is not None
        items: list[Any] = []
        until = time.monotonic() + GATHER_SECONDS
        while not self.ended and len(items) < ITEMS_AT_ONCE:
            try:
                items.append(next(self._items))
            except StopIteration:
                self.ended = True
            if time.monotonic() >= until:
                break
        if not items:
            return None
        places = self._count + 1 + np.arange(len(items))[:, None]
        self._count += len(items)
        return Piece(items, places)

    def batch(self, parts: list[tuple[Piece, int, int]]) -> tuple[Any, Any]:
        return as_batch(
            self.collate([item for piece, start, stop in parts for item in piece.rows[start:stop]])
        )
