"""Arrow's arrays: what they hold, and their cells as numpy's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def as_numpy(cells: Any, null: float) -> Array:
    """The numbers of an Arrow array, ``null`` for those without; a view if all are there.

    Arrow's own to_numpy imports pandas where it is installed, for half a second and 40 MB.
    """
    import pyarrow as pa

    if not cells.null_count:
        return np.from_dlpack(cells)
    every = [None, cells.buffers()[1]]
    plain = pa.Array.from_buffers(cells.type, len(cells), every, offset=cells.offset)
    # An array, whose dtype counts: null may be greater than what the cells' own dtype holds.
    return np.where(is_null(cells), np.asarray(null), np.from_dlpack(plain))


def is_null(cells: Any) -> Array:
    """Which cells have no value, [n] bool."""
    if not cells.null_count:
        return np.zeros(len(cells), dtype=bool)
    skipped, ahead = divmod(cells.offset, 8)
    count = -(-(ahead + len(cells)) // 8)
    of_bytes = np.frombuffer(cells.buffers()[0], np.uint8, count, skipped)
    valid = np.unpackbits(of_bytes, bitorder="little")[ahead : ahead + len(cells)]
    return np.equal(valid, 0)


def from_numpy(numbers: Array) -> Any:
    """Numbers [n] float64 as an Arrow array that shares their memory; NaN is a number."""
    import pyarrow as pa

    held = [None, pa.py_buffer(np.ascontiguousarray(numbers))]
    return pa.Array.from_buffers(pa.float64(), len(numbers), held)


def in_one_way(cells: Any, *, keep_coded: bool = False) -> Any:
    """Text, in whatever way a file holds it, as Arrow's plain strings; else the cells.

    keep_coded: text that is coded by a dictionary stays so. Bytes are text if they are UTF-8.
    """
    import pyarrow as pa

    kind = cells.type
    if pa.types.is_string(kind) or (keep_coded and is_coded(cells)):
        return cells
    if pa.types.is_dictionary(kind):
        return in_one_way(cells.dictionary_decode())
    others = ("is_large_string", "is_string_view", "is_binary", "is_large_binary")
    if not any(getattr(pa.types, other)(kind) for other in others):
        return cells
    try:
        return cells.cast(pa.string())
    except pa.ArrowInvalid:
        return cells


def is_coded(cells: Any) -> bool:
    """Whether this is text, coded by a dictionary of plain strings."""
    import pyarrow as pa

    return bool(pa.types.is_dictionary(cells.type) and pa.types.is_string(cells.type.value_type))


def indices_of(coded: Any, null: int) -> Array:
    """The places of a dictionary array's cells in its dictionary, ``null`` for those without."""
    return as_numpy(coded.indices, null)


def is_read(cells: Any) -> bool:
    """Whether these are numbers, truth values, dates or text; not lists, objects or durations."""
    import pyarrow as pa

    of = pa.types
    tests = (of.is_integer, of.is_floating, of.is_decimal, of.is_boolean, of.is_null, of.is_string)
    return any(test(cells.type) for test in (*tests, of.is_date, of.is_timestamp))


def is_text(cells: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(cells.type))


def as_text(cells: Any) -> Any:
    """Cells as text, whole numbers without a point."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if is_text(cells) or is_coded(cells):
        return cells
    if pa.types.is_floating(cells.type) and pc.all(pc.equal(pc.floor(cells), cells)).as_py():
        cells = cells.cast(pa.int64())
    return cells.cast(pa.string())


def as_numbers(cells: Any, decimal: str, missing: frozenset[str] | None) -> Array | None:
    """Text as float64, NaN for null; None if some of it is not a number.

    missing: take blanks off, and these texts for null.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if missing is not None:
        cells = trimmed(cells, missing)
    if decimal == ",":
        if pc.any(pc.match_substring(cells, ".")).as_py():
            return None
        cells = pc.replace_substring(cells, ",", ".")
    try:
        return as_numpy(cells.cast(pa.float64()), np.nan)
    except pa.ArrowInvalid:
        return None


def has_codes(cells: Any) -> bool:
    """Whether some text is digits of which the first of three or more is 0."""
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(cells, r"^\s*0[0-9]{2,}\s*$")).as_py())


def trimmed(cells: Any, missing: frozenset[str]) -> Any:
    """Text without blanks around it, null where that is one of ``missing``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    bare = pc.utf8_trim_whitespace(cells)
    marks = pa.array(sorted(missing), pa.string())
    return pc.if_else(pc.is_in(bare, marks), pa.scalar(None, pa.string()), bare)


def typed_numbers(cells: Any) -> tuple[Array, bool]:
    """Numbers, truth values and dates as float64, NaN for null, and whether they are dates.

    Dates are days since 1970-01-01.
    """
    import pyarrow as pa

    kind = cells.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        in_a_day = 1.0 if pa.types.is_date32(kind) else _IN_A_DAY[getattr(kind, "unit", "ms")]
        counted = cells.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
        return as_numpy(counted.cast(pa.float64(), safe=False), np.nan) / in_a_day, True
    if pa.types.is_null(kind):
        return np.full(len(cells), np.nan), False
    if pa.types.is_boolean(kind):
        cells = cells.cast(pa.int8())
    return as_numpy(cells.cast(pa.float64(), safe=False), np.nan), False


_IN_A_DAY = {"s": 86400.0, "ms": 86400e3, "us": 86400e6, "ns": 86400e9}
