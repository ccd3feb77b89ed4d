"""Streams: samples without a number or an order of their own, read once, as they arrive."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.samples import Samples
from gdtrain.data.streams.feed import Feed, Piece, Position
from gdtrain.errors import ConfigError, DataError

logger = logging.getLogger("gdtrain")

# How long a look for new samples may take, and so how late a signal is seen in an idle stream.
WAIT_SECONDS = 0.1
# Pieces that are kept ready for the coming updates; more only where one batch needs more.
READY_PIECES = 64


class StreamSamples(Samples):
    """The samples of a stream that have arrived and are not done with: a window that moves on.

    It has no length. position: where the stream stands before the first sample of the window.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.position: Position = list(feed.start)
        self.ready = 0  # samples in the window
        self._pieces: deque[Piece] = deque()
        self._offset = 0  # of the window in the first piece

    def __reduce__(self) -> Any:
        return StreamSamples, (self.feed,)  # a copy begins again

    def __len__(self) -> int:
        raise TypeError("a stream has no length")

    def fingerprint(self, version: int = 2) -> int | None:
        return None

    @property
    def ended(self) -> bool:
        """Whether all samples of the stream have arrived."""
        return self.feed.ended

    def seek(self, position: Position | None, epoch: int) -> None:
        """Go on in ``epoch`` from a position that :meth:`drop` gave, or from the start if None.

        What stands there already stays. A source that can't go back goes on where it is.
        Raises DataError if the source has changed.
        """
        self.feed.retry(epoch)
        wanted = self.feed.start if position is None else position
        if wanted == self.position:
            return
        if self.feed.seekable or (position is None and self.feed.restartable):
            self._pieces.clear()
            self._offset = self.ready = 0
            self.feed.open(wanted)
        elif position is not None:
            logger.warning(
                "%s can't be wound on to where the run stopped: it goes on with what comes now",
                self.feed.name,
            )
        self.position = list(wanted)

    def fill(self, needed: int) -> None:
        """Wait a moment for ``needed`` samples to be ready, and take what more has come.

        Raises what the source has raised, if they are not.
        """
        until = time.monotonic() + WAIT_SECONDS
        enough = needed + self.feed.ahead
        try:
            while self.ready < enough and not self.ended:
                wait = until - time.monotonic()
                if self.ready >= needed:
                    if wait <= 0 or len(self._pieces) >= READY_PIECES:
                        break
                    wait = 0.0
                piece = self.feed.get(max(0.0, wait), enough - self.ready)
                if piece is not None:
                    self._add(piece)
                elif wait <= 0:
                    break
        except Exception:  # the feed raises it again
            if self.ready < needed:
                raise

    def cut(self, start: int, size: int, first_index: int) -> Batch:
        """``size`` samples from number ``start`` of the window on, as a batch."""
        parts, low = [], start + self._offset
        for piece in self._pieces:
            if low < len(piece):
                high = min(len(piece), low + size)
                parts.append((piece, low, high))
                size -= high - low
                low = 0
                if not size:
                    break
            else:
                low -= len(piece)
        count = sum(stop - begin for _, begin, stop in parts)
        return self.feed.batch(parts, torch.arange(first_index, first_index + count, device="cpu"))

    def drop(self, count: int) -> Position:
        """Be done with the first ``count`` samples of the window; return the new position."""
        self.ready -= count
        self._offset += count
        while self._pieces and self._offset >= len(self._pieces[0]):
            piece = self._pieces.popleft()
            self._offset -= len(piece)
            self.position = piece.positions[-1].tolist()
        if self._offset:
            self.position = self._pieces[0].positions[self._offset - 1].tolist()
        return self.position

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        """The batches that are there from number ``start`` on; waits for the first of them."""
        assert isinstance(plan, StreamPlan)
        while not (there := plan.remaining(start)) and not plan.is_over(start):
            pass
        for number in range(start, start + there):
            yield plan.batch(number)

    def together(self, plan: Plan, first: int, last: int) -> Batch:
        assert isinstance(plan, StreamPlan)
        return plan.together(first, last)

    def _add(self, piece: Piece) -> None:
        for note in piece.notes:
            logger.warning("%s", note)
        if len(piece):
            self._pieces.append(piece)
            self.ready += len(piece)


@dataclass
class _Cursor:
    """first: number of the batch at the start of the window. ragged: number and size of the last
    batch, where it is shorter than the others."""

    first: int = 0
    ragged: tuple[int, int] | None = None


@dataclass(frozen=True)
class StreamPlan(Plan):
    """The plan of a stream: its epoch is the whole stream, whose end is known when it comes.

    Batches are there to be read, again and again, from their arrival until :meth:`release`.
    num_samples is 0, for it is not known.
    """

    samples: StreamSamples = field(kw_only=True)
    drop_last: bool = field(kw_only=True)
    _cursor: _Cursor = field(default_factory=_Cursor, init=False)

    def __len__(self) -> int:
        raise TypeError("a stream has no length")

    @property
    def num_batches(self) -> int | None:
        return None

    def ends(self) -> list[int]:
        return [0] if self.remaining(0) else []

    @property
    def smallest_batch(self) -> int:
        return self.batch_size if self.drop_last else 1

    def seek(self, start: int, position: Position | None) -> None:
        self._cursor.first = start
        self.samples.seek(position, self.epoch)

    def remaining(self, start: int) -> int:
        """How many batches are there to be read from ``start`` on; 0 if none has come in a moment.

        Raises DataError for a stream that has none at all, or a fault in it.
        """
        before = start - self._cursor.first
        self.samples.fill((before + 1) * self.batch_size)
        there, left = divmod(self.samples.ready, self.batch_size)
        if left and self.samples.ended and not self.drop_last:
            self._cursor.ragged = self._cursor.first + there, left
            there += 1
        if not start and not there and self.samples.ended:
            self._raise_empty(left)
        return max(0, there - before)

    def is_over(self, start: int) -> bool:
        before = (start - self._cursor.first) * self.batch_size
        left = self.samples.ready - before
        return self.samples.ended and (left < self.batch_size if self.drop_last else left <= 0)

    def release(self, stop: int) -> Position:
        count = min((stop - self._cursor.first) * self.batch_size, self.samples.ready)
        self._cursor.first = stop
        return list(self.samples.drop(count))

    def share(self, rank: int, world_size: int) -> Plan:
        if world_size > 1:
            raise DataError("a stream is read by one process; train on it without torchrun")
        return self

    def batch(self, number: int) -> Batch:
        """Batch ``number``, one of those that :meth:`remaining` has counted."""
        return self.together(number, number + 1)

    def together(self, first: int, last: int) -> Batch:
        """The batches ``first`` … ``last - 1``, which :meth:`remaining` has counted, as one."""
        size = sum(self.batch_sizes(first, last))
        start = (first - self._cursor.first) * self.batch_size
        return self.samples.cut(start, size, first * self.batch_size)

    def bounds(self, number: int) -> tuple[int, int]:
        start = number * self.batch_size
        return start, start + sum(self.batch_sizes(number, number + 1))

    def batch_sizes(self, start: int, stop: int) -> list[int]:
        sizes = [self.batch_size] * (stop - start)
        if self._cursor.ragged is not None and start <= self._cursor.ragged[0] < stop:
            sizes[self._cursor.ragged[0] - start] = self._cursor.ragged[1]
        return sizes

    def each_batch(self) -> Iterator[Batch]:
        """Every batch of the stream from its start, each released as the next is asked for."""
        self.seek(0, None)
        number = 0
        while not self.is_over(number):
            for _ in range(self.remaining(number)):
                yield self.batch(number)
                number += 1
                self.release(number)

    def _raise_empty(self, left: int) -> None:
        if left:
            message = f"leaves no batch: {left} samples do not fill one of {self.batch_size}"
            raise ConfigError.of("drop_last", message)
        raise DataError(f"{self.samples.feed.name}: the stream is empty; it needs a sample")
