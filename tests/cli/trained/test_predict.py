"""The command ``predict``: a row for each row, as numpy computes it from the run's files."""

import csv
import io
import json
import os
import resource
import signal
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.processes import run, start
from safetensors.numpy import load_file

from gdtrain import load_run
from gdtrain.cli.main import main
from gdtrain.data.tables.formats import csv_file
from gdtrain.errors import DataError

ROWS = [(50.0, "a"), (110.5, "c"), (20.25, "b")]
TABLE = "area,kind\n" + "".join(f"{area},{kind}\n" for area, kind in ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With three finished runs of a linear model: of prices, of two targets, and of classes."""
    made: Path = tmp_path_factory.mktemp("houses")
    draw = np.random.default_rng(5)
    lines = ["area,kind,price,age,flower,is_dear,worth"]
    for number in range(60):
        area, kind = round(float(draw.uniform(20, 120)), 2), "abc"[number % 3]
        price = 3 * area + 10 * (number % 3)
        flower = "lily" if price < 150 else "rose" if price < 260 else "tulip"
        worth = "dear" if price > 200 else "cheap"
        lines.append(f"{area},{kind},{price},{area / 2},{flower},{int(price > 200)},{worth}")
    (made / "houses.csv").write_text("\n".join(lines) + "\n")
    for name, target, loss, scaled in (
        ("price", "price", "mse", True),
        ("both", ["price", "age"], "mse", True),
        ("flower", "flower", "cross_entropy", False),
        ("dear", "is_dear", "bce_with_logits", False),
        ("worth", "worth", "bce_with_logits", False),
        ("margin", "flower", "multi_margin", False),
    ):
        data = {
            "source": "csv", "path": str(made / "houses.csv"), "target": target,
            "features": ["area", "kind"], "standardize": True, "standardize_targets": scaled,
        }  # fmt: skip
        settings = [
            f"data: {json.dumps(data)}", "model: linear", f"loss: {loss}", "loader: batch",
            "optimizer: {lr: 0.1}", "epochs: 3", "precision: fp64", "log: {picture: false}",
        ]  # fmt: skip
        (made / f"{name}.yaml").write_text("\n".join(settings))
        arguments = ["--config", str(made / f"{name}.yaml"), "--output-dir", str(made / name)]
        assert main(arguments) == 0
    (made / "new.csv").write_text(TABLE)
    return made


def outputs(run: Path) -> np.ndarray:
    """The linear model's outputs for the rows, by the files of the run alone."""
    kept = json.loads((run / "preprocessing.json").read_text("utf-8"))
    x = np.array([[area, *(float(kind == name) for name in "abc")] for area, kind in ROWS])
    x = (x - kept["mean"]) / kept["std"]
    arrays = load_file(run / "model.safetensors").values()
    (weight,) = (array for array in arrays if array.ndim == 2)
    (bias,) = (array for array in arrays if array.ndim == 1)
    found = x @ weight.T + bias
    if kept.get("target_mean"):
        found = found * kept["target_std"] + kept["target_mean"]
    return found


def predicted(folder: Path, name: str, capsys, *options: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["predict", str(folder / name), str(folder / "new.csv"), *options]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def numbers(rows: list[dict[str, str]], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def softmax(scores: np.ndarray) -> np.ndarray:
    likely = np.exp(scores - scores.max(1, keepdims=True))
    return likely / likely.sum(1, keepdims=True)


def test_numbers_in_the_units_of_the_target(folder: Path, capsys) -> None:
    rows = predicted(folder, "price", capsys)
    assert list(rows[0]) == ["price"]
    assert numbers(rows, "price") == pytest.approx(outputs(folder / "price")[:, 0], rel=1e-9)


def test_several_targets(folder: Path, capsys) -> None:
    rows = predicted(folder, "both", capsys)
    assert list(rows[0]) == ["price", "age"]
    for place, name in enumerate(rows[0]):
        assert numbers(rows, name) == pytest.approx(outputs(folder / "both")[:, place], rel=1e-9)


def test_classes_and_their_probabilities(folder: Path, capsys) -> None:
    rows, expected = predicted(folder, "flower", capsys), softmax(outputs(folder / "flower"))
    names = ["lily", "rose", "tulip"]
    assert list(rows[0]) == ["prediction", *names]
    assert [row["prediction"] for row in rows] == [names[n] for n in expected.argmax(1)]
    for place, name in enumerate(names):
        assert numbers(rows, name) == pytest.approx(expected[:, place], rel=1e-9)


def test_two_classes_of_one_output(folder: Path, capsys) -> None:
    rows = predicted(folder, "dear", capsys)
    expected = 1 / (1 + np.exp(-outputs(folder / "dear")[:, 0]))
    assert numbers(rows, "is_dear") == pytest.approx(expected, rel=1e-9)


def test_two_named_classes_of_one_output(folder: Path, capsys) -> None:
    rows = predicted(folder, "worth", capsys)
    dear = 1 / (1 + np.exp(-outputs(folder / "worth")[:, 0]))
    assert list(rows[0]) == ["prediction", "cheap", "dear"]
    assert numbers(rows, "dear") == pytest.approx(dear, rel=1e-9)
    assert numbers(rows, "cheap") == pytest.approx(1 - dear, rel=1e-9)
    assert [row["prediction"] for row in rows] == ["dear" if p > 0.5 else "cheap" for p in dear]


def test_scores_where_a_loss_has_no_probabilities(folder: Path, capsys) -> None:
    rows = predicted(folder, "margin", capsys)
    assert numbers(rows, "tulip") == pytest.approx(outputs(folder / "margin")[:, 2], rel=1e-9)


def test_columns_in_another_order_and_others_beside_them(folder: Path, capsys) -> None:
    expected = predicted(folder, "price", capsys)
    text = "note,kind,area\n" + "".join(f"x,{kind},{area}\n" for area, kind in ROWS)
    (folder / "new.csv").write_text(text)
    try:
        assert predicted(folder, "price", capsys) == expected
    finally:
        (folder / "new.csv").write_text(TABLE)


def test_into_a_file(folder: Path, capsys, tmp_path: Path) -> None:
    expected = predicted(folder, "flower", capsys)
    out = tmp_path / "told.csv"
    assert predicted(folder, "flower", capsys, "--out", str(out)) == []
    assert list(csv.DictReader(out.read_text("utf-8").splitlines())) == expected


@pytest.mark.parametrize("name", ["new.csv", "link.csv"])
def test_the_table_itself_is_not_written_over(folder: Path, capsys, name: str) -> None:
    if name == "link.csv" and not (folder / name).exists():
        (folder / name).symlink_to(folder / "new.csv")
    table, out = folder / "new.csv", folder / name
    assert main(["predict", str(folder / "flower"), str(table), "--out", str(out)]) == 2
    assert f"{out} is the table to predict for; choose another file" in capsys.readouterr().err
    assert table.read_text() == TABLE


BAD = {
    "unseen category": ("area,kind\n50,a\n70,z\n", ("line 3", "kind", "'z'")),
    "missing cell": ("area,kind\n50,a\n,b\n", ("line 3", "area")),
    "text for a number": ("area,kind\n8O,a\n", ("line 2", "area", "8O")),
    "missing column": ("area,colour\n50,a\n", ("no column 'kind'",)),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_can_not_be_read(case: str, folder: Path, capsys, tmp_path: Path) -> None:
    text, parts = BAD[case]
    (tmp_path / "bad.csv").write_text(text)
    out = tmp_path / "never.csv"
    assert (
        main(["predict", str(folder / "price"), str(tmp_path / "bad.csv"), "--out", str(out)]) == 2
    )
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(part in shown.err for part in parts), shown.err
    assert not out.exists()


def test_what_is_no_finished_run(folder: Path, capsys, tmp_path: Path) -> None:
    assert main(["predict", str(tmp_path), str(folder / "new.csv")]) == 2
    assert capsys.readouterr().err == (
        f"command line:1:1: RUN: {tmp_path} is not a finished run: it has no config.yaml\n"
    )


# ── other tables, other rows ────────────────────────────────────────────────────────────────


def test_tables_in_memory_say_what_a_file_does(folder: Path) -> None:
    run = load_run(folder / "price")
    expected = outputs(folder / "price")[:, 0]
    frame = pd.DataFrame({"kind": [k for _, k in ROWS], "area": [a for a, _ in ROWS]})
    frame.to_parquet(folder / "new.parquet")
    for table in (
        folder / "new.csv",
        str(folder / "new.parquet"),
        frame,
        pa.Table.from_pandas(frame),
        frame.to_dict("list"),
        frame.to_dict("records"),
    ):
        found = run.predict_table(table)
        assert list(found) == ["price"]
        np.testing.assert_allclose(found["price"], expected, rtol=1e-12)
    with pytest.raises(DataError, match="has no column 'area', which the model was trained on"):
        run.predict_table(frame[["kind"]])
    with pytest.raises(DataError, match="was trained on; did you mean 'Area'"):
        run.predict_table(frame.rename(columns={"area": "Area"}))
    message = "is not numeric; encode it first, or give predict_table the rows with their columns$"
    with pytest.raises(DataError, match=message):
        run.predict([[50.0, "a"]])
    with pytest.raises(DataError, match=r"^the table: can't be taken as one: "):
        run.predict_table(3)


BAD_ROWS = "area,kind\n50.0,a\n,c\n110.5,c\n1,z\nmany,a\n20.25,b\n"


@pytest.mark.parametrize("at_once", [20, 1 << 20])
def test_rows_that_do_not_fit(folder: Path, capsys, monkeypatch, at_once: int) -> None:
    """An error with its line, or left out, or a row without a prediction."""
    monkeypatch.setattr(csv_file, "_BLOCK", at_once)
    monkeypatch.setattr(csv_file, "_ROWS_OF_HEADER", 1)
    (folder / "bad.csv").write_text(BAD_ROWS)
    arguments = ["predict", str(folder / "price"), str(folder / "bad.csv")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "bad.csv: line 3, column 'area' has no value" in err
    expected = outputs(folder / "price")[:, 0]
    assert main([*arguments, "--on-bad-row", "skip"]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(out.splitlines()))
    np.testing.assert_allclose(numbers(rows, "price"), expected, rtol=1e-12)
    first = f"the first: {folder / 'bad.csv'}: line 3, column 'area' has no value"
    assert err.splitlines()[-1].startswith(f"3 rows left out; {first}")
    assert main([*arguments, "--on-bad-row", "empty", "--out", str(folder / "told.csv")]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"3 rows without a prediction; {first}")
    cells = (folder / "told.csv").read_text().splitlines()[1:]
    assert [cell == '""' for cell in cells] == [False, True, False, True, True, False]
    assert pd.read_csv(folder / "told.csv")["price"].isna().tolist() == [c == '""' for c in cells]


def test_columns_of_the_result(folder: Path, capsys) -> None:
    rows = predicted(folder, "flower", capsys, "--columns", "rose,prediction")
    assert list(rows[0]) == ["rose", "prediction"]
    whole = predicted(folder, "flower", capsys)
    assert [row["rose"] for row in rows] == [row["rose"] for row in whole]
    arguments = ["predict", str(folder / "flower"), str(folder / "new.csv")]
    assert main([*arguments, "--columns", "violet"]) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --columns: the predictions have no column 'violet'; their columns are "
        "prediction, lily, rose, tulip\n"
    )


def test_standard_input(folder: Path, capsys, monkeypatch) -> None:
    expected = predicted(folder, "price", capsys)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TABLE.encode())))
    assert main(["predict", str(folder / "price"), "-"]) == 0
    assert list(csv.DictReader(capsys.readouterr().out.splitlines())) == expected


def test_a_row_of_standard_input_that_can_not_be_read(folder: Path, capsys, monkeypatch) -> None:
    command = ["predict", str(folder / "price"), "-", "--on-bad-row"]
    for how, code, begins in (
        ("error", 2, "gdtrain: "),
        ("skip", 0, "3 rows left out; the first: "),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(BAD_ROWS.encode())))
        capsys.readouterr()
        assert main([*command, how]) == code
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith(f"{begins}standard input: line 3, column 'area' has no value")


def no_file_over(count: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it from its start
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


@pytest.mark.parametrize("given", ["file", "-"])
def test_a_full_temporary_folder_is_told_of(folder: Path, tmp_path: Path, given: str) -> None:
    """Where a result waits until all rows are read, and standard input until it can be."""
    many = tmp_path / "many.csv"
    many.write_text("area,kind\n" + "50.125,a\n" * 3000)
    command = ["-m", "gdtrain", "predict", str(folder / "price")]
    limit = partial(no_file_over, 8192)
    with start(
        *command, str(many) if given == "file" else "-", stdin=given == "-", before=limit
    ) as program:
        if program.stdin is not None:
            with suppress(BrokenPipeError):
                program.stdin.write(many.read_bytes())
            program.stdin.close()
        assert program.wait() == 1
    place = tempfile.gettempdir()
    assert program.err == (
        f"gdtrain: a temporary file in {place} could not be written: [Errno 27] File too large\n"
    )


def closed_standard_input() -> None:
    os.close(0)
    sys.stdin = None  # as Python has it then


def test_a_closed_standard_input_is_an_empty_one(folder: Path) -> None:
    done = run("-m", "gdtrain", "predict", str(folder / "price"), "-", before=closed_standard_input)
    assert done.returncode == 2
    assert done.err.endswith("is empty; its first line must name the columns\n")
    done = run("-m", "gdtrain", "--config", "-", before=closed_standard_input)
    assert done.returncode == 2
    assert done.err.startswith("standard input:1:1: is empty; it needs data, ")
