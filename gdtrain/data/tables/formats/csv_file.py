"""CSV files through Arrow, in batches of rows; what is wrong is told with its line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gdtrain.data.checks import check_file
from gdtrain.data.tables.cells import WITH_PANDAS
from gdtrain.data.tables.formats.arrow_arrays import (
    Array,
    as_numbers,
    as_numpy,
    from_numpy,
    has_codes,
    trimmed,
)
from gdtrain.errors import ConfigError, DataError
from gdtrain.wording import counted, is_number

if TYPE_CHECKING:
    import pyarrow as pa


MAX_LINE = 1 << 24  # bytes
WIDE = 1 << 10  # columns, from which on Arrow does not read them one by one
_BLOCK = 1 << 20
_ROWS_OF_HEADER = 64  # a block holds about this many rows at least
_ROWS_AT_ONCE = 16  # and so many, where columns are very many


class CsvFile:
    """A CSV file with named columns, whose cells are text.

    Raises DataError for a file that can't be read, or a header that does not name the columns.
    """

    def __init__(self, path: str, dialect: Dialect) -> None:
        self.path = path
        self.dialect = dialect
        with CsvText(path, dialect) as text:
            record, line = text.first_record()
            try:
                header = record.decode()
            except UnicodeDecodeError as error:
                raise text.not_text() from error
        self.delimiter = delimiter_of(record, dialect)
        try:
            lines = io.StringIO(header, newline="")
            mark, quote = self.delimiter, dialect.quote
            reader = csv.reader(lines, delimiter=mark, quotechar=quote, strict=True)
            cells = [cell.strip() for cell in next(reader, [])]
        except csv.Error as error:
            raise DataError(f"{path}: line {line}: {error}") from error
        self.header_bytes = len(record)
        self.unnamed: set[str] = set()
        self.names = self._names(cells)

    def _names(self, cells: list[str]) -> list[str]:
        if not cells:
            raise DataError(f"{self.path}: is empty; its first line must name the columns")
        numbered = [f"column_{place}" for place in range(1, len(cells) + 1)]
        if self.dialect.header is False:
            return numbered
        if self.dialect.header is None and all(map(is_number, cells)):
            raise WrongDialect(
                f"{self.path}: the first line holds numbers where a header names the columns; set "
                "header: false, and the columns are column_1, column_2, … (or header: true, if "
                "these numbers are the names)",
                header=False,
            )
        quoted = next((c for c in cells if len(c) > 1 and c[0] == c[-1] and c[0] in "'\"`"), None)
        if quoted is not None:
            raise WrongDialect(
                f"{self.path}: the name {quoted} stands in quotes of another kind; "
                f"set quote: {_yaml_of(quoted[0])}",
                quote=quoted[0],
            )
        names = [cell or number for cell, number in zip(cells, numbered, strict=True)]
        self.unnamed = {name for name, cell in zip(names, cells, strict=True) if not cell}
        seen: set[str] = set()
        for name in names:
            if name in seen:
                text = f"column {name!r} occurs twice in the header; rename one"
                raise DataError(f"{self.path}: {text}")
            seen.add(name)
        return names

    def look_for(self, names: Sequence[str]) -> None:
        """Raise WrongDialect if the header lacks one of ``names`` since it is another line.

        That is one further down, or there is none and columns are called by their places.
        """
        there = set(self.names)
        for name in names:
            if name in there:
                continue
            self._look_further_down(name)
            shown = ", ".join(self.names[:_NAMES_SHOWN])
            place = _PLACE.fullmatch(name)
            if place is not None and self.dialect.header is None and int(place[1]) <= len(there):
                message = f"{self.path}: its first line, {shown}, is taken for the names of columns"
                raise WrongDialect(f"{message}; if it is a row, set header: false", header=False)
            if len(there) == 1 and re.search(rf"(?:^|\s){re.escape(name)}(?:\s|$)", shown):
                raise DataError(
                    f"{self.path}: has no column {name!r}, since blanks stand between cells; write "
                    f"it with a delimiter, {WITH_PANDAS}pd.read_csv({Path(self.path).name!r}, "
                    r"sep=r'\s+').to_csv('table.csv', index=False)"
                )
            if self.dialect.header is None and any(map(is_number, self.names)):
                raise DataError(
                    f"{self.path}: has no column {name!r}; its first line, {shown}, is taken for "
                    "the names of columns; if it is a row, set header: false, and they are "
                    "column_1, column_2, …"
                )

    def _look_further_down(self, name: str) -> None:
        with CsvText(self.path, self.dialect) as text:
            lines: list[bytes] = []
            while len(lines) < _LINES_LOOKED_AT:
                lines.append(text.line())
                cells = lines[-1].decode(errors="replace").strip()
                if not lines[-1] or name in _bare(cells, delimiter_of(lines[-1], self.dialect)):
                    break
        above = [line for line in lines[:-1] if line.strip()]
        if not lines[-1] or not above or len(lines) == _LINES_LOOKED_AT:
            return
        message = f"{self.path}: line {len(lines)} names column {name!r}, and not the first"
        marks = {line[:1] for line in above}
        if marks <= {b"#"} or marks <= {b"%"}:
            mark = marks.pop().decode()
            raise WrongDialect(f'{message}; set comment: "{mark}"', comment=mark)
        skipped = self.dialect.skip_rows + len(lines) - 1
        raise WrongDialect(f"{message}; set skip_rows: {skipped}", skip_rows=skipped)

    def number_columns(self, names: Sequence[str], missing: Sequence[str]) -> dict[str, bool]:
        """Those of the columns that hold nothing but numbers where the file begins.

        Also whether these are whole, so that they may be codes.
        """
        import pyarrow as pa

        if not names:  # which Arrow takes for all
            return {}
        if len(self.names) > WIDE:
            return dict.fromkeys(names, True)  # as far as they are
        few = max(_BLOCK // 4, _ROWS_OF_HEADER // 8 * self.header_bytes)
        try:
            start = b""
            with self._below_header() as text:
                while len(start) < 2 * few and (more := text.read(2 * few - len(start))):
                    start += more
            found = self._opened(io.BytesIO(start), few, missing, dict.fromkeys(names)).schema
        except (pa.ArrowInvalid, pa.ArrowKeyError, DataError):
            return {}  # what is wrong is told when it is read
        numeric = {pa.int64(): True, pa.null(): True, pa.float64(): False}
        kinds = zip(names, found.types, strict=True)
        return {name: numeric[kind] for name, kind in kinds if kind in numeric}

    def batches(
        self,
        names: Sequence[str],
        missing: Sequence[str],
        advance: Any = None,
        numbers: Mapping[str, bool] = MappingProxyType({}),
    ) -> Iterator[list[pa.Array]]:
        """Consecutive rows, each batch as one array for each of the named columns.

        missing: cells of these texts are null. advance: is told the bytes read. numbers: columns
        that are float64 as far as all of their cells are numbers, and text from there on; and
        whether they are text from where there may be codes too, which begin with 0.
        """
        import pyarrow as pa

        texts = pa.dictionary(pa.int32(), pa.string())
        types = {name: pa.float64() if name in numbers else texts for name in names}
        whole = [name for name, is_whole in numbers.items() if is_whole]
        read, block = 0, max(_BLOCK, _ROWS_OF_HEADER * self.header_bytes)
        if len(self.names) > WIDE:
            with self._below_header(codes=True) as text:
                wide, position = self._wide_rows(text, types, missing), 0
                for batch in wide.batches(max(_BLOCK, _ROWS_AT_ONCE * self.header_bytes)):
                    if advance is not None:
                        advance(text.position - position)
                        position = text.position
                    read += len(batch[0])
                    yield batch
            if wide.is_done:
                return
        while True:
            try:
                for batch in self._arrow_batches(types, missing, block, read, whole, advance):
                    read += len(batch[0])
                    yield batch
                return
            except _TooLong:
                block = 2 * MAX_LINE
            except _NotNumbers as error:
                types |= dict.fromkeys(error.names, pa.string())
                whole = [name for name in whole if name not in error.names]

    def _below_header(self, *, codes: bool = False) -> CsvText:
        text = CsvText(self.path, self.dialect, self.delimiter, codes=codes)
        if self.dialect.header is not False:
            text.first_record()
        return text

    def _opened(
        self, text: io.IOBase, block: int, missing: Sequence[str], types: Mapping[str, Any]
    ) -> Any:
        """Arrow's reader of columns of these types; None: by what the cells are."""
        import pyarrow as pa
        from pyarrow import csv

        place_of = {name: str(place) for place, name in enumerate(self.names)}
        return csv.open_csv(
            pa.PythonFile(text, "r"),
            csv.ReadOptions(block_size=block, column_names=list(place_of.values())),
            csv.ParseOptions(
                delimiter=self.delimiter, quote_char=self.dialect.quote, newlines_in_values=True
            ),
            csv.ConvertOptions(
                include_columns=[place_of[name] for name in types],
                column_types={place_of[n]: kind for n, kind in types.items() if kind is not None},
                null_values=list(missing),
                strings_can_be_null=True,
                decimal_point=self.dialect.decimal,
            ),
        )

    def _wide_rows(
        self, text: CsvText, types: Mapping[str, Any], missing: Sequence[str]
    ) -> WideRows:
        place_of = {name: place for place, name in enumerate(self.names)}
        chosen = np.array([place_of[name] for name in types])
        texts = {place_of[name] for name, kind in types.items() if kind != "double"}
        return WideRows(text, self.delimiter, self.dialect, len(self.names), chosen, texts, missing)

    def _arrow_batches(
        self,
        types: Mapping[str, Any],
        missing: Sequence[str],
        block: int,
        skip: int,
        whole: list[str],
        advance: Any,
    ) -> Iterator[list[pa.Array]]:
        import pyarrow as pa

        numbers = [(n, place) for place, (n, kind) in enumerate(types.items()) if kind == "double"]
        position = 0
        with self._below_header(codes=bool(whole)) as text:
            try:
                for batch in self._opened(text, block, missing, types):
                    if text.odd:
                        self.explain(None)
                        text.odd = False
                    if advance is not None:
                        advance(text.position - position)
                        position = text.position
                    if text.padded:
                        raise _NotNumbers(whole)
                    if batch.num_rows > skip:
                        part = batch.slice(skip).columns
                        _check_numbers(part, numbers)
                        yield part
                    skip = max(0, skip - batch.num_rows)
                if text.odd:
                    self.explain(None)
            except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
                column = _CONVERSION.match(str(error))
                if column is not None:
                    if text.odd:
                        self.explain(None)
                    raise _NotNumbers([self.names[int(column[1])]]) from error
                self.explain(error)

    def explain(self, error: Exception | None) -> None:
        """Raise what reading the file with all care finds wrong, or else ``error``."""
        for _ in records(self.path, self.dialect, self.delimiter, len(self.names)):
            pass
        if error is not None:
            if "straddling" in str(error):
                raise _TooLong from error
            if "Empty CSV" not in str(error):
                raise DataError(f"{self.path}: {str(error).splitlines()[0]}") from error

    def places(self, rows: Sequence[int]) -> list[str]:
        """What the rows of these numbers, rising from 0, are called: the lines they stand in."""
        lines = records(self.path, self.dialect, self.delimiter, len(self.names))
        found, at = [], 0
        for row in rows:
            found.append(f"line {next(islice(lines, row - at, None))}")
            at = row + 1
        return found


_NAMES_SHOWN = 6
_LINES_LOOKED_AT = 50
_PLACE = re.compile(r"column_([1-9]\d{0,4})")


def _bare(line: str, delimiter: str) -> list[str]:
    """The cells of a line as they stand there, without blanks and quotes around them."""
    return [cell.strip().strip("\"'") for cell in line.split(delimiter)]


class _TooLong(Exception):  # noqa: N818
    """A row is longer than the block that Arrow reads."""


class _NotNumbers(Exception):  # noqa: N818
    """Columns that were read as numbers hold something else."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


_CONVERSION = re.compile(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to double")


def _check_numbers(arrays: Sequence[Any], numbers: Sequence[tuple[str, int]]) -> None:
    """Raise _NotNumbers for NaN that no mark of missing cells has made."""
    for name, place in numbers:
        cells = arrays[place]
        values = as_numpy(cells, np.nan)
        if not cells.null_count:
            odd = np.isnan(values.min(initial=0.0))  # which NaN passes through
        else:
            odd = np.count_nonzero(np.isnan(values)) != cells.null_count
        if odd:
            raise _NotNumbers([name])


def _yaml_of(mark: str) -> str:
    return '"\'"' if mark == "'" else f"'{mark}'"


# ── files of very many columns ──────────────────────────────────────────────────────────


@dataclass
class WideRows:
    """Rows of ``width`` cells in a text without quotes, the cells parsed together as one column.

    Arrow's reader takes kilobytes for each column, whatever stands in it.

    chosen: places of the columns that are given. texts: of those that are text, to which those are
    added that turn out to be; all others are float64. missing: cells of these texts are null.
    """

    text: CsvText
    delimiter: str
    dialect: Dialect
    width: int
    chosen: Array
    texts: set[int]
    missing: Sequence[str]
    is_done: bool = False  # whether these were all rows

    def batches(self, size: int) -> Iterator[list[pa.Array]]:
        """Consecutive rows of about ``size`` bytes, an array for each chosen column.

        Ends before the first rows that are not so plain.
        """
        rest, at_end = b"", False
        while not at_end and len(rest) <= MAX_LINE:
            read = self.text.read(size)
            block, at_end = rest + read, not read
            del read
            cut = len(block) if at_end else block.rfind(b"\n") + 1
            block, rest = block[:cut].rstrip(b"\r\n"), block[cut:]
            if block:
                batch = self._batch(block)
                del block
                if batch is None:
                    return
                yield batch
                del batch
        self.is_done = at_end and not self.text.odd

    def _batch(self, block: bytes) -> list[pa.Array] | None:
        block = block.replace(b"\r\n", b"\n") + b"\n"
        if self.text.odd or b"\r" in block or self.dialect.quote.encode() in block:
            return None
        text = np.frombuffer(block, dtype=np.uint8)
        ends = text[(text == ord(self.delimiter)) | (text == 10)] == 10
        of_rows = ends.reshape(-1, self.width) if len(ends) % self.width == 0 else None
        if of_rows is None or of_rows[:, :-1].any() or not of_rows[:, -1].all():
            return None
        block = block.replace(self.delimiter.encode(), b"\n")
        return self._as_floats(block, len(of_rows)) or self._one_by_one(block, len(of_rows))

    def _as_floats(self, block: bytes, rows: int) -> list[pa.Array] | None:
        """All columns as numbers; None if they are not."""
        import pyarrow as pa

        if self.texts or self.text.padded:
            return None
        try:
            cells = self._parsed(block, pa.float64())
        except pa.ArrowInvalid:
            return None
        numbers = as_numpy(cells, np.nan)
        if cells.null_count != np.count_nonzero(np.isnan(numbers)):
            return None
        by_column = numbers.reshape(rows, self.width).T[self.chosen]
        return _cut(from_numpy(by_column.reshape(-1)), rows)

    def _one_by_one(self, block: bytes, rows: int) -> list[pa.Array] | None:
        """Each column as numbers or text; None for numbers that are NaN without being missing."""
        import pyarrow as pa

        try:
            cells = self._parsed(block, pa.string())
        except pa.ArrowInvalid:
            return None
        places = self.chosen[:, None] + self.width * np.arange(rows)
        return self._split(cells.take(pa.array(places.reshape(-1))), self.chosen.tolist(), rows)

    def _split(self, cells: Any, places: Sequence[int], rows: int) -> list[pa.Array] | None:
        """Columns side by side, halved until each is numbers or text."""

        if len(places) == 1 and places[0] in self.texts:
            return [cells]
        if self.texts.isdisjoint(places):
            plain = trimmed(cells, frozenset(self.missing))
            numbers = None
            if not has_codes(plain):
                numbers = as_numbers(plain, self.dialect.decimal, None)
            if numbers is not None:
                if plain.null_count != np.count_nonzero(np.isnan(numbers)):
                    return None
                return _cut(from_numpy(numbers), rows)
            if len(places) == 1:
                self.texts.add(places[0])
                return [cells]
        half = len(places) // 2
        first = self._split(cells[: half * rows], places[:half], rows)
        second = self._split(cells[half * rows :], places[half:], rows)
        return None if first is None or second is None else first + second

    def _parsed(self, block: bytes, kind: Any) -> pa.Array:
        import pyarrow as pa
        from pyarrow import csv

        return csv.read_csv(
            pa.BufferReader(block),
            csv.ReadOptions(use_threads=False, column_names=["cell"], block_size=1 << 20),
            csv.ParseOptions(delimiter="\x01", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types={"cell": kind},
                null_values=list(self.missing),
                strings_can_be_null=True,
                decimal_point=self.dialect.decimal,
            ),
        )["cell"].combine_chunks()


def _cut(cells: Any, rows: int) -> list[pa.Array]:
    return [cells.slice(start, rows) for start in range(0, len(cells), rows)]


# ── the text: unpacked, made UTF-8, and looked at while it is read ──────────────────────

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


# What a file is likely to be that is not what stands before: Excel's in western Europe, and one in
# which any bytes are text.
ONE_BYTE_ENCODINGS = {"utf-8": "cp1252", "cp1252": "latin-1"}


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
        message = f"{self.path}: is not {name} text; {hint}"
        likely = ONE_BYTE_ENCODINGS.get(codecs.lookup(self.dialect.encoding).name)
        return DataError(message) if likely is None else WrongDialect(message, encoding=likely)

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
