"""Parquet, Feather and JSON lines through Arrow, in batches of rows."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdtrain.data.tables.formats.csv_file import Unpacked
from gdtrain.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1 << 16
_RECORDS_AT_ONCE = 1 << 12
_BLOCK = 1 << 20

Advance = Callable[[int], object]


class ParquetFile:
    """A Parquet file. Raises DataError if it can't be read."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.path = path
        try:
            # Pages are read as they are needed, and not a whole row group at once.
            self._file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, "Parquet", error) from error
        self._own_names = list(self._file.schema_arrow.names)
        self.names, self.unnamed = _named(path, self._own_names)

    def batches(
        self, names: Sequence[str], missing: Sequence[str], advance: Advance | None = None
    ) -> Iterator[list[pa.Array]]:
        """Consecutive rows, each batch as one array for each of the named columns."""
        size, rows = Path(self.path).stat().st_size, max(1, self._file.metadata.num_rows)
        for batch in self._batches(names, None):
            if advance is not None:
                advance(size * len(batch[0]) // rows)
            yield batch

    @property
    def groups(self) -> list[int]:
        """How many rows there are in each row group."""
        metadata = self._file.metadata
        return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]

    def group(self, number: int, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        """The rows of a row group, as :meth:`batches` gives those of all."""
        return self._batches(names, [number])

    def _batches(self, names: Sequence[str], groups: list[int] | None) -> Iterator[list[pa.Array]]:
        import pyarrow as pa

        own = dict(zip(self.names, self._own_names, strict=True))
        wanted = [own[name] for name in names]
        at_once = max(256, min(ROWS_AT_ONCE, (1 << 21) // max(1, len(names))))
        try:
            for batch in self._file.iter_batches(at_once, row_groups=groups, columns=wanted):
                batch.validate(full=True)  # that text is UTF-8, too
                yield [batch.column(name) for name in wanted]
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, "Parquet", error) from error

    def places(self, rows: Sequence[int]) -> list[str]:
        """What the rows of these numbers are called."""
        return [f"row {row}" for row in rows]


class FeatherFile:
    """A Feather (version 2) or Arrow IPC file. Raises DataError if it can't be read."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self.path = path
        try:
            self._file = pa.ipc.open_file(pa.memory_map(path))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, "Feather", error) from error
        self.names, self.unnamed = _named(path, list(self._file.schema.names))

    def batches(
        self, names: Sequence[str], missing: Sequence[str], advance: Advance | None = None
    ) -> Iterator[list[pa.Array]]:
        """Consecutive rows, each batch as one array for each of the named columns."""
        import pyarrow as pa

        size, number = Path(self.path).stat().st_size, self._file.num_record_batches
        places = [self.names.index(name) for name in names]
        try:
            for place in range(number):
                batch = self._file.get_batch(place)
                batch.select(places).validate(full=True)  # that text is UTF-8, too
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    part = batch.slice(start, ROWS_AT_ONCE)
                    yield [part.column(place) for place in places]
                if advance is not None:
                    advance(size // number)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, "Feather", error) from error

    def places(self, rows: Sequence[int]) -> list[str]:
        """What the rows of these numbers are called."""
        return [f"row {row}" for row in rows]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object; ValueError for a name that occurs twice, which JSON allows."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice")
    return record


class JsonLines:
    """An object on each line; the columns are the fields that any of them has.

    Raises DataError for a line that is no object.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.unnamed: set[str] = set()
        names: dict[str, None] = {}
        for _, record in self._records():
            if not record.keys() <= names.keys():
                names |= dict.fromkeys(record)
        if not names:
            raise DataError(f"{path}: has no records; at least one is needed")
        self.names = list(names)

    def _records(self, advance: Advance | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects one by one, with their lines; raises DataError for what is none."""
        with Unpacked(self.path) as source:
            position = 0
            for number, line in enumerate(io.BufferedReader(source, _BLOCK), start=1):
                if advance is not None and source.position > position:
                    advance(source.position - position)
                    position = source.position
                if line.strip():
                    yield number, self._record(number, line)

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{self.path}: line {number} is not a JSON object")
        return record

    def batches(
        self, names: Sequence[str], missing: Sequence[str], advance: Advance | None = None
    ) -> Iterator[list[pa.Array]]:
        """Consecutive rows, each batch as one array for each of the named columns."""
        rows: list[dict[str, Any]] = []
        for _, record in self._records(advance):
            rows.append(record)
            if len(rows) == _RECORDS_AT_ONCE:
                yield [self._column(name, rows) for name in names]
                rows = []
        if rows:
            yield [self._column(name, rows) for name in names]

    def _column(self, name: str, rows: list[dict[str, Any]]) -> pa.Array:
        """A field of all rows: numbers, or text if some are; null where it is not there."""
        import pyarrow as pa

        values = [row.get(name) for row in rows]
        types = {type(value) for value in values} - {type(None)}
        if types <= {int, float}:
            with suppress(OverflowError):
                return pa.array([None if v is None else float(v) for v in values], pa.float64())
        if types == {bool}:
            return pa.array(values, pa.bool_())
        for kind, nothing in ((dict, pa.struct([])), (list, pa.list_(pa.null()))):
            if kind in types:
                return pa.nulls(len(rows), nothing)
        texts = [v if isinstance(v, str | None) else json.dumps(v) for v in values]
        return pa.array(texts, pa.string())

    def places(self, rows: Sequence[int]) -> list[str]:
        """What the rows of these numbers are called."""
        wanted = set(rows)
        found = {
            row: f"line {number}"
            for row, (number, _) in enumerate(self._records())
            if row in wanted
        }
        return [found[row] for row in rows]


def _damaged(path: str, what: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return DataError(f"{path}: is a {what} file that can't be read: {reason}")


def _named(path: str, names: list[str]) -> tuple[list[str], set[str]]:
    """Names of columns, with numbers for those that have none; and which those are."""
    given = [name or f"column_{place}" for place, name in enumerate(names, start=1)]
    for name, count in Counter(given).items():
        if count > 1:
            raise DataError(f"{path}: column {name!r} occurs twice in the header; rename one")
    unnamed = {new for new, name in zip(given, names, strict=True) if not name}
    return given, unnamed | {name for name in given if name.startswith("__index_level_")}
