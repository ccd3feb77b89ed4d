"""Arrow's arrays as numpy's, beside what pyarrow itself makes of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gdtrain.data.tables.formats.arrow_arrays import as_numpy, from_numpy, is_null

KINDS = [pa.float64(), pa.int8(), pa.int32(), pa.uint16(), pa.int64()]
VALUES = [3, None, 0, 7, None, None, 100, 2, 9, None, 11, 12, None, 14, 15, 16, 17, None, 19]
SLICES = [(0, 19), (0, 0), (1, 7), (7, 9), (8, 8), (9, 10), (18, 1), (6, 2)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("start", "size"), SLICES)
def test_slices_with_and_without_nulls(kind: pa.DataType, start: int, size: int) -> None:
    cells = pa.array(VALUES, kind).slice(start, size)
    expected = [-1 if value is None else value for value in VALUES[start : start + size]]
    np.testing.assert_array_equal(as_numpy(cells, -1), expected)
    np.testing.assert_array_equal(is_null(cells), cells.is_null().to_numpy(zero_copy_only=False))


def test_null_is_nan_among_numbers() -> None:
    cells = pa.array([1.5, None, float("nan"), float("inf")])
    np.testing.assert_array_equal(as_numpy(cells, np.nan), [1.5, np.nan, np.nan, np.inf])


def test_null_may_be_more_than_the_cells_can_hold() -> None:
    cells = pa.array([*range(255), None], pa.uint8())
    np.testing.assert_array_equal(as_numpy(cells, 256), [*range(255), 256])


def test_numpy_as_arrow_shares_memory_and_knows_no_null() -> None:
    numbers = np.array([1.0, np.nan, 3.0])
    cells = from_numpy(numbers)
    assert cells.null_count == 0
    assert cells.buffers()[1].address == numbers.ctypes.data
    np.testing.assert_array_equal(cells.to_numpy(), numbers)


def test_reading_a_table_imports_no_pandas(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,b,c,y\n1,red,2024-01-01,3\nNA,blue,2024-01-02,4\n2,,2024-01-05,5\n")
    line = (
        "import sys\n"
        "from gdtrain.data.tables.table import read_table\n"
        "table = read_table(sys.argv[1], 'y', missing='most_frequent', keep=['c'])\n"
        "print(table.data(table.own).inputs.tolist(), 'pandas' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", line, str(path)], capture_output=True, text=True, check=True
    )
    rows = "[[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], [2.0, 1.0, 0.0, 4.0]]"
    assert done.stdout.strip() == f"{rows} False"
