"""Whole lines of a file, a pipe or standard input, as their bytes arrive."""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Iterator
from threading import Event

from gdtrain.data.checks import check_file
from gdtrain.errors import DataError

STDIN = "-"
READ_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 24
# How long to wait before looking again for more, and for a wish to stop.
POLL_SECONDS = 0.05
_BOM = b"\xef\xbb\xbf"


class Lines:
    """Reads blocks of whole lines.

    path: a file, a named pipe, or ``-`` for standard input. follow: at the end of the file, wait
    for more. Raises DataError if it can't be opened.

    name: for messages. seekable: whether it is a file, in which a reader can go back. offset: of
    the first byte not handed over yet.
    """

    def __init__(self, path: str, follow: bool = False) -> None:
        self.name = "standard input" if path == STDIN else path
        self.follow = follow
        try:
            if path == STDIN:
                self._handle = 0
            else:
                check_file(path, may_be_pipe=True)
                self._handle = os.open(path, os.O_RDONLY)
            mode = os.fstat(self._handle).st_mode
        except OSError as error:
            raise DataError(f"{self.name}: can't be read: {error.strerror}") from error
        self._regular = stat.S_ISREG(mode)
        self.seekable = self._regular and path != STDIN
        self._rest = b""
        self.offset = 0

    def first(self, keep: bool) -> bytes:
        """The first line, without its end, waited for; empty if there is none.

        keep: hand it over again with the others. Raises DataError if it can't be read.
        """
        while b"\n" not in self._rest:
            data = self._read(None)
            if data == b"":
                break
            self._rest += data or b""
            self._check_length(self._rest)
        if self._rest.startswith(_BOM):
            self._rest, self.offset = self._rest[len(_BOM) :], len(_BOM)
        line, end, rest = self._rest.partition(b"\n")
        if not keep:
            self._rest = rest
            self.offset += len(line) + len(end)
        return line.removesuffix(b"\r")

    def seek(self, offset: int) -> None:
        """Go on from byte ``offset``. Raises DataError if no line begins there any more."""
        size = os.fstat(self._handle).st_size
        before = os.pread(self._handle, 1, offset - 1) if offset else b"\n"
        if offset > size or (before != b"\n" and offset < size):
            raise DataError(
                f"{self.name}: is not the file that the run was reading: no line begins at byte "
                f"{offset} of {size}; give that file, or start a new run"
            )
        os.lseek(self._handle, offset, os.SEEK_SET)
        self._rest, self.offset = b"", offset

    def blocks(self, stop: Event) -> Iterator[tuple[bytes, int]]:
        """Blocks of whole lines and the offset of each, until the end or until ``stop`` is set.

        The last line may lack its end. Raises DataError if reading fails.
        """
        arrived, self._rest = self._rest, b""  # with the first line
        while not stop.is_set():
            data = arrived or self._read(stop)
            arrived = b""
            if data is None:
                continue
            if not data:
                break
            block, end, rest = (self._rest + data).rpartition(b"\n")
            self._check_length(rest)
            if end:
                yield block + end, self.offset
                self.offset += len(block) + 1
            self._rest = rest
        if self._rest and not stop.is_set():
            yield self._rest, self.offset
            self.offset += len(self._rest)
            self._rest = b""

    def close(self) -> None:
        """Give the file back; standard input stays open."""
        if self._handle > 0:
            os.close(self._handle)
            self._handle = -1

    def _read(self, stop: Event | None) -> bytes | None:
        """Bytes that have arrived, b"" at the end, or None if there are none yet.

        stop: what ends a wait for more; None to wait for a pipe as long as it takes.
        """
        try:
            may_wait = stop is None or self._regular
            if not may_wait and not select.select([self._handle], [], [], POLL_SECONDS)[0]:
                return None
            data = os.read(self._handle, READ_BYTES)
            if data or not self.follow:
                return data
            if self._regular:
                size = os.fstat(self._handle).st_size
                if size < self.offset + len(self._rest):
                    raise DataError(f"{self.name}: has become shorter while it was read")
        except OSError as error:
            raise DataError(f"{self.name}: can't be read: {error.strerror}") from error
        (time.sleep if stop is None else stop.wait)(POLL_SECONDS)
        return None

    def _check_length(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{self.name}: a line is longer than {MAX_LINE_BYTES >> 20} MiB; "
                "is it text with one record a line?"
            )
