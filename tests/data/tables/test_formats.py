"""The same rows in every format, plain and compressed, alone and in folders; others are named."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch

from gdtrain.data.tables.formats import csv_file
from gdtrain.data.tables.table import read_table
from gdtrain.errors import DataError

N = 23
FRAME = pd.DataFrame(
    {
        "size": [3.5 * i % 17 for i in range(N)],
        "rooms": [i % 4 + 1 for i in range(N)],
        "colour": ["red", "green", "blue dark"] * 7 + ["red", "green"],
        "price": [10.0 * (3.5 * i % 17) + i % 4 for i in range(N)],
    }
)
ONE_HOT = pd.get_dummies(FRAME["colour"])[["blue dark", "green", "red"]].to_numpy(float)
INPUTS = np.column_stack([FRAME["size"], FRAME["rooms"], ONE_HOT])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def inputs(path: str, **options: Any) -> Any:
    table = read_table(path, "price", **options)
    data = table.data(torch.arange(len(table)))
    np.testing.assert_array_equal(data.targets[:, 0].numpy(), FRAME["price"])
    return data.inputs.numpy()


CSV = FRAME.to_csv(index=False)
JSONL = FRAME.to_json(orient="records", lines=True)


def feather(compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.feather.write_feather(FRAME, sink, compression=compression)
    return bytes(sink.getvalue())


def parquet(**options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pandas(FRAME), sink, **options)
    return bytes(sink.getvalue())


FILES: dict[str, tuple[str, bytes]] = {
    "csv": ("a.csv", CSV.encode()),
    "semicolons": ("a.csv", FRAME.to_csv(index=False, sep=";").encode()),
    "tabs": ("a.tsv", FRAME.to_csv(index=False, sep="\t").encode()),
    "all quoted": ("a.csv", FRAME.to_csv(index=False, quoting=1).encode()),
    "carriage returns": ("a.csv", CSV.replace("\n", "\r\n").encode()),
    "a byte order mark": ("a.csv", CSV.encode("utf-8-sig")),
    "gzip": ("a.csv.gz", gzip.compress(CSV.encode())),
    "bzip2": ("a.csv.bz2", bz2.compress(CSV.encode())),
    "zstd": ("a.csv.zst", bytes(pa.compress(CSV.encode(), "zstd", asbytes=True))),
    "no ending": ("data", CSV.encode()),
    "JSON lines": ("a.jsonl", JSONL.encode()),
    "compressed JSON lines": ("a.jsonl.gz", gzip.compress(JSONL.encode())),
    "Parquet": ("a.parquet", parquet()),
    "Parquet of row groups": ("a.parquet", parquet(row_group_size=5, compression="zstd")),
    "Parquet, called CSV": ("a.csv", parquet()),
    "Feather": ("a.feather", feather("uncompressed")),
    "compressed Feather": ("a.arrow", feather("lz4")),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_the_same_rows_in_every_format(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    np.testing.assert_array_equal(inputs(name), INPUTS)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (FRAME.to_csv(index=False, sep=";", decimal=","), {"decimal": ","}),
        (FRAME.to_csv(index=False, quotechar="'", quoting=1), {"quote": "'"}),
        ("made by hand\nin 2024\n" + CSV, {"skip_rows": 2}),
        ("# a note\n" + CSV.replace("\n", "\n#, no row\n", 3), {"comment": "#"}),
    ],
)
def test_dialects_that_are_said(text: str, options: dict[str, Any]) -> None:
    Path("a.csv").write_text(text)
    np.testing.assert_array_equal(inputs("a.csv", **options), INPUTS)


def test_another_encoding() -> None:
    Path("a.csv").write_text(CSV.replace("green", "grün"), "utf-16")
    with pytest.raises(DataError, match=r"^a\.csv: is UTF-16 text; set encoding: utf-16$"):
        read_table("a.csv", "price")
    np.testing.assert_array_equal(inputs("a.csv", encoding="utf-16"), INPUTS)
    Path("a.csv").write_text(CSV.replace("green", "grün"), "latin-1")
    np.testing.assert_array_equal(inputs("a.csv", encoding="latin-1"), INPUTS)


def test_without_a_header_columns_have_numbers() -> None:
    Path("a.csv").write_text(FRAME.to_csv(index=False, header=False))
    table = read_table("a.csv", "column_4", header=False)
    assert [column.name for column in table.columns] == ["column_1", "column_2", "column_3"]
    np.testing.assert_array_equal(table.targets[:, 0].numpy(), FRAME["price"])


def halves(folder: Path) -> None:
    FRAME[:9].to_csv(folder / "part-0.csv", index=False)
    FRAME[9:].to_parquet(folder / "part-1.parquet")
    (folder / "_SUCCESS").write_text("")


@pytest.mark.parametrize("path", ["parts", "parts/part-*", "~/parts"])
def test_a_folder_and_a_pattern_are_all_files_in_the_order_of_their_names(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("parts").mkdir()
    halves(Path("parts"))
    np.testing.assert_array_equal(inputs(path), INPUTS)


def test_places_in_a_folder_name_the_file() -> None:
    Path("parts").mkdir()
    Path("parts/a.csv").write_text(CSV)
    lines = CSV.splitlines()
    lines[4] = ",".join(["many", *lines[4].split(",")[1:]])
    Path("parts/b.csv").write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"1 of 46 cells is not a number: 'many' in parts/b.csv, line 5"
    ):
        read_table("parts", "price")
    Path("parts/b.csv").write_text("size,price\n1,2\n")
    with pytest.raises(
        DataError, match=r"parts/b.csv: has no column 'rooms', which parts/a.csv has"
    ):
        read_table("parts", "price")


def test_types_that_a_file_says_are_taken_as_they_are() -> None:
    table = pa.table(
        {
            "whole": pa.array([1, 2, None], pa.int8()),
            "truth": pa.array([True, False, True]),
            "named": pa.array(["b", "a", "b"]).dictionary_encode(),
            "large": pa.array(["u", "v", "u"], pa.large_string()),
            "day": pa.array([19723, 19725, 19724], pa.date32()),
            "moment": pd.to_datetime(["2024-01-01 00:00", "2024-01-01 12:00", "2024-01-04 00:00"]),
            "money": pa.array(["1.50", "2.25", "0.10"]).cast(pa.decimal128(9, 2)),
            "y": [1.0, 2.0, 3.0],
        }
    )
    pyarrow.parquet.write_table(table, "a.parquet")
    read = read_table("a.parquet", "y", keep=["day", "moment"], missing="mean")
    assert read.data(torch.arange(3)).inputs.tolist() == [
        [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.5],
        [2.0, 0.0, 1.0, 0.0, 0.0, 1.0, 2.0, 0.5, 2.25],
        [1.5, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 3.0, 0.1],
    ]
    pyarrow.parquet.write_table(pa.table({"x": [[1], [2]], "y": [1, 2]}), "a.parquet")
    with pytest.raises(DataError, match=r"column 'x' holds list<.*>, which is not a number, text"):
        read_table("a.parquet", "y")


def zipped(**files: str) -> bytes:
    with zipfile.ZipFile("made.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return Path("made.zip").read_bytes()


RECORDS = FRAME.to_json(orient="records")
COLUMNS = FRAME.to_json()
LONG = pd.concat([FRAME] * 9_000, ignore_index=True).to_json()
NAMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "xlsx": (lambda: zipped(xl__workbook="x"), r"an Excel spreadsheet \(XLSX\).*read_excel\('f'\)"),
    "zip": (lambda: zipped(a="x,y\n1,2\n"), r"a zip archive; .*read_csv\('f'\).to_parquet"),
    "xls": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an Excel spreadsheet"),
    "JSON by columns": (COLUMNS.encode, r"JSON, but not one object a line .*pd.read_json"),
    "long JSON by columns": (LONG.encode, r"JSON, but not one object a line .*pd.read_json"),
    "JSON": (RECORDS.encode, r"JSON, but not one object a line .*pd.read_json"),
    "indented JSON": (lambda: json.dumps(json.loads(RECORDS), indent=1).encode(), "is JSON, but"),
    "ARFF": (lambda: b"% made\n\n@RELATION x\n@ATTRIBUTE a NUMERIC\n", "an ARFF file; .*loadarff"),
    "LIBSVM": (lambda: b"+1 1:0.5 3:2\n-1 2:1\n", "a LIBSVM file; .*load_svmlight_file"),
    "numpy": (lambda: b"\x93NUMPY\x01\x00", "a numpy array; use source: npy"),
    "SQLite": (lambda: b"SQLite format 3\x00", "an SQLite database"),
    "HTML": (lambda: b"<!DOCTYPE html><html>", "an HTML page"),
    "damaged Parquet": (lambda: parquet()[:-20], "is a Parquet file that can't be read: "),
    "damaged Feather": (lambda: feather("lz4")[:-20], "is a Feather file that can't be read: "),
    "damaged gzip": (lambda: gzip.compress(CSV.encode())[:-20], "is damaged, or no gzip file"),
    "compressed Parquet": (lambda: gzip.compress(parquet()), "is a compressed Parquet or Feather"),
    "a record that is none": (
        lambda: b'{"size":1,"price":2}\n[3]\n',
        "line 2 is not a JSON object",
    ),
    "a broken record": (lambda: b'{"size":1,"price":2}\n{"size"\n', "line 2 is not JSON: "),
    "another record": (
        lambda: b'{"size":1,"price":2}\n{"size":1,"width":2}\n',
        "missing cells: 1 of 2 in 'width' .first in line 1., 1 of 2 in 'price' .first in line 2.;",
    ),
}


@pytest.mark.parametrize(("make", "said"), NAMED.values(), ids=NAMED)
def test_what_is_not_read_is_named(make: Callable[[], bytes], said: str) -> None:
    Path("f").write_bytes(make())
    with pytest.raises(DataError, match=said) as told:
        read_table("f", "price")
    assert "\n" not in str(told.value)


def test_no_address_is_read() -> None:
    for path in ("https://example.org/a.csv", "s3://bucket/a.parquet"):
        with pytest.raises(
            DataError, match=f"^{re.escape(path)}: is an address; download the file"
        ):
            read_table(path, "y")


def test_folders_that_hold_a_column_are_refused() -> None:
    FRAME.assign(year=[2023 + i % 2 for i in range(N)]).to_parquet("d", partition_cols=["year"])
    said = (
        "d: the folder year=2023 holds a value of a column that is in no file; make one Parquet "
        "file of it with pandas (pip install pandas): "
        "pd.read_parquet('d').to_parquet('table.parquet'); or give the pattern d/*/*.parquet to "
        "read the files without it"
    )
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        read_table("d", "price")
    pd.read_parquet("d").to_parquet("table.parquet")
    assert len(read_table("table.parquet", "price", missing="mean")) == len(FRAME)
    assert len(read_table("d/*/*.parquet", "price", missing="mean")) == len(FRAME)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([b"\xff", b"a"]), "binary"),
        (pa.array([b"\xff", b"a"]).dictionary_encode(), "binary"),
        (pa.array([[1], None]), "list<"),
        (pa.array([{"a": 1}, None]), "struct<"),
    ],
)
def test_columns_that_are_no_cells_are_named(values: pa.Array, said: str) -> None:
    pyarrow.parquet.write_table(pa.table({"x": [1.0, 2], "b": values, "y": [1.0, 2]}), "f")
    with pytest.raises(DataError, match=f"column 'b' holds {said}.*; leave it out: exclude: .b.$"):
        read_table("f", "y")
    assert len(read_table("f", "y", exclude=["b"])) == 2


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_of_every_precision(unit: str) -> None:
    counts = [0, 86_400, 1_706_659_201] if unit == "s" else [1, 1_706_659_201_000_000_001, -7]
    cells = pa.array(counts, pa.timestamp(unit))
    pyarrow.feather.write_feather(pa.table({"t": cells, "x": [1.0, 2, 3], "y": [1.0, 2, 3]}), "f")
    in_a_day = pd.Timedelta(days=1) // pd.Timedelta(1, unit)
    found = read_table("f", "y", keep=["t"]).cells[:, 0]
    np.testing.assert_allclose(found, np.array(counts) / in_a_day, rtol=1e-15)


def test_the_first_and_the_last_day_there_are() -> None:
    days = [datetime.date(1, 1, 1), datetime.date(9999, 12, 31)]
    for kind in (pa.date32(), pa.date64()):
        table = pa.table({"t": pa.array(days, kind), "x": [1.0, 2], "y": [1.0, 2]})
        pyarrow.parquet.write_table(table, "f")
        assert read_table("f", "y", keep=["t"]).cells[:, 0].tolist() == [-719_162, 2_932_896]


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("write", [pyarrow.parquet.write_table, pyarrow.feather.write_feather])
def test_text_that_is_not_utf_8_is_named(coded: bool, write: Callable[..., object]) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xffa")]
    text = pa.Array.from_buffers(pa.string(), 2, buffers)
    write(pa.table({"t": text.dictionary_encode() if coded else text, "y": [1.0, 2]}), "f")
    with pytest.raises(DataError, match=r"^f: is a .* file that can't be read: .*Invalid UTF8"):
        read_table("f", "y")


def test_lists_are_no_targets() -> None:
    pyarrow.parquet.write_table(pa.table({"x": [1.0, 2], "y": [[1], [2]]}), "f")
    with pytest.raises(DataError, match="date; choose another target, or write it as numbers or"):
        read_table("f", "y")


def test_objects_of_json_are_named_as_what_they_are() -> None:
    Path("f").write_text('{"a":1,"o":{"k":1},"y":2}\n{"a":2,"l":[1],"y":2}\n')
    with pytest.raises(DataError) as told:
        read_table("f", "y")
    assert "column 'o' holds struct<>," in str(told.value)
    assert "column 'l' holds list<" in str(told.value)


def test_the_line_of_pandas_for_libsvm_keeps_the_labels() -> None:
    import sklearn.datasets

    Path("f").write_text("3 1:0.5 2:3\n-1 1:0.25\n")
    with pytest.raises(DataError) as told:
        read_table("f", "y")
    line = str(told.value).split("(pip install pandas): ")[1]
    exec(line, {"pd": pd, "sklearn": sklearn})
    table = read_table("table.parquet", "y")
    assert table.cells.tolist() == [[0.5, 3], [0.25, 0]]
    assert table.targets[:, 0].tolist() == [3, -1]


LATE = {
    "a word after many numbers": ("a", "1 of 4,001 cells is not a number: 'a' in line 4002"),
    "a number with a sign": ("+7", 7.0),
    "a number between blanks": (" 8 ", 8.0),
    "a missing cell between blanks": (" NA ", None),
    "NaN written in another way": ("-nan", "1 cell is not finite, first in line 4002"),
    "infinity": ("inf", "1 cell is not finite, first in line 4002"),
    "a decimal comma": ('"7,5"', "1 of 4,001 cells is not a number: '7,5' in line 4002"),
}


@pytest.mark.parametrize("case", LATE)
def test_cells_far_down_are_read_by_the_same_rules(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are read as such until one is written in another way, in a block further down."""
    monkeypatch.setattr(csv_file, "_BLOCK", 1 << 12)
    cell, expected = LATE[case]
    rows = [f"{n / 8},{'rgb'[n % 3]},{n:03}" for n in range(4000)]
    Path("f").write_text("\n".join(["x,colour,y", *rows, f"{cell},r,007"]) + "\n")
    if isinstance(expected, str):
        with pytest.raises(DataError, match=re.escape(expected)):
            read_table("f", "y", missing="mean", categorical=["y"])
        return
    table = read_table("f", "y", missing="mean", categorical=["y"])
    assert table.class_names is not None
    assert table.class_names[7] == "007"
    numbers = [n / 8 for n in range(4000)]
    last = np.mean(numbers) if expected is None else expected
    inputs = table.data(torch.arange(4001)).inputs
    np.testing.assert_array_equal(inputs[:, 0].numpy(), [*numbers, last])
    np.testing.assert_array_equal(inputs[:, 1:].argmax(1).numpy(), [*([2, 1, 0] * 1334)[:4000], 2])


def test_a_column_of_words_in_one_file_and_numbers_in_the_next_keeps_how_they_are_written() -> None:
    Path("d").mkdir()
    Path("d/1.csv").write_text("code,y\n" + "A1,1\nB2,2\n" * 9)
    Path("d/2.csv").write_text("code,y\n" + "007,3\n1.50,4\n" * 4)
    table = read_table("d", "y")
    assert table.columns[0].categories == ["007", "1.50", "A1", "B2"]
    Path("e").mkdir()
    Path("e/1.csv").write_text("code,y\n" + "007,3\n1.50,4\n" * 4)
    Path("e/2.csv").write_text("code,y\n" + "A1,1\nB2,2\nC,1\n" * 9)
    assert read_table("e", "y").columns[0].categories == ["007", "1.50", "A1", "B2", "C"]
