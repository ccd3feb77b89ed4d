"""Text for people: what can't be printed is dropped, and nothing in it is obeyed by a terminal."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

from gdtrain.errors import StorageError

# Characters that turn the direction of what follows, and so can make a text look like another.
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def say(text: str) -> None:
    """Print a message on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with control characters, but for ends of lines and tabs, written as escapes."""
    if text.isprintable():
        return text
    kept = "".join(c for c in set(text) if unicodedata.category(c) not in ("Cc", "Cs"))
    plain = {*kept, "\n", "\t"} - _TURNING
    return "".join(c if c in plain else ascii(c)[1:-1] for c in text)


def prepare_streams() -> None:
    """Make sure that printing messages can't fail, and that failing to print results is told.

    A stream that whoever started this process has closed takes everything, as /dev/null does, and
    a closed standard input is empty.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
    for name, kind in (("stdout", ResultStream), ("stderr", DroppingStream)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: PTH123, SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, kind(stream))
        elif getattr(sys, name) is None:
            setattr(sys, name, stream)


class DroppingStream(io.TextIOBase):
    """A text stream that drops what can't be written: to a full disk, or when its reader has gone.

    stream: the one to write to; all else is as it is there. error: what is to be told in the end.
    """

    error: Exception | None = None

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._lost(error)
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def _lost(self, error: Exception) -> None:
        """What could not be written is dropped."""


class ResultStream(DroppingStream):
    """Standard output: whoever asked for a result must know that it could not be written.

    Printing goes on, for what is printed may be no result; :func:`check_results` tells of it. From
    the first fault on, everything is dropped.
    """

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._lost(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            super().flush()

    def _lost(self, error: Exception) -> None:
        self.error = error


def check_results() -> None:
    """Raise what has kept standard output from being written, if anything has.

    That is BrokenPipeError if its reader has gone, StorageError for any other fault.
    """
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    if isinstance(error, BrokenPipeError):
        raise error
    if error is not None:
        raise StorageError(f"standard output could not be written: {error}") from error


def results_are_files() -> None:
    """From now on standard output is text like any other, and dropped if it can't be written."""
    if isinstance(sys.stdout, ResultStream):
        sys.stdout = DroppingStream(sys.stdout._stream)
