"""Cells that are nearly numbers, or dates and times: what is said of them, and what is right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gdtrain.data.tables.formats import csv_file
from gdtrain.data.tables.table import read_table
from gdtrain.errors import ConfigError, DataError
from gdtrain.training.losses.labels import CrossEntropy
from gdtrain.training.losses.numbers import Mse

WITH_PANDAS = "write plain numbers, with pandas (pip install pandas): "
THOUSANDS = "these look like numbers with thousands separators; " + WITH_PANDAS
BARE = r"df['a'] = df['a'].str.replace(r'[^\d.-]', '', regex=True).astype(float)"
COMMAS = 'these look like numbers with decimal commas; set decimal: ","'
POINTS = 'these look like numbers with decimal points; set decimal: "."'


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(cells: list[str], targets: list[str] | None = None) -> str:
    targets = [str(n) for n in range(len(cells))] if targets is None else targets
    rows = [f"{cell};{target}" for cell, target in zip(cells, targets, strict=True)]
    Path("d.csv").write_text("\n".join(["a;y", *rows]) + "\n")
    return "d.csv"


def faults(path: str, **options: object) -> list[str]:
    with pytest.raises(DataError) as told:
        read_table(path, "y", **options)  # type: ignore[arg-type]
    return str(told.value).split("\n")


@pytest.mark.parametrize(
    ("cells", "options", "said"),
    [
        (["0,126", "1,259"], {}, COMMAS),
        (["1,259", "0,126"], {}, COMMAS),
        (["1,259", "2,5"], {}, COMMAS),
        (["2,5", "-1,259"], {}, COMMAS),
        (["12.5", "1.259"], {"decimal": ","}, POINTS),
        (["1,259", "2,500,000"], {}, THOUSANDS + BARE),
        (["1,259.5", "2,500"], {}, THOUSANDS + BARE),
        (
            ["1,259", "2,500"],
            {},
            THOUSANDS + BARE + '; or, where fractions stand behind the commas, set decimal: ","',
        ),
        (["2,5", "2,500,000"], {}, "correct them; or, if they stand for no value, set "),
    ],
)
def test_commas_before_thousands_or_fractions(
    cells: list[str], options: dict[str, object], said: str
) -> None:
    (fault,) = faults(written(cells), **options)
    assert f"in line 2; {said}" in fault
    assert "decimal" in said or "decimal" not in fault


def test_the_commas_of_one_column_say_what_those_of_others_are() -> None:
    told = faults(written(["1,259", "2,500"], ["1,25", "2,5"]))
    assert [fault.split("; ", 1)[1] for fault in told] == [COMMAS, COMMAS]
    told = faults(written(["1,25", "2,5"], ["1,259", "2,500"]))
    assert [fault.split("; ", 1)[1] for fault in told] == [COMMAS, COMMAS]
    table = read_table("d.csv", "y", decimal=",")
    assert table.cells.tolist() == [[1.25], [2.5]]
    assert table.targets.tolist() == [[1.259], [2.5]]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["\u22120.5", "3", "\u22121e3"], [-0.5, 3, -1000]),
        (["\u20132", "\u20133", "4"], [-2, -3, 4]),
        (["\u0661\u0662", "\u0663.5", "7"], [12, 3.5, 7]),
        (["\uff11\uff12", "\uff0d\uff13", "7"], [12, -3, 7]),
    ],
)
def test_digits_and_minus_signs_that_are_not_ascii(cells: list[str], numbers: list[float]) -> None:
    (fault,) = faults(written(cells))
    assert "numbers with other digits or minus signs than those of ASCII; " in fault
    df = pd.read_csv("d.csv", sep=";")
    exec(fault.split(WITH_PANDAS)[1], {"df": df, "pd": pd})
    assert df["a"].tolist() == numbers


TIMES = [
    ([f"{n % 24:02}:{n}" for n in range(20, 40)], [n % 24 + n / 60 for n in range(20, 40)]),
    ([f"{n}:05:30" for n in range(20)], [n + 5.5 / 60 for n in range(20)]),
    ([f"{n}:30 PM" for n in range(1, 12)], [12.5 + n for n in range(1, 12)]),
]


@pytest.mark.parametrize(("cells", "hours"), TIMES)
def test_many_times_of_day_are_no_categories(cells: list[str], hours: list[float]) -> None:
    (fault,) = faults(written(cells))
    assert fault.endswith("; or, if they are names, categorical: [a]")
    assert f"its cells, such as {cells[0]!r} in line 2, look like times of day; " in fault
    line = re.search(r"df\['a'\] = .* 3600", fault)
    assert line is not None
    df = pd.read_csv("d.csv", sep=";")
    exec(line[0], {"df": df, "pd": pd})
    np.testing.assert_allclose(df["a"], hours, rtol=1e-12)


def test_few_times_of_day_are_names() -> None:
    (column,) = read_table(written(["8:00", "16:30", "8:00"]), "y").columns
    assert column.categories == ["16:30", "8:00"]


ZONES = ["2024-03-30T23:30+01:00", "2024-03-31T01:30-0230", "2024-03-31 00:00:00Z"]


def test_dates_of_a_time_zone_are_the_moments_that_they_are() -> None:
    moments = pd.to_datetime(pd.Series(ZONES), utc=True, format="mixed")
    pd.DataFrame({"a": moments, "y": [1.0, 2, 3]}).to_parquet("d.parquet")
    expected = (moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)
    for path in (written(ZONES), "d.parquet"):
        table = read_table(path, "y", keep=["a"])
        assert table.columns[0].first_day == 19812  # 2024-03-30, in UTC
        np.testing.assert_allclose(table.cells[:, 0], expected, rtol=1e-15)


def test_dates_with_and_without_a_time_zone_are_refused() -> None:
    said = (
        "column 'a': '2024-01-03T10:00Z' in line 3 has a time zone, and '2024-01-02' in line 2 "
        "has none; write all dates in one way"
    )
    cells = ["2024-01-02", "2024-01-03T10:00Z", "2024-01-04"]
    assert faults(written(cells), keep=["a"]) == [f"d.csv: {said}"]


@pytest.mark.parametrize("loss", [Mse(name="mse"), CrossEntropy(name="cross_entropy")])
def test_dates_are_no_targets(loss: object) -> None:
    path = written(["1", "2"], ["2024-01-02", "2000-01-11"])
    with pytest.raises(ConfigError, match="which are no targets; write numbers, ") as told:
        read_table(path, "y", loss=loss)  # type: ignore[arg-type]
    df = pd.read_csv(path, sep=";")
    exec(str(told.value).split("(pip install pandas): ")[1], {"df": df, "pd": pd})
    assert df["y"].tolist() == [8767, 10]
    df.to_csv("days.csv", index=False)
    assert read_table("days.csv", "y").targets.dtype == torch.float64


@pytest.mark.parametrize("form", ["{}", '"{}"', " {} "])
@pytest.mark.parametrize("late", [False, True])
def test_codes_that_begin_with_0_are_not_taken_for_numbers(
    form: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "_BLOCK", 1 << 10)
    codes = [str(10_000 + n % 6) for n in range(400)]
    codes[-1 if late else 0] = "01003"
    path = written([form.format(code) for code in codes], [str(n) for n in range(400)])
    said = (
        "d.csv: column 'a' holds codes that begin with 0, such as '01003', and would make 1 input; "
        "leave out columns that are not inputs with exclude: [a], or use them as they are with "
        "keep: [a]; as names they are categorical: [a]"
    )
    assert faults(path) == [said]
    table = read_table(path, "y", keep=["a"])
    assert table.cells[:, 0].tolist() == [float(code) for code in codes]
    assert table.columns[0].distinct == 7
    table = read_table(path, "y", categorical=["a"])
    assert table.columns[0].categories == sorted(set(codes))


def test_codes_of_json_lines() -> None:
    Path("d.jsonl").write_text('{"a": "01003", "y": 1}\n{"a": "10003", "y": 2}\n')
    (fault,) = faults("d.jsonl")
    assert "column 'a' holds codes that begin with 0, such as '01003'" in fault


@pytest.mark.parametrize("cells", [["07", "12"], ["00.5", "01.5"], ["0", "100"], ["-012", "7"]])
def test_numbers_that_begin_with_0(cells: list[str]) -> None:
    table = read_table(written(cells), "y")
    assert table.cells[:, 0].tolist() == [float(cell) for cell in cells]


@pytest.mark.parametrize(
    ("cells", "line", "days"),
    [
        (["1/2/2024", "13/2/2024"], "dayfirst=True); or leave", [19754, 19766]),
        (["1/2/2024", "2/13/2024"], "dayfirst=False); or leave", [19724, 19766]),
        (
            ["1/2/2024", "3/2/2024"],
            "dayfirst=True); dayfirst=False if months stand first; or leave",
            [19754, 19756],
        ),
    ],
)
def test_days_before_months_or_behind_them(cells: list[str], line: str, days: list[int]) -> None:
    (fault,) = faults(written(cells), keep=["a"])
    assert line in fault
    df = pd.read_csv("d.csv", sep=";")
    exec(fault.split("(pip install pandas): ")[1].split("; ")[0], {"df": df, "pd": pd})
    df.to_csv("again.csv", index=False)
    assert read_table("again.csv", "y", keep=["a"]).cells[:, 0].tolist() == days


def test_a_fault_of_a_column_is_told_once() -> None:
    Path("d.csv").write_text("a,y,\n1,2,\n2,3,\n")
    said = "d.csv: column 'column_3' has no values at all; leave it out: exclude: [\"column_3\"]"
    assert faults("d.csv") == [said]


@pytest.mark.parametrize("decimal", [".", ","])
def test_dates_are_dates_whatever_stands_before_a_fraction(decimal: str) -> None:
    path = written(["03.09.2013", "23.12.2010"])
    assert faults(path, decimal=decimal) == [
        "d.csv: column 'a': '03.09.2013' in line 2 is a date that is not written as "
        "year-month-day, or does not exist; with pandas (pip install pandas): "
        "df['a'] = pd.to_datetime(df['a'], dayfirst=True); or leave it out: exclude: [a]"
    ]
    path = written(["2013-09-03 12:00:00.500", "2010-12-23 12:00:00.500"])
    assert read_table(path, "y", decimal=decimal, keep=["a"]).columns[0].first_day == 14966
