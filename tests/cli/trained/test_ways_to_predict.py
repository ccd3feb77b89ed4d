"""However a table is predicted for, the numbers are those of numpy with the files of the run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gdtrain import load_run
from gdtrain.cli.main import main

onnxruntime = pytest.importorskip("onnxruntime")

Row = dict[str, str]
NAMES = ("area", "kind", "age")


def rows(count: int, seed: int) -> list[Row]:
    """Numbers and words as a file has them, an eighth of them missing, and all kinds of targets."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        area, age, kind = draw.uniform(20, 120), draw.normal(), "abc"[int(draw.integers(3))]
        price = 3 * area + 10 * age + 20 * (kind == "b")
        row = {"area": f"{area:.2f}", "kind": kind, "age": f"{age:.3f}"}
        row = {name: "" if draw.random() < 1 / 8 else cell for name, cell in row.items()}
        row |= {"price": f"{price:.3f}", "rent": f"{area / 9:.3f}"}
        row |= {"two": ["cheap", "dear"][price > 200], "ten": f"class {number % 10}"}
        found.append(row)
    return found


def write(path: str, table: list[Row]) -> None:
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def by_hand(run: Path, table: list[Row]) -> np.ndarray[Any, Any]:
    """The model's outputs by preprocessing.json and model.safetensors alone."""
    kept = json.loads((run / "preprocessing.json").read_text("utf-8"))
    x = []
    for row in table:
        inputs: list[float] = []
        for column in kept["columns"]:
            cell = row[column["name"]] or column["fill"]
            if column["categories"] is None:
                inputs.append(float(cell))
            else:
                inputs += [float(cell == category) for category in column["categories"]]
            inputs += [float(not row[column["name"]])] * column.get("indicator", False)
        x.append(inputs)
    arrays = [array for _, array in sorted(load_file(run / "model.safetensors").items())]
    w1, w2 = (array.astype(np.float64) for array in arrays if array.ndim == 2)
    b1, b2 = (array.astype(np.float64) for array in arrays if array.ndim == 1)
    hidden = np.tanh((np.array(x) - kept["mean"]) / kept["std"] @ w1.T + b1)
    found: np.ndarray[Any, Any] = hidden @ w2.T + b2
    return found * kept["target_std"] + kept["target_mean"] if kept["target_mean"] else found


def softmax(outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares: np.ndarray[Any, Any] = powers / powers.sum(axis=1, keepdims=True)
    return shares


CASES: dict[str, tuple[Any, str, bool]] = {
    "numbers": ("price", "mse", False),
    "standardised targets": ("price", "mse", True),
    "two targets": (["price", "rent"], "mse", True),
    "two classes": ("two", "cross_entropy", False),
    "ten classes": ("ten", "cross_entropy", False),
}
LONG = (
    "numbers",
    "standardised targets",
    "two targets",
    "two classes",
)  # each export takes seconds


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.long) if c in LONG else c for c in CASES]
)
def test_all_ways_to_predict_agree(
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commands predict and export (ONNX), predict_table, and numpy: to 1e-5."""
    monkeypatch.chdir(tmp_path)
    target, loss, standardize_targets = CASES[case]
    new = rows(40, seed=1)
    write("t.csv", rows(120, seed=0))
    write("new.csv", [{name: row[name] for name in NAMES} for row in new])
    data = {
        "source": "table", "path": "t.csv", "target": target, "features": NAMES,
        "missing": {"area": "mean", "kind": "most_frequent", "age": "median"}, "indicator": True,
        "standardize": True, "standardize_targets": standardize_targets,
    }  # fmt: skip
    lr = 0.1 if standardize_targets or loss != "mse" else 1e-5
    Path("a.yaml").write_text(
        f"data: {json.dumps(data)}\nmodel: {{name: mlp, hidden: [5], activation: tanh}}\n"
        f"loss: {loss}\nloader: batch\noptimizer: {{lr: {lr}}}\nepochs: 5\n"
        "log: {picture: false}\n"
    )
    assert main(["--config", "a.yaml", "--output-dir", "run", "--quiet"]) == 0
    outputs = by_hand(Path("run"), new)
    expected = outputs if loss == "mse" else softmax(outputs)

    table = load_run("run").predict_table("new.csv")
    names = [name for name in table if loss == "mse" or name != "prediction"]
    of_python = np.array([table[name] for name in names]).T
    assert of_python == pytest.approx(expected, rel=1e-5, abs=1e-5)

    capsys.readouterr()
    assert main(["predict", "run", "new.csv"]) == 0
    told = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    of_command = np.array([[float(row[name]) for name in names] for row in told])
    assert of_command == pytest.approx(expected, rel=1e-5, abs=1e-5)
    if loss != "mse":
        likeliest = [names[place] for place in outputs.argmax(axis=1)]
        assert [row["prediction"] for row in told] == table["prediction"] == likeliest

    assert main(["export", "run", "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession("run/model.onnx")
    numbers = {n: np.array([float(row[n] or "nan") for row in new], "f4") for n in ("area", "age")}
    feed = {name: cells[:, None] for name, cells in numbers.items()}
    feed["kind"] = np.array([[row["kind"]] for row in new], dtype=object)
    found = dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))
    assert found["outputs"] == pytest.approx(outputs, rel=1e-5, abs=1e-5)
    if loss != "mse":
        assert found["probabilities"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
