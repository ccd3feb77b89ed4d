"""CSV of very many columns: the cells of some rows are parsed together, as one column.

Arrow's reader takes kilobytes for each column, whatever stands in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gdtrain.data.tables.formats.arrow_arrays import (
    Array,
    as_numbers,
    as_numpy,
    from_numpy,
    has_codes,
    trimmed,
)
from gdtrain.data.tables.formats.csv_text import MAX_LINE, CsvText, Dialect

if TYPE_CHECKING:
    import pyarrow as pa

WIDE = 1 << 10  # columns


@dataclass
class WideRows:
    """Rows of ``width`` cells in a text without quotes.

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
