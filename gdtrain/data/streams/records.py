"""Records, one a line, to rows of numbers, many at once: what all have, and JSON objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from gdtrain.data.tables.preparation import check_columns
from gdtrain.errors import DataError
from gdtrain.settings import Targets

Array = np.ndarray[Any, Any]


class Records:
    """Which fields of each record are read, as columns of float64: the features, then the targets.

    fields: all fields of a record. features: the names of the inputs; all but the targets if
    None. targets: names. classes: labels whose places stand for them in the one target.
    allowed: what targets must be; anything if None. in_float32: numbers must be such as float32
    holds.

    Raises DataError, naming ``name``, for a field that is not there or is chosen twice.
    """

    def __init__(
        self,
        name: str,
        fields: list[str],
        features: list[str] | None,
        targets: list[str],
        classes: Sequence[str] | None = None,
        allowed: Targets | None = None,
        in_float32: bool = False,
    ) -> None:
        self.fields = fields
        self.features = check_columns(name, fields, features, targets)
        self.targets = targets
        self.allowed = allowed or Targets()
        self.labels = None if classes is None else {c: float(i) for i, c in enumerate(classes)}
        self.whole_width = features is None
        self.largest = float(np.finfo(np.float32 if in_float32 else np.float64).max)

    _in_text = True  # whether the numbers of a record stand in text, as the cells of a CSV file do

    def parse(self, lines: list[str]) -> Array:
        """Lines without their ends as rows [len(lines), features + targets].

        Raises ValueError if one of them can't be read; :meth:`fault` says why.
        """
        rows = self._numbers(lines)
        if rows.shape != (len(lines), len(self.features) + len(self.targets)):
            raise ValueError("lines and rows differ")
        if not (np.abs(rows) <= self.largest).all():  # nor NaN
            raise ValueError("not finite")
        if not self._targets_allowed(rows):
            raise ValueError("target out of range")
        return rows

    def parse_block(self, block: bytes) -> tuple[Array, Array] | None:
        """Whole lines, each with its end, as :meth:`parse` reads them, and where each one ends.

        None if they have to be read line by line: if one of them can't be read, or there is no
        faster way.
        """
        return None

    def fault(self, line: str) -> str:
        """Why this one line can't be read."""
        try:
            cells = self._cells(line)
        except ValueError as error:
            return str(error)
        for name in (*self.features, *self.targets):
            message = self._cell_fault(name, cells[name])
            if message:
                return f"{name!r} {message}"
        return "can't be read"

    def _cell_fault(self, name: str, cell: Any) -> str | None:
        if self.labels is not None and name in self.targets:
            if str(cell).strip() in self.labels:
                return None
            return f"is {_shown(cell)}, which is none of the classes {', '.join(self.labels)}"
        try:
            value = _number(cell, self._in_text)
        except ValueError:
            return "is empty" if cell == "" else f"is {_shown(cell)}, which is not a number"
        if not np.isfinite(value):
            return f"is {_shown(cell)}, which is not finite"
        if abs(value) > self.largest:
            message = "which float32 does not hold; rescale it, or set precision: fp64"
            return f"is {_shown(cell)}, {message}"
        if name not in self.targets or self._are_allowed(np.array([[value]])):
            return None
        return f"is {_shown(cell)}, but targets must be {self.allowed.must_be}"

    def _targets_allowed(self, rows: Array) -> bool:
        return self._are_allowed(rows[:, len(self.features) :])

    def _are_allowed(self, targets: Array) -> bool:
        return self.allowed.holds is None or bool(self.allowed.holds(targets).all())

    def _numbers(self, lines: list[str]) -> Array:
        """Rows of float64, NaN for an unknown class; raises ValueError."""
        raise NotImplementedError

    def _cells(self, line: str) -> dict[str, Any]:
        """The fields of one line by name; raises ValueError with what is wrong with the line."""
        raise NotImplementedError


class JsonRecords(Records):
    """Lines that are JSON objects with numbers; other fields are ignored if features are named.

    first: the first line, whose fields are those of all records.
    """

    _in_text = False

    def __init__(self, name: str, first: str, *arguments: Any, **options: Any) -> None:
        try:
            fields = list(_object(first))
        except ValueError as error:
            raise DataError(f"{name}: line 1: {error}") from error
        super().__init__(name, fields, *arguments, **options)
        chosen = (*self.features, *self.targets)
        get = itemgetter(*chosen)
        self._get = get if len(chosen) > 1 else lambda record: (get(record),)

    def _numbers(self, lines: list[str]) -> Array:
        try:
            records = list(map(json.loads, lines))
            if self.whole_width and any(len(r) != len(self.fields) for r in records):
                raise ValueError("another number of fields")
            rows = list(map(self._get, records))
        except (LookupError, TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if self.labels is not None:
            place = self.labels
            rows = [(*row[:-1], place.get(str(row[-1]).strip(), np.nan)) for row in rows]
        values = list(chain.from_iterable(rows))
        if not set(map(type, values)) <= {int, float}:  # numpy would take true and "1"
            raise ValueError("not a number")
        try:
            numbers = np.array(values, dtype=np.float64)
        except OverflowError as error:
            raise ValueError(str(error)) from error
        return numbers.reshape(len(rows), -1)

    def _cells(self, line: str) -> dict[str, Any]:
        record = _object(line)
        for name in (*self.features, *self.targets):
            if name not in record:
                raise ValueError(f"has no field {name!r}")
        if self.whole_width and len(record) != len(self.fields):
            raise ValueError(f"has {len(record)} fields, but line 1 has {len(self.fields)}")
        return record


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValueError("is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    return record


def _number(cell: Any, in_text: bool) -> float:
    """A cell as a number; raises ValueError if :meth:`Records.parse` would not read it as one."""
    if isinstance(cell, str) != in_text or isinstance(cell, bool | list | dict | None):
        raise ValueError
    if isinstance(cell, str) and ("_" in cell or not cell.isascii()):
        raise ValueError
    try:
        return float(cell)
    except OverflowError:
        return float("inf")


def _shown(cell: Any) -> str:
    text = repr(cell) if isinstance(cell, str) else json.dumps(cell)
    return text if len(text) <= 40 else text[:37] + "…"
