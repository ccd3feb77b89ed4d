"""The text of a table: unpacked; of CSV made UTF-8, and looked at while it is read."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gdtrain.data.checks import check_file
from gdtrain.data.wording import counted
from gdtrain.errors import ConfigError, DataError

MAX_LINE = 1 << 24  # bytes
_AT_ONCE = 1 << 20
_DELIMITERS = b",;\t|"
_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    delimiter: between cells; None: the one of comma, semicolon, tab and | that is in the header
    first. quote: around cells that hold delimiters or ends of lines. decimal: before the
    fraction of a number. comment: how skipped lines begin. skip_rows: lines before the
    header. header: whether the first line names the columns; None: it does, and is no numbers.
    """

    delimiter: str | None = None
    quote: str = '"'
    decimal: str = "."
    encoding: str = "utf-8"
    comment: str | None = None
    skip_rows: int = 0
    header: bool | None = None

    def __post_init__(self) -> None:
        for name in ("delimiter", "quote"):
            mark = getattr(self, name)
            if mark is not None and (
                not isinstance(mark, str) or len(mark) != 1 or mark in "\r\n\0"
            ):
                raise ConfigError.of(name, f"must be one character, got {mark!r}")
            if mark is not None and not mark.isascii():
                raise ConfigError.of(name, f"must be an ASCII character, got {mark!r}")
        if self.delimiter == self.quote:
            text = f"must be one character, no quote, got {self.delimiter!r}"
            raise ConfigError.of("delimiter", text)
        if self.decimal not in (".", ","):
            raise ConfigError.of("decimal", f'must be "." or ",", got {self.decimal!r}')
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            text = f"{self.encoding!r} is unknown; utf-8, latin-1 and utf-16 are among the known"
            raise ConfigError.of("encoding", text) from None


class WrongDialect(DataError):  # noqa: N818
    """A file is not written as it was said to be. settings: of the dialect, that would be right."""

    def __init__(self, message: str, **settings: Any) -> None:
        super().__init__(message)
        self.settings = settings


class Unpacked(io.RawIOBase):
    """The bytes of a file, unpacked if need be; ``position`` is that in the file as it is.

    Raises DataError for a file that can't be read, or is damaged.
    """

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self.path = path
        try:
            check_file(path)
            with ExitStack() as stack:
                self._file: BinaryIO = stack.enter_context(Path(path).open("rb"))
                start = self._file.read(4)
                self._file.seek(0)
                stack.pop_all()  # it stays open
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}") from error
        self.codec = next((name for magic, name in _CODECS.items() if start.startswith(magic)), "")
        self._stream: Any = self._file
        if self.codec:
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, "r"), self.codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        try:
            block: bytes = self._stream.read(None if size < 0 else size)
        except (OSError, ValueError) as error:
            what = f"is damaged, or no {self.codec} file: {error}" if self.codec else str(error)
            raise DataError(f"{self.path}: {what}") from error
        return block

    @property
    def position(self) -> int:
        """Bytes of the file, as it is, that have been read."""
        return self._file.tell()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_stream"):
            self._stream.close()
            self._file.close()
        super().close()


class CsvText(Unpacked):
    """The bytes of a CSV file in UTF-8; skipped lines are empty, so line numbers stay.

    delimiter: of a text that is looked at: has ``odd`` set once a quote stands where the rules of
    quoting do not have one, in what :meth:`read` gives. codes: has ``padded`` set once a cell may
    be a code, such as 01003.

    Raises DataError for what is not text of the encoding, for NUL characters, and for damage of a
    compressed file.
    """

    def __init__(
        self, path: str, dialect: Dialect, delimiter: str | None = None, *, codes: bool = False
    ) -> None:
        super().__init__(path)
        self.dialect = dialect
        self.odd = self.padded = False
        self._decoder: Any = None
        if codecs.lookup(dialect.encoding).name != "utf-8":
            self._decoder = codecs.getincrementaldecoder(dialect.encoding)()
        self._ahead = b""  # of the text, not yet given
        self._line = b""  # of a line whose end is not yet there
        self._delimiter = delimiter
        self._quotes: _Quotes | None = None  # once the text has one
        self._last = 10  # the character before, until then
        self._before = f"{delimiter}{dialect.quote}\n\r ".encode() if codes else b""
        self._tail = b"\n"  # of what codes are looked for
        self._left_to_skip = dialect.skip_rows
        self._starts = True

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        if not self._ahead:
            self._ahead = self._next(_AT_ONCE if size < 0 else size)
        block, self._ahead = self._ahead[:size], self._ahead[size:]
        if self._delimiter is not None:
            quote = ord(self.dialect.quote)
            if self._quotes is None and quote in block:
                self._quotes = _Quotes(quote, ord(self._delimiter), self._last)
            if self._quotes is not None:
                self._quotes.look(block)
                self.odd |= self._quotes.odd or (not block and self._quotes.inside)
            elif block:
                self._last = block[-1]
            self.padded = self.padded or (bool(self._before) and self._has_padded(block))
        return block

    def first_record(self) -> tuple[bytes, int]:
        """The first line that is not empty, with those that belong to its quoted cells.

        Also gives the number of the line it begins in.
        """
        line, number, begins, record = b"", 0, 0, b""
        while line := self.line():
            number += 1
            if not record and not line.strip():
                continue
            begins = begins or number
            record += line
            if not record.count(self.dialect.quote.encode()) % 2:
                break
        return record.rstrip(b"\r\n"), begins

    def _has_padded(self, block: bytes) -> bool:
        seam, self._tail = self._tail + block[:3], block[-3:]
        return _has_padded(seam, self._before) or _has_padded(block, self._before)

    def line(self) -> bytes:
        """The next line with its end; none at the end of the text."""
        while True:
            end = _END.search(self._ahead)
            if end is not None and end.end() < len(self._ahead):
                break
            more = self._next(_AT_ONCE)
            if not more:
                break
            self._ahead += more
            if len(self._ahead) > MAX_LINE and _END.search(self._ahead) is None:
                raise self.too_long()
        stop = len(self._ahead) if end is None else end.end()
        line, self._ahead = self._ahead[:stop], self._ahead[stop:]
        return line

    def too_long(self) -> DataError:
        message = f"a line is longer than {MAX_LINE >> 20} MiB; is it text with one row a line?"
        return DataError(f"{self.path}: {message}")

    def _next(self, size: int) -> bytes:
        """Further text, whole lines where some are to be skipped; none at the end only."""
        passes_over = bool(self.dialect.comment or self.dialect.skip_rows)
        while True:
            block = super().read(size)
            text = self._decoded(block)
            if b"\0" in text:
                what = "holds a NUL character, so it is not text; save it as UTF-8"
                raise DataError(f"{self.path}: {what}, or set encoding")
            if not passes_over:
                if text or not block:
                    return text
                continue
            self._line += text
            whole, end, rest = self._line.rpartition(b"\n") if block else (self._line, b"", b"")
            self._line = rest
            if whole or end or not block:
                return self._without(whole + end)

    def _decoded(self, block: bytes) -> bytes:
        try:
            text = block
            if self._decoder is not None:
                text = self._decoder.decode(block, final=not block).encode()
        except UnicodeError as error:
            raise self.not_text() from error
        if self._starts and block:
            self._starts = False
            if self._decoder is None and text.startswith(
                (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            ):
                message = f"{self.path}: is UTF-16 text; set encoding: utf-16"
                raise WrongDialect(message, encoding="utf-16")
            text = text.removeprefix(codecs.BOM_UTF8)
        return bytes(text)

    def not_text(self) -> DataError:
        name = "UTF-8" if self._decoder is None else self.dialect.encoding
        hint = "save it as UTF-8, or set encoding, such as encoding: latin-1"
        return DataError(f"{self.path}: is not {name} text; {hint}")

    def _without(self, text: bytes) -> bytes:
        """The text with lines that are to be skipped, and comments, made empty."""
        if self._left_to_skip:
            *skipped, text = text.split(b"\n", self._left_to_skip)
            self._left_to_skip -= len(skipped)
            text = b"\n" * len(skipped) + (b"" if self._left_to_skip else text)
        if self.dialect.comment:
            text = re.sub(b"(?m)^" + re.escape(self.dialect.comment.encode()) + b".*$", b"", text)
        return text


_END = re.compile(rb"\r\n|\n|\r")


def _has_padded(block: bytes, before: bytes) -> bool:
    """Whether 0 and two more digits stand behind one of the characters of ``before``."""
    text = np.frombuffer(block, dtype=np.uint8)
    is_zero = text[1:-2] == ord("0")
    for mark in set(before):
        if bytes([mark]) in block:
            places = np.flatnonzero(is_zero & (text[:-3] == mark))
            if ((text[places + 2] - 48 < 10) & (text[places + 3] - 48 < 10)).any():
                return True
    return False


class _Quotes:
    """Sees whether each quote opens or closes a cell, or is one of two within a cell."""

    def __init__(self, quote: int, delimiter: int, last: int) -> None:
        self.quote = quote
        self.beside = np.zeros(256, dtype=bool)  # what may stand beside a quoted cell
        self.beside[[delimiter, 10, 13, quote]] = True
        self.odd = self.inside = False
        self._last = last
        self._closed = False  # the last character was a closing quote

    def look(self, block: bytes) -> None:
        if not block:
            return
        text = np.frombuffer(block, dtype=np.uint8)
        if self._closed and not self.beside[text[0]]:
            self.odd = True
        self._closed = False
        if bytes([self.quote]) in block:
            places = np.flatnonzero(text == self.quote)
            opening, closing = places[self.inside :: 2], places[not self.inside :: 2]
            before = text[opening - 1]
            if len(opening) and opening[0] == 0:
                before[0] = self._last
            after = text[closing[closing < len(text) - 1] + 1]
            if not (self.beside[before].all() and self.beside[after].all()):
                self.odd = True
            self.inside ^= bool(len(places) % 2)
            self._closed = bool(len(closing)) and int(closing[-1]) == len(text) - 1
        self._last = int(text[-1])


# ── with all care ───────────────────────────────────────────────────────────────────────────


def delimiter_of(record: bytes, dialect: Dialect) -> str:
    """The delimiter of a file whose header is ``record``: that of the dialect, or by the rule."""
    if dialect.delimiter is not None:
        return dialect.delimiter
    outside = b"".join(record.split(dialect.quote.encode())[::2])
    return next((chr(mark) for mark in _DELIMITERS if mark in outside), ",")


def cells_of(record: bytes, delimiter: str, dialect: Dialect, place: str) -> list[str]:
    """The cells of one record. Raises DataError, naming ``place``, for bad quoting."""
    try:
        text = io.StringIO(record.decode(), newline="")
        reader = csv.reader(text, delimiter=delimiter, quotechar=dialect.quote, strict=True)
        return [cell.strip() for cell in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{place}: {error}") from error


def records(path: str, dialect: Dialect, delimiter: str, width: int) -> Iterator[int]:
    """The lines that the rows below the header begin in, one by one.

    Slow, and strict about quotes: what says which line it is that can't be read. Raises DataError
    with that line, for a row without ``width`` cells too.
    """
    csv.field_size_limit(MAX_LINE)
    stream = CsvText(path, dialect)
    with io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8", newline="") as text:
        reader = csv.reader(
            _lines(stream, text), delimiter=delimiter, quotechar=dialect.quote, strict=True
        )
        line, named, is_first = 1, dialect.header is False, True
        try:
            for row in reader:
                if row and not named:
                    named = True
                elif row:
                    if len(row) != width:
                        cells = counted(len(row), "cell")
                        what = f"line {line} has {cells}, but the header has {width:,}"
                        if is_first and len(row) == width + 1:
                            what += _UNNAMED
                        raise DataError(f"{path}: {what}")
                    for cell in row:
                        if cell[:1] in (" ", "\t") and cell.lstrip()[:1] == dialect.quote:
                            what = "a blank stands before a quote; remove the blank"
                            raise DataError(f"{path}: line {line}: {what}")
                    is_first = False
                    yield line
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise stream.not_text() from error


_UNNAMED = (
    "; if all rows have so many, write a name for each in the header, and leave out what is no "
    "input with exclude"
)


def _lines(stream: CsvText, file: io.TextIOWrapper) -> Iterator[str]:
    """The lines, none of them longer than can be a row."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise stream.too_long()
        yield line
