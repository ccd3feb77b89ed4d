"""A test part: rows that nothing is learnt from, evaluated when training is over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gdtrain import load_run
from gdtrain.cli.main import main
from gdtrain.config.data import prepare_data
from gdtrain.config.load import load_config

ROWS = 60


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """t.csv in the working directory, whose column ``x0`` numbers the rows from 100 on."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    found = pd.DataFrame({"x0": 100.0 + np.arange(ROWS), "x1": draw.normal(size=ROWS)})
    found["x0"] = found["x0"].sample(frac=1, random_state=0).to_numpy()
    found["y"] = np.where(np.arange(ROWS) % 3, "often", "seldom")
    found.to_csv("t.csv", index=False)
    return found


def train(*more: str, loss: str = "cross_entropy", **data: Any) -> int:
    settings = {"source": "table", "path": "t.csv", "target": "y", **data}
    Path("a.yaml").write_text(
        f"data: {json.dumps(settings)}\nmodel: linear\nloss: {loss}\nloader: batch\n"
        "optimizer: {lr: 0.00001}\nepochs: 2\nprecision: fp64\nlog: {picture: false}\n"
    )
    return main(["--config", "a.yaml", "--output-dir", "run", "--quiet", *more])


def parts() -> list[set[float]]:
    """The rows that train, validate and test, by their numbers."""
    config, _ = load_config(Path("a.yaml"))
    data = prepare_data(config)
    return [
        set() if p is None else set(p[0][:, 0].tolist())
        for p in (data.training, data.validation, data.test)
    ]


@pytest.mark.parametrize("more", [{}, {"validation_fraction": 0.25}, {"shuffle": False}])
def test_a_fraction_is_evaluated_at_the_end(table: pd.DataFrame, more: dict[str, Any]) -> None:
    """The loss and accuracy are those that evaluate gives for these rows in a file."""
    assert train(test={"fraction": 0.2}, **more) == 0
    training, validation, test = parts()
    assert len(test) == ROWS // 5
    assert len(validation) == (12 if "validation_fraction" in more else 0)
    assert training | validation | test == set(table["x0"])
    assert len(training) + len(validation) + len(test) == ROWS
    table[table["x0"].isin(test)].to_csv("test.csv", index=False)
    told = load_run("run").evaluate("test.csv")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["test"].keys() == {"loss", "accuracy"}
    assert summary["test"]["loss"] == pytest.approx(told["loss"], rel=1e-12)
    assert summary["test"]["accuracy"] == told["accuracy"]


def test_the_last_rows_are_those_of_test_then_of_validation(table: pd.DataFrame) -> None:
    assert train(test={"fraction": 0.2}, validation_fraction=0.25, shuffle=False) == 0
    training, validation, test = parts()
    numbers = table["x0"].tolist()
    assert test == set(numbers[48:])
    assert validation == set(numbers[36:48])
    assert training == set(numbers[:36])


def test_each_class_has_its_share_of_the_test_part(table: pd.DataFrame) -> None:
    assert train(test={"fraction": 0.3}, stratify=True) == 0
    rows = table[table["x0"].isin(parts()[2])]
    assert rows["y"].value_counts().to_dict() == {"often": 12, "seldom": 6}


def test_a_file_is_evaluated_at_the_end_and_nothing_is_learnt_from_it(
    table: pd.DataFrame,
) -> None:
    table.assign(x0=1000.0).iloc[:7].to_csv("test.csv", index=False)
    more = {"validation_fraction": 0.25, "standardize": True}
    assert train(test={"path": "test.csv"}, **more) == 0
    with_test = Path("run/model.safetensors").read_bytes()
    told = load_run("run").evaluate("test.csv")
    found = json.loads(Path("run/summary.json").read_text())["test"]
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-12)
    assert train("--output-dir", "other", **more) == 0
    assert Path("other/model.safetensors").read_bytes() == with_test
    assert "test" not in json.loads(Path("other/summary.json").read_text())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"test": {}}, "data.test.path: missing; set fraction, or path"),
        (
            {"test": {"fraction": 0.2, "path": "t.csv"}},
            "data.test.path: can't be set together with fraction; remove one of the two",
        ),
        ({"test": {"fraction": 1}}, "data.test.fraction: must be < 1, got 1"),
        (
            {"test": {"fraction": 0.999}},
            "data: no samples to train on: test.fraction 0.999 takes 60 of 60; use a",
        ),
        ({"test": {"path": "no.csv"}}, "data: no.csv: file not found"),
        ({"test": {"path": "t.csv"}, "shuffle": False}, "data.shuffle: has no effect without"),
    ],
)
def test_what_can_not_be_is_refused(
    data: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(**data) == 2
    assert said in capsys.readouterr().err
