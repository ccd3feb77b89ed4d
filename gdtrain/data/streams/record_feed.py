"""The feed of records, one a line, that a thread reads and parses ahead of their use."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.batch import Batch
from gdtrain.data.streams.feed import Feed, Piece, Position
from gdtrain.data.streams.lines import POLL_SECONDS, Lines
from gdtrain.data.streams.records import Array, Records
from gdtrain.errors import DataError

# Blocks of lines that are parsed ahead of their use; each of READ_BYTES at most.
QUEUE_BLOCKS = 8
# Bad lines that are reported one by one; the others are only counted.
TOLD_LINES = 10


class RecordFeed(Feed):
    """Records, one a line, that a thread reads and parses ahead.

    records: how lines become rows. header_lines: the number of lines above the first record.
    skip: pass over lines that can't be read, instead of raising. finish: makes the inputs and
    targets from parsed rows [k, columns]; it runs in the thread and so keeps to numpy.
    """

    alike = True

    def __init__(
        self,
        lines: Lines,
        records: Records,
        *,
        header_lines: int,
        skip: bool,
        finish: Callable[[Array], tuple[Array, Array]],
    ) -> None:
        self.name = lines.name
        self.ahead = 8192
        self.seekable = self.restartable = lines.seekable
        self.start = [lines.offset, header_lines, 0]
        self._lines = lines
        self._parse = _Parser(lines.name, records, skip, finish)
        self._reader: _Reader | None = None
        self._close: Callable[[], Any] = lambda: None
        self._fault: BaseException | None = None
        weakref.finalize(self, lines.close)

    def __reduce__(self) -> Any:
        raise DataError(f"{self.name}: is read by one reader, which can't be copied; make another")

    def open(self, position: Position) -> None:
        self._close()
        if self.seekable:
            self._lines.seek(position[0])
        self.ended, self._fault = False, None
        self._reader = _Reader(self._lines, self._parse, list(position))
        # Also at exit: a daemon thread that runs while Python is torn down would crash it.
        self._close = weakref.finalize(self, self._reader.close)

    def get(self, wait: float, most: int) -> Piece | None:
        if self._reader is None:
            self.open(self.start)
        assert self._reader is not None
        if self._fault is not None:
            raise self._fault
        if self.ended:
            return None
        try:
            got = (
                self._reader.pieces.get(timeout=wait) if wait else self._reader.pieces.get_nowait()
            )
        except queue.Empty:
            return None
        if isinstance(got, BaseException):
            self._fault = got
            raise got
        self.ended = got is None
        return got

    def batch(self, parts: list[tuple[Piece, int, int]], places: Tensor) -> Batch:
        columns = []
        for column in range(2):  # copies, for the samples may be read again
            cut = [piece.rows[column][start:stop] for piece, start, stop in parts]
            columns.append(torch.from_numpy(np.concatenate(cut)))
        return Batch(columns[0], columns[1], places)


class _Reader:
    """A thread that puts pieces into a bounded queue, then None, or the error that ended it."""

    def __init__(self, lines: Lines, parse: _Parser, position: Position) -> None:
        self.pieces: queue.Queue[Piece | BaseException | None] = queue.Queue(QUEUE_BLOCKS)
        self._stop = Event()
        arguments = (lines, parse, position, self.pieces, self._stop)
        self._thread = Thread(target=_read, args=arguments, name="gdtrain-stream", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait until it has."""
        self._stop.set()
        self._thread.join()


def _read(
    lines: Lines,
    parse: _Parser,
    position: Position,
    pieces: queue.Queue[Piece | BaseException | None],
    stop: Event,
) -> None:
    """What the thread does."""

    def put(piece: Piece | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return pieces.put(piece, timeout=POLL_SECONDS)
            except queue.Full:
                continue
        return None

    try:
        for block, offset in lines.blocks(stop):
            for piece in parse(block, offset, position):
                put(piece)
                if stop.is_set():
                    return
        if position[2] > TOLD_LINES:
            message = f"{lines.name}: {position[2]:,} bad lines were skipped in all"
            put(Piece([[], []], np.empty((0, 3), np.int64), [message]))
        put(None)
    except BaseException as error:  # it is the trainer's, whatever it is
        put(error)


class _Parser:
    """Makes pieces of blocks of lines."""

    def __init__(
        self,
        name: str,
        records: Records,
        skip: bool,
        finish: Callable[[Array], tuple[Array, Array]],
    ) -> None:
        self.name = name
        self.records = records
        self.skip = skip
        self.finish = finish

    def __call__(self, block: bytes, offset: int, position: Position) -> Iterator[Piece]:
        """The samples of a block that begins at ``offset``; moves ``position`` to its end.

        Raises DataError at a line that can't be read, after the samples before it, unless such
        lines are skipped.
        """
        at_once = self.records.parse_block(block) if block.endswith(b"\n") else None
        if at_once is not None:
            rows, ends = at_once
            places = np.empty((len(rows), 3), np.int64)
            places[:, 0] = offset + ends
            places[:, 1] = np.arange(position[1] + 1, position[1] + 1 + len(rows))
            places[:, 2] = position[2]
            position[:] = places[-1].tolist()
            yield Piece(list(self.finish(rows)), places)
            return
        yield from self._line_by_line(block, offset, position)

    def _line_by_line(self, block: bytes, offset: int, position: Position) -> Iterator[Piece]:
        """The same where something in the block is out of the ordinary."""
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1
        if not block.endswith(b"\n"):
            ends = np.append(ends, len(block))
        lines = _decoded(block)
        good, parts, faults = self._sort(lines, 0)
        _, line, skipped = position
        kept = np.zeros(len(lines), dtype=bool)
        kept[good] = True
        bad = np.zeros(len(lines), dtype=np.int64)
        bad[list(faults)] = 1
        if faults and not self.skip:
            fatal = min(faults)
            kept[fatal:] = False
        places = np.stack(
            [offset + ends, line + 1 + np.arange(len(lines)), skipped + bad.cumsum()], axis=1
        )
        position[:] = places[-1].tolist()
        notes = [] if not self.skip else self._notes(faults, line, skipped)
        if kept.any() or notes:
            together = np.concatenate(parts)[: kept.sum()] if parts else np.empty((0, 1))
            made: list[Any] = list(self.finish(together)) if kept.any() else [[], []]
            yield Piece(made, places[kept], notes)
        if faults and not self.skip:
            raise DataError(
                f"{self.name}: line {line + 1 + fatal} {faults[fatal]}; "
                "correct it, or set data.on_bad_line: skip"
            )

    def _sort(self, lines: list[str], first: int) -> tuple[list[int], list[Array], dict[int, str]]:
        """Which of the lines are good, their rows, and what is wrong with others but blank ones.

        Many are parsed at once; where one is bad, each half by itself, and so on down to it.
        """
        try:
            rows = self.records.parse(lines)
            return list(range(first, first + len(lines))), [rows], {}
        except ValueError:
            if len(lines) == 1:
                blank = not lines[0].strip()
                return [], [], {} if blank else {first: self.records.fault(lines[0])}
        half = len(lines) // 2
        good, rows_, faults = self._sort(lines[:half], first)
        more_good, more_rows, more_faults = self._sort(lines[half:], first + half)
        return good + more_good, rows_ + more_rows, faults | more_faults

    def _notes(self, faults: dict[int, str], line: int, skipped: int) -> list[str]:
        notes = [f"{self.name}: line {line + 1 + i} {text}; skipped" for i, text in faults.items()]
        told = notes[: max(0, TOLD_LINES - skipped)]
        if told and skipped + len(told) == TOLD_LINES:
            told.append(f"{self.name}: further bad lines are counted, and not shown")
        return told


def _decoded(block: bytes) -> list[str]:
    """The block's lines as text; what is not UTF-8 becomes characters that no number has."""
    text = block.decode("utf-8", errors="backslashreplace").replace("\r\n", "\n")
    return text.removesuffix("\n").removesuffix("\r").split("\n")
