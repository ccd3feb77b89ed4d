"""Tables of very many columns: the same cells and messages as those of few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gdtrain.data.tables.formats import csv_file
from gdtrain.data.tables.table import read_table
from gdtrain.errors import DataError

WIDTH, ROWS = 1100, 40
NUMBERS = np.random.default_rng(0).normal(size=(ROWS, WIDTH))


def cells() -> list[list[str]]:
    return [[repr(number) for number in row] for row in NUMBERS.tolist()]


def written(rows: list[list[str]], end: str = "\n", mark: str = ",") -> str:
    names = [f"x{n}" for n in range(WIDTH)]
    Path("d.csv").write_bytes((end.join(map(mark.join, [names, *rows])) + end).encode())
    return "d.csv"


@pytest.fixture(autouse=True, params=[16, 64], ids=["few rows at once", "all at once"])
def _in_a_folder_of_its_own(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(csv_file, "_BLOCK", 1 << 10)
    monkeypatch.setattr(csv_file, "_ROWS_AT_ONCE", request.param)


def inputs(path: str, **options: object) -> torch.Tensor:
    table = read_table(path, "x0", **options)  # type: ignore[arg-type]
    return table.data(torch.arange(len(table))).inputs


@pytest.mark.few(1)
@pytest.mark.parametrize(("end", "mark"), [("\n", ","), ("\r\n", ";"), ("\r", "\t")])
def test_numbers(end: str, mark: str) -> None:
    found = inputs(written(cells(), end, mark))
    np.testing.assert_array_equal(found.numpy(), NUMBERS[:, 1:])


def test_chosen_columns_stand_in_their_order() -> None:
    found = inputs(written(cells()), features=["x900", "x3"])
    np.testing.assert_array_equal(found.numpy(), NUMBERS[:, [900, 3]])


@pytest.mark.few(1)
def test_blanks_quotes_and_blank_lines_make_no_difference() -> None:
    rows = cells()
    rows[3][7] = f"  {rows[3][7]} "
    rows[20][9] = f'"{rows[20][9]}"'
    rows[30][-1] += "\n"
    np.testing.assert_array_equal(inputs(written(rows)).numpy(), NUMBERS[:, 1:])


@pytest.mark.few(1)
@pytest.mark.parametrize("gap", ["", "NA", " NA "])
def test_missing_cells_are_filled_in(gap: str) -> None:
    rows, right = cells(), NUMBERS.copy()
    for row, column in [(0, 1), (7, 1), (39, WIDTH - 1)]:
        rows[row][column] = gap
        there = np.delete(NUMBERS[:, column], [0, 7] if column == 1 else [39])
        right[row, column] = np.median(there)
    found = inputs(written(rows), missing="median")
    np.testing.assert_array_equal(found.numpy(), right[:, 1:])


@pytest.mark.few(1)
@pytest.mark.parametrize("words", [["b", "a"], ["007", "7", "A1"], 35 * ["1"] + 5 * ["x"]])
def test_a_column_of_text_is_one_hot(words: list[str]) -> None:
    rows = cells()
    column = [words[row % len(words)] for row in range(ROWS)]
    for row, word in zip(rows, column, strict=True):
        row[500] = word
    table = read_table(written(rows), "x0", categorical=["x500"])
    assert table.columns[499].categories == sorted(set(words))
    found = table.data(torch.arange(ROWS)).inputs.numpy()
    hot = [[word == each for each in sorted(set(words))] for word in column]
    right = np.concatenate([NUMBERS[:, 1:500], hot, NUMBERS[:, 501:]], axis=1)
    np.testing.assert_array_equal(found, right)


@pytest.mark.few(1)
def test_words_without_being_asked_for() -> None:
    rows = cells()
    for number, row in enumerate(rows):
        row[500] = ["red", "green"][number % 2]
    table = read_table(written(rows), "x0")
    assert table.columns[499].categories == ["green", "red"]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[33].append("1"), "line 35 has 1,101 cells, but the header has 1,100"),
        (lambda rows: rows[5].pop(), "line 7 has 1,099 cells, but the header has 1,100"),
        (lambda rows: rows[5].__setitem__(4, "oops"), "column 'x4': 1 of 40 cells is not a number"),
        (lambda rows: rows[38].__setitem__(4, "inf"), "column 'x4': 1 cell is not finite, first"),
        (lambda rows: rows[9].__setitem__(0, ""), "missing cells: 1 of 40 in 'x0' (first in line"),
        (lambda rows: rows[9].__setitem__(0, 'a"b'), "column 'x0': 1 of 40 cells is not a number"),
    ],
)
def test_damaged_rows_are_refused(damage: object, message: str) -> None:
    rows = cells()
    damage(rows)  # type: ignore[operator]
    with pytest.raises(DataError) as raised:
        read_table(written(rows), "x0")
    assert str(raised.value).startswith(f"d.csv: {message}")


@pytest.mark.few(1)
def test_nan_that_is_no_missing_value_is_not_finite() -> None:
    rows = cells()
    rows[17][4] = "nan"
    with pytest.raises(
        DataError, match=r"^d\.csv: column 'x4': 1 cell is not finite, first in line 19;"
    ):
        read_table(written(rows), "x0", missing_values=["-"])


@pytest.mark.few(1)
@pytest.mark.parametrize("row", [0, ROWS - 1])
def test_codes_that_begin_with_0(row: int) -> None:
    rows = cells()
    rows[row][5] = "0123"
    path = written(rows)
    with pytest.raises(
        DataError, match="column 'x5' holds codes that begin with 0, such as '0123'"
    ):
        read_table(path, "x0")
    expected = NUMBERS.copy()
    expected[row, 5] = 123
    np.testing.assert_array_equal(inputs(path, keep=["x5"]).numpy(), expected[:, 1:])
