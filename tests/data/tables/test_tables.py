"""CSV files: what is read, and how every fault is told with its line and column."""

from __future__ import annotations

import csv
import re
from errno import ENAMETOOLONG
from os import strerror
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdtrain.data.tables.formats.csv_file import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.known import TableEncoder, names_of_text
from gdtrain.data.tables.preparation import Column, LoadedData
from gdtrain.data.tables.scan import marks_of
from gdtrain.data.tables.table import read_table
from gdtrain.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str | bytes, target: Any = "y", **options: Any) -> LoadedData:
    Path("a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file("a.csv", target, **options)


def read_file(path: str, target: Any = "y", **options: Any) -> LoadedData:
    table = read_table(path, target, **options)
    return table.data(torch.arange(len(table)))


def refuses(kind: type[Exception], message: str) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    "text",
    [
        "x,y\n1,2\n3,4\n",
        "x,y\n1,2\n3,4",
        "x,y\r\n1,2\r\n3,4\r\n",
        "x,y\r1,2\r3,4\r",
        "\ufeffx,y\n1,2\n3,4\n",
        '"x","y"\n"1","2"\n"3","4"\n',
        " x , y \n 1 , 2 \n3,4.0\n",
        "x,y\n1,2\n\n3,4\n\n",
        "x,y\n1e0,+2\n0.3e1,4.\n",
        "\n\nx,y\n1,2\n3,4\n",
        "x;y\n1;2\n3;4\n",
        "x\ty\n1\t2\n3\t4\n",
        "x|y\n1|2\n3|4\n",
    ],
)
def test_the_same_numbers_in_any_common_dialect(text: str) -> None:
    data = read(text)
    assert data.inputs.dtype == data.targets.dtype == torch.float64
    assert data.inputs.tolist() == [[1.0], [3.0]]
    assert data.targets.tolist() == [[2.0], [4.0]]
    assert data.class_names is None
    assert data.columns == [Column("x")]


@settings(deadline=None)  # a machine may be busy
@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=20
    )
)
def test_every_float_that_csv_writes_is_read_back_to_the_bit(rows: list[Any]) -> None:
    with Path("f.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "y", "b"), *rows])
    data = read_file("f.csv")
    assert data.inputs.tolist() == [[a, b] for a, _, b in rows]
    assert data.targets.tolist() == [[y] for _, y, _ in rows]


def test_text_columns_become_one_input_per_category_in_the_order_of_names() -> None:
    data = read('x,c,y\n1,red,0\n2,"blue, dark",1\n3,red,0\n')
    assert data.inputs.tolist() == [[1, 0, 1], [2, 1, 0], [3, 0, 1]]
    assert data.columns == [Column("x"), Column("c", ["blue, dark", "red"])]


def test_a_cell_may_hold_line_breaks_and_quotes() -> None:
    data = read('c,y\n"a\nb",1\n"say ""c""",2\n')
    assert data.columns == [Column("c", ["a\nb", 'say "c"'])]
    assert data.inputs.tolist() == [[1, 0], [0, 1]]


def test_a_text_target_becomes_labels_of_named_classes() -> None:
    data = read("x,y\n1,dog\n2,cat\n3,dog\n")
    assert data.targets.tolist() == [1, 0, 1]
    assert data.targets.dtype == torch.int64
    assert data.class_names == ["cat", "dog"]


def test_numbers_named_in_categorical_are_categories() -> None:
    data = read("x,y\n3,7\n1,5\n", categorical=["x", "y"])
    assert data.inputs.tolist() == [[0, 1], [1, 0]]
    assert data.targets.tolist() == [1, 0]
    assert data.class_names == ["5", "7"]


def test_a_code_written_in_two_ways_is_not_two_categories() -> None:
    message = (
        "a.csv: column 'x': '3' in line 2 and '3.0' in line 4 are the same, and would be two "
        "categories; write it in one way"
    )
    with refuses(DataError, message):
        read("x,y\n3,7\n1,5\n3.0,5\n", categorical=["x"])
    assert read("x,y\n3,7\n3.0,5\nv,6\n", categorical=["x"]).inputs.shape == (3, 3)  # names


def test_several_targets_stand_in_the_order_they_are_named() -> None:
    data = read("x,y,z\n1,2,3\n4,5,6\n", target=["z", "y"])
    assert data.inputs.tolist() == [[1], [4]]
    assert data.targets.tolist() == [[3, 2], [6, 5]]


def test_features_choose_and_order_the_inputs() -> None:
    assert read("a,b,c,y\n1,2,3,4\n", features=["c", "a"]).inputs.tolist() == [[3, 1]]


@pytest.mark.parametrize("delimiter", [";", "\t", "|", " "])
def test_another_delimiter(delimiter: str) -> None:
    data = read("x,y\n1,2\n".replace(",", delimiter), delimiter=delimiter)
    assert data.inputs.tolist() == [[1]]


def test_a_wide_table_is_read() -> None:
    names = [f"c{i}" for i in range(400)]
    data = read(",".join(names) + "\n" + ",".join(map(str, range(400))) + "\n", target="c7")
    assert data.inputs.tolist() == [[i for i in range(400) if i != 7]]


MANY = "x,y\n" + "1,2\n" * 30
FINITE = "remove the rows or fill in finite numbers"
FILLS = (
    "missing: drop leaves those rows out; missing: mean, median or most_frequent fills them in "
    "from the training part (of text always most_frequent), and indicator: true adds inputs that "
    "say where"
)
MARKS = (
    'correct them; or, if they stand for no value, set missing_values: ["", NA, "N/A", "NaN", '
    '"?", "NULL", "None", oops] and missing: drop, mean, median or most_frequent'
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; its first line must name the columns"),
        ("x,y\n", "has no rows below its header; at least one is needed"),
        ("x,y\n\n\n", "has no rows below its header; at least one is needed"),
        ("x,y, x\n1,2,3\n", "column 'x' occurs twice in the header; rename one"),
        ("y\n1\n", "has no input columns besides the target; at least one is needed"),
        ("x,y\n1,2\n1,2,3\n", "line 3 has 3 cells, but the header has 2"),
        ("x,y\n1,2\n\n1\n", "line 4 has 1 cell, but the header has 2"),
        ('x,y\n"a\nb",2\n"c\nd"\n', "line 4 has 1 cell, but the header has 2"),
        ("x,y\n1,2\n ,3\n", f"missing cells: 1 of 2 in 'x' (first in line 3); {FILLS}"),
        (
            "x,y\n1,2\n1,\n",
            "missing cells: 1 of 2 in 'y' (first in line 3); missing: drop leaves those rows out; "
            "missing targets can't be filled in",
        ),
        ("x,y\n1,2\nnan,2\n", f"missing cells: 1 of 2 in 'x' (first in line 3); {FILLS}"),
        ("x,y\n1,2\n1,-inf\n", f"column 'y': 1 cell is not finite, first in line 3; {FINITE}"),
        ("x,y\n1,2\n1e999,2\n", f"column 'x': 1 cell is not finite, first in line 3; {FINITE}"),
        (
            MANY + "oops,2\n",
            f"column 'x': 1 of 31 cells is not a number: 'oops' in line 32; {MARKS}; or, if all of "
            "them are names, categorical: [x]",
        ),
        (
            MANY + "1,N.A\n1,?\n",
            f"column 'y': 1 of 31 cells is not a number: 'N.A' in line 32; {MARKS}".replace(
                "oops", '"N.A"'
            ),
        ),
        (
            "x,y\né,2\n".encode("latin-1"),
            "is not UTF-8 text; save it as UTF-8, or set encoding, such as encoding: latin-1",
        ),
        ("x,y\n1,2\n".encode("utf-16"), "is UTF-16 text; set encoding: utf-16"),
        (
            "x,y\n1,2\n".encode("utf-16-le"),
            "holds a NUL character, so it is not text; save it as UTF-8, or set encoding",
        ),
        ('x,y\n"a,2\n', "line 2: unexpected end of data"),
        ('x,y\n"a"b,2\n', "line 2: ',' expected after '\"'"),
        ('x,y\n "a",2\n', "line 2: a blank stands before a quote; remove the blank"),
    ],
)
def test_faults_of_the_file_are_told_with_their_place(text: str | bytes, said: str) -> None:
    with refuses(DataError, f"a.csv: {said}"):
        read(text)


def test_each_fault_of_the_columns_has_a_line_of_its_own() -> None:
    ids = [f"{n},{n % 7},{n % 5},2\n" for n in range(1, 40)]
    with refuses(
        DataError,
        "a.csv: column 'a': 1 of 40 cells is not a number: 'oops' in line 41; "
        f"{MARKS}; or, if all of them are names, categorical: [a]\n"
        "a.csv: column 'id' counts the rows, from 1 on, and would make 1 input; leave out columns "
        "that are not inputs with exclude: [id], or use them as they are with keep: [id]\n"
        f"a.csv: missing cells: 1 of 40 in 'b' (first in line 41); {FILLS}",
    ):
        read("id,a,b,y\n" + "".join(ids) + "40,oops,,2\n")


def test_of_very_many_faults_of_columns_the_first_are_told() -> None:
    names = [f"c{n}" for n in range(60)]
    rows = 20 * [",".join(["1"] * 60)] + [",".join(["oops"] * 59 + ["1"])]
    with pytest.raises(DataError) as raised:
        read("\n".join([",".join(names), *rows]), "c59")
    lines = str(raised.value).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "a.csv: has 9 faults besides these; correct these first"
    for name, line in zip(names, lines[:-1], strict=False):
        assert line.startswith(f"a.csv: column {name!r}: 1 of 21 cells is not a number: 'oops'")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "prise"}, "has no column 'prise'; did you mean price?"),
        ({"target": "zzz"}, "has no column 'zzz'; it has size, rooms, price"),
        ({"target": ["price", "rom"]}, "has no column 'rom'; did you mean rooms?"),
        ({"target": "PRICE"}, "has no column 'PRICE'; did you mean price?"),
        ({"features": ["sizes"]}, "has no column 'sizes'; did you mean size?"),
        ({"categorical": ["room"]}, "has no column 'room'; did you mean rooms?"),
        ({"exclude": ["room"]}, "has no column 'room'; did you mean rooms?"),
        ({"keep": ["room"]}, "has no column 'room'; did you mean rooms?"),
        ({"missing": {"room": "median"}}, "has no column 'room'; did you mean rooms?"),
        (
            {"missing": {"size": "mean", "zzz": "drop"}},
            "has no column 'zzz'; it has size, rooms, price",
        ),
        ({"indicator": ["siz"]}, "has no column 'siz'; did you mean size?"),
        (
            {"features": ["price"]},
            "column 'price' is chosen twice; as feature or target, once",
        ),
        (
            {"features": ["size", "size"]},
            "column 'size' is chosen twice; as feature or target, once",
        ),
        (
            {"target": ["price", "price"]},
            "column 'price' is chosen twice; as feature or target, once",
        ),
        ({"features": []}, "has no input columns besides the target; at least one is needed"),
        (
            {"target": ["price", "rooms"], "categorical": ["rooms"]},
            "target 'rooms' is not numeric; of several, all must be",
        ),
    ],
)
def test_columns_that_can_not_be_chosen_are_refused(options: dict[str, Any], said: str) -> None:
    with refuses(DataError, f"a.csv: {said}"):
        read("size,rooms,price\n1,2,3\n", **{"target": "price", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": []}, "target: must name at least one column"),
        (
            {"features": ["x"], "categorical": ["z"]},
            "categorical: 'z' is neither a feature nor the target",
        ),
        ({"delimiter": ""}, "delimiter: must be one character, got ''"),
        ({"delimiter": "::"}, "delimiter: must be one character, got '::'"),
        ({"delimiter": '"'}, "delimiter: must be one character, no quote, got '\"'"),
        ({"delimiter": "\n"}, r"delimiter: must be one character, got '\n'"),
        ({"delimiter": "→"}, "delimiter: must be an ASCII character, got '→'"),
        ({"decimal": "·"}, """decimal: must be "." or ",", got '·'"""),
        (
            {"encoding": "utf-99"},
            "encoding: 'utf-99' is unknown; utf-8, latin-1 and utf-16 are among the known",
        ),
        ({"keep": ["z"], "features": ["x"]}, "keep: 'z' is neither a feature nor the target"),
        (
            {"exclude": ["z"], "features": ["x"]},
            "exclude: has no effect beside features; remove one of the two",
        ),
        (
            {"missing": {"z": "drop"}, "exclude": ["z"]},
            "missing: 'z' is neither a feature nor the target",
        ),
        ({"indicator": ["z"], "features": ["x"]}, "indicator: 'z' is no feature; remove it"),
        ({"indicator": ["y"]}, "indicator: 'y' is no feature; remove it"),
        (
            {"indicator": True, "missing": "drop"},
            "indicator: has no effect beside missing: drop; remove one",
        ),
        (
            {"indicator": ["z"], "missing": {"z": "drop"}},
            "indicator: 'z' has no missing cells once missing drops their rows; remove it",
        ),
        ({"exclude": ["y"]}, "exclude: 'y' is a feature or the target too; remove one"),
    ],
)
def test_settings_that_can_not_work_are_refused(options: dict[str, Any], message: str) -> None:
    with refuses(ConfigError, message):
        read("x,z,y\n1,2,3\n", **options)


def test_a_missing_file_and_a_directory_are_refused() -> None:
    with refuses(
        DataError, "none.csv: file not found; paths are relative to the working directory"
    ):
        read_table("none.csv", "y")
    Path("empty").mkdir()
    with refuses(DataError, "empty: is a folder without files; give one with tables"):
        read_table("empty", "y")


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with refuses(DataError, f"{'a' * 5000}: can't be read: {strerror(ENAMETOOLONG)}"):
        read_table("a" * 5000, "y")


COLUMNS = [Column("c", ["blue", "red"]), Column("x")]


def encoded(
    text: str, columns: list[Column] = COLUMNS, **options: Any
) -> tuple[Any, dict[int, str]]:
    """Inputs as for predictions, and what is wrong with rows."""
    Path("new.csv").write_text(text, encoding="utf-8")
    marks = marks_of(None)
    names, texts = [column.name for column in columns], names_of_text(columns)
    (batch,) = TableFiles("new.csv", Dialect()).batches(names, marks, as_text=texts)
    encoder = TableEncoder(columns, marks, **options)
    cells, faults = encoder.cells(batch)
    inputs = encoder.inputs(cells, faults)
    return inputs.tolist(), faults


def test_inputs_for_predictions_are_laid_out_as_in_training() -> None:
    training = read("x,c,y\n1,red,0\n2,blue,1\n")
    assert training.columns is not None
    text = Path("a.csv").read_text()
    assert encoded(text, training.columns) == (training.inputs.tolist(), {})
    # Other order, further columns, no target, fewer categories: the same inputs.
    assert encoded("extra,x,c\n?,5,red\n") == ([[0, 1, 5]], {})


def test_a_new_category_is_all_zeros_if_it_is_to_be_ignored() -> None:
    assert encoded("x,c\n5,green\n", ignore_unknown=True) == ([[0, 0, 5]], {})


@pytest.mark.parametrize(
    ("categories", "cell", "expected"),
    [
        (["1", "4"], "4.0", [0, 1]),  # as pandas writes 4 in a column with missing cells
        (["1.0", "4.0"], "4", [0, 1]),
        (["False", "True"], "true", [0, 1]),  # as Arrow and JSON write it
        (["false", "true"], "TRUE", [0, 1]),
        (["no", "true"], "True", [0, 0]),
        (["1", "4"], "4.1", [0, 0]),
        (["1", "1.0"], "1.00", [0, 0]),
        (["01003", "1"], "1003.0", [0, 0]),
        (["4", "v"], "4.0", [0, 0]),  # names, not numbers
    ],
)
def test_codes_may_be_written_in_another_way_than_in_training(
    categories: list[str], cell: str, expected: list[float]
) -> None:
    columns = [Column("c", categories)]
    assert encoded(f"c\n{cell}\n", columns, ignore_unknown=True) == ([expected], {})
    assert bool(encoded(f"c\n{cell}\n", columns)[1]) == (not any(expected))


def test_what_was_learnt_stands_for_missing_cells_and_a_flag_says_where() -> None:
    columns = [
        Column("x", fill=2.5, indicator=True),
        Column("c", ["a", "b"], fill="b"),
        Column("d", first_day=19723.0, fill=19724.0),
    ]
    found = encoded("x,c,d\n1,a,2024-01-03\n,NA,?\n", columns)
    assert found == ([[1, 0, 1, 0, 2], [2.5, 1, 0, 1, 1]], {})


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            "green,1",
            "column 'c' is 'green', a category that does not occur in the training data; train "
            "with data.unknown_category: ignore",
        ),
        ("red,one", "column 'x' is 'one', which is not a number"),
        ("red,", "column 'x' has no value, and in training nothing was learnt to stand for it"),
        ("NA,1", "column 'c' has no value, and in training nothing was learnt to stand for it"),
        ("red,1_000", "column 'x' is '1_000', which is not a number"),
        ("red,inf", "column 'x' is not finite"),
    ],
)
def test_rows_that_do_not_fit_the_training_are_told_of(cells: str, said: str) -> None:
    assert encoded(f"c,x\nred,1\n{cells}\n")[1] == {1: said}


def test_a_column_is_numbers_if_most_of_its_cells_are() -> None:
    with pytest.raises(
        DataError, match=r"^a\.csv: column 'x': 1 of 3 cells is not a number: 'many'"
    ):
        read("x,y\n1,0\n2,0\nmany,0\n")
    data = read("x,y\n1,0\nmore,0\nmany,0\n")
    assert data.columns == [Column("x", ["1", "many", "more"])]
