"""CSV files through Arrow, in batches of rows of text; what is wrong is told with its line."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from gdtrain.data.tables.cells import WITH_PANDAS
from gdtrain.data.tables.formats.arrow_arrays import as_numpy
from gdtrain.data.tables.formats.csv_text import (
    MAX_LINE,
    CsvText,
    Dialect,
    WrongDialect,
    cells_of,
    delimiter_of,
    records,
)
from gdtrain.data.tables.formats.wide_rows import WIDE, WideRows
from gdtrain.data.wording import is_number
from gdtrain.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

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
                record.decode()
            except UnicodeDecodeError as error:
                raise text.not_text() from error
        self.delimiter = delimiter_of(record, dialect)
        cells = cells_of(record, self.delimiter, dialect, f"{path}: line {line}")
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
            with self._below_header() as text:
                start = io.BytesIO(io.BufferedReader(text).read(2 * few))
            found = self._opened(start, few, missing, dict.fromkeys(names)).schema
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
