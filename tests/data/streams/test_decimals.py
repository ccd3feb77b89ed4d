"""Numbers read many at once have the bits of float(); what is not plain is left to others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdtrain.data.streams.csv_records import CsvRecords
from gdtrain.data.streams.decimals import DecimalGrid

digits = st.text("0123456789", max_size=9)


@st.composite
def plain(draw) -> str:
    """A sign or none, digits, a dot or none, digits: in all at least one digit."""
    whole, dot, after = draw(digits), draw(st.sampled_from(["", "."])), draw(digits)
    if not whole + after:
        whole = "0"
    return draw(st.sampled_from(["", "-"])) + whole + dot + after


def read(rows: list[list[str]], chosen: list[int] | None = None):
    text = "".join(",".join(row) + "\n" for row in rows)
    return DecimalGrid(len(rows[0]), chosen).read(text.encode())


@given(st.lists(st.tuples(plain(), plain(), plain()), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_plain_numbers_have_the_bits_of_float(rows) -> None:
    numbers, ends, odd = read([list(row) for row in rows])
    wanted = np.array([[float(cell) for cell in row] for row in rows])
    kept = np.setdiff1d(np.arange(len(rows)), odd)
    assert numbers[kept].tobytes() == wanted[kept].tobytes()
    assert ends.tolist() == np.cumsum([len(",".join(row)) + 1 for row in rows]).tolist()
    for place in odd:  # only what is too long, or too large to be exact
        assert any(
            len(cell.lstrip("-")) > 16 or int(cell.strip("-").replace(".", "")) >= 1 << 53
            for cell in rows[place]
        )


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("0", 0.0),
        ("-0", -0.0),
        ("-0.0", -0.0),
        ("5.", 5.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("00012", 12.0),
        ("12345678", 12345678.0),
        ("1234567.8", 1234567.8),
        ("12345678.9", 12345678.9),
        ("1.23456789", 1.23456789),
        ("0.123456", 0.123456),
        ("9007199254740991", 9007199254740991.0),
        ("0.00000000000001", 0.00000000000001),
        ("-123456789.12345", -123456789.12345),
    ],
)
def test_forms_of_plain_numbers(cell: str, value: float) -> None:
    for row in ([cell], [cell, cell], ["1", cell, "-2.5"]):
        numbers, _, odd = read([row])
        assert not len(odd)
        at = 1 if len(row) == 3 else 0
        assert numbers[0, at : at + 1].tobytes() == np.array([value]).tobytes()


@pytest.mark.parametrize(
    "cell",
    [
        *("", "-", ".", "-.", "--1", "1-", "1-2", "1.2.3", "1..2", "1e5", "1E5", "nan", "inf"),
        *("9007199254740992", "0.1234567890123456789", "1_0", "x", "1/2", "1:2", "é"),
        *("12345678x", "x2345678"),
        *("1234567x.5", "x.12345678", "1.2345678.9", "１"),
    ],
)  # fmt: skip
def test_other_cells_are_left_to_others(cell: str) -> None:
    _, _, odd = read([["1", "2"], ["3", cell], ["5", "6"]])
    assert odd.tolist() == [1]


@pytest.mark.parametrize("line", ["1", "1,2,3", "", "1, 2", '1,"2"', "1,+2", "1,2\r", "1,2,"])
def test_another_grid_is_none(line: str) -> None:
    assert DecimalGrid(2, None).read(f"1,2\n{line}\n3,4\n".encode()) is None


def test_chosen_cells_in_their_order() -> None:
    rows = [["1", "x", "2.5"], ["3", "y", "-4"]]
    numbers, _, odd = read(rows, [2, 0])
    assert numbers.tolist() == [[2.5, 1.0], [-4.0, 3.0]]
    assert not len(odd)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blocks_of_records_are_read_as_lines_are(end: str) -> None:
    records = CsvRecords("file", "a,b,y", None, ["y"])
    draw = np.random.default_rng(0)
    cells = [
        [f"{v:.{draw.integers(0, 9)}f}" for v in row] for row in draw.standard_normal((5000, 3))
    ]
    cells[17][1], cells[4000][2] = "1e-7", "0.12345678901234567"
    lines = [",".join(row) for row in cells]
    rows, ends = records.parse_block("".join(line + end for line in lines).encode())
    assert rows.tobytes() == records.parse(lines).tobytes()
    assert ends.tolist() == np.cumsum([len(line) + len(end) for line in lines]).tolist()
    for bad in ("1,2,x", "1,2", "1,2,nan", "1,2,1e999"):
        lines[300] = bad
        assert records.parse_block("".join(line + end for line in lines).encode()) is None


def test_ends_of_both_kinds_are_read_line_by_line() -> None:
    records = CsvRecords("file", "a,y", None, ["y"])
    assert records.parse_block(b"1,2\r\n3,4\n") is None
