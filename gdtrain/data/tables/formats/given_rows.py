"""Tables that are in memory already: of pandas, polars and Arrow, and rows as mappings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gdtrain.data.tables.formats.typed_files import ROWS_AT_ONCE
from gdtrain.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


class GivenTable:
    """A table in memory, read as a file of its columns would be.

    given: a pandas, polars or Arrow table, a mapping of names to columns, or a list of mappings.
    Raises DataError for anything else.
    """

    path = "the table"

    def __init__(self, given: Any) -> None:
        import pyarrow as pa

        try:
            self._table = _as_arrow(given)
        except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the table: can't be taken as one: {error}") from error
        self.names: list[str] = list(self._table.column_names)

    def batches(
        self, names: Sequence[str], missing: Sequence[str], as_text: Collection[str] = ()
    ) -> Iterator[list[pa.Array]]:
        """Consecutive rows, each batch as one array for each of the named columns."""
        for batch in self._table.select(list(names)).to_batches(ROWS_AT_ONCE):
            if batch.num_rows:
                yield batch.columns

    def places(self, rows: Sequence[int]) -> list[str]:
        """What the rows of these numbers are called."""
        return [f"row {row}" for row in rows]


def _as_arrow(given: Any) -> pa.Table:
    import pyarrow as pa

    if isinstance(given, pa.RecordBatch):
        return pa.Table.from_batches([given])
    if isinstance(given, pa.Table):
        return given
    if isinstance(given, Mapping):
        return pa.table({str(name): _column(list(values)) for name, values in given.items()})
    if isinstance(given, Sequence) and all(isinstance(row, Mapping) for row in given):
        names = list(dict.fromkeys(name for row in given for name in row))
        return pa.table({name: _column([row.get(name) for row in given]) for name in names})
    if hasattr(given, "to_arrow"):  # polars
        return given.to_arrow()
    if hasattr(given, "dtypes"):  # pandas
        return pa.Table.from_pandas(given, preserve_index=False)
    return pa.table(given)


def _column(values: list[Any]) -> pa.Array:
    """Values as they are, or as text where they are of several kinds."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])
