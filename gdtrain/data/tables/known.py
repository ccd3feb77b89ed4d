"""Tables whose columns are known: those that a trained model predicts for, or is evaluated on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from gdtrain.data.tables.encoding import Faults, TableEncoder, names_of_text
from gdtrain.data.tables.formats.csv_file import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.preparation import Column
from gdtrain.data.tables.table import marks_of
from gdtrain.errors import DataError
from gdtrain.near_names import nearest


@dataclass(frozen=True)
class TableStyle:
    """How a run's tables are written and read: the settings of its data source that say so."""

    dialect: Dialect
    marks: Sequence[str]
    ignore_unknown: bool = False

    @classmethod
    def of(cls, data: Any) -> TableStyle:
        """That of a data section, which need not be a table's."""
        there = {each.name: getattr(data, each.name, None) for each in fields(Dialect)}
        dialect = Dialect(**{name: value for name, value in there.items() if value is not None})
        ignore = getattr(data, "unknown_category", "error") == "ignore"
        return cls(dialect, marks_of(getattr(data, "missing_values", None)), ignore)


class KnownTable:
    """The rows of a table with known columns, as inputs.

    dropped: columns without which a row is left out.

    Raises DataError for a column that is missing.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[Column],
        style: TableStyle,
        files: Any = None,
        dropped: Collection[str] = (),
    ) -> None:
        self.path = path
        self.files = TableFiles(path, style.dialect) if files is None else files
        self.names = [column.name for column in columns]
        self._marks = style.marks
        self._encoder = TableEncoder(
            columns, style.marks, style.dialect.decimal, ignore_unknown=style.ignore_unknown
        )
        there = set(self.files.names)
        for name in self.names:
            if name not in there:
                near = nearest(name, there)
                hint = f"; did you mean {near!r}?" if near else ""
                text = f"has no column {name!r}, which the model was trained on{hint}"
                raise DataError(f"{path}: {text}")
        self._dropped = [place for place, column in enumerate(columns) if column.name in dropped]
        self._rows = np.arange(0)

    def batches(self) -> Iterator[tuple[Tensor, Faults]]:
        """Inputs [n, …] float64 of consecutive rows, and what is wrong with some of them.

        A row that is wrong has some inputs, which mean nothing. Raises DataError if there are no
        rows.
        """
        rows = 0
        as_text = names_of_text(self._encoder.columns)
        for batch in self.files.batches(self.names, self._marks, as_text=as_text):
            cells, faults = self._encoder.cells(batch)
            gone = np.atleast_1d(np.isnan(cells[:, self._dropped]).any(axis=1))
            gone[list(faults)] = False  # what can't be read is no missing cell
            stay = np.flatnonzero(~gone)
            if len(stay) < len(cells):
                cells = cells[stay]
                faults = {place: faults[r] for place, r in enumerate(stay.tolist()) if r in faults}
            self._rows = rows + stay
            rows += len(batch[0])
            yield self._encoder.inputs(cells, faults), faults
        if not rows:
            raise DataError(f"{self.path}: has no rows; at least one is needed")

    def fault(self, faults: Faults) -> DataError:
        """The error of the first row that is wrong, of the batch that was given last."""
        first = min(faults)
        place = self.files.places([int(self._rows[first])])[0]
        return DataError(f"{self.path}: {place}, {faults[first]}")
