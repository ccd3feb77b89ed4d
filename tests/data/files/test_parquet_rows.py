"""Parquet trains without being loaded: in its order, or in row groups that are shuffled."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from gdtrain import MiniBatchLoader, load_run
from gdtrain.cli.main import main
from gdtrain.data.files.mapped import held_out
from gdtrain.data.files.parquet_rows import parquet
from gdtrain.data.orders.permutation import RowGroups
from gdtrain.data.tables.preparation import Preprocessing
from gdtrain.errors import ConfigError, DataError

ROWS, GROUP = 103, 20


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """t.parquet in the working directory: numbers and words in six row groups, some missing."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    found = pd.DataFrame(
        {
            "a": draw.normal(size=ROWS),
            "colour": draw.choice(["red", "green", "blue"], ROWS),
            "b": draw.normal(size=ROWS),
        }
    )
    found["y"] = 2 * found["a"] - found["b"] + (found["colour"] == "red")
    for name in ("a", "colour"):
        found.loc[draw.random(ROWS) < 0.1, name] = None
    found.to_parquet("t.parquet", row_group_size=GROUP)
    return found


def train(out: str, source: str, order: str, *more: str, loss: str = "mse", **data: Any) -> int:
    settings = {"source": source, "path": "t.parquet", "target": "y", **data}
    Path(f"{out}.yaml").write_text(
        f"data: {json.dumps(settings)}\nmodel: linear\nloss: {loss}\n"
        f"loader: {{name: minibatch, batch_size: 7, order: {order}}}\noptimizer: {{lr: 0.05}}\n"
        "epochs: 3\nengine: eager\nlog: {picture: false}\n"
        "checkpoint: {every_n_steps: 4, keep_last: 99}\n"
    )
    return main(["--config", f"{out}.yaml", "--output-dir", out, "--quiet", *more])


@pytest.mark.parametrize("missing", ["drop", "median", "most_frequent"])
def test_weights_are_those_of_the_table_in_memory(missing: str) -> None:
    for source in ("table", "parquet"):
        more = {"missing": missing, "indicator": missing != "drop"}
        assert train(source, source, "sequential", "precision=fp64", **more) == 0
    ours, theirs = (load_file(f"{out}/model.safetensors") for out in ("parquet", "table"))
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=1e-12, atol=1e-14)


def test_it_is_resumed_to_the_bit_from_each_checkpoint(tmp_path: Path) -> None:
    assert train("run", "parquet", "row_groups", missing="mean", standardize=True) == 0
    kept = sorted(path.name for path in Path("run/checkpoints").glob("step-*"))
    for name in kept[1::4]:
        shutil.copytree("run", name)
        for path in Path(name).glob("checkpoints/step-*"):
            if path.name != name:
                shutil.rmtree(path)
        assert main(["--config", "run.yaml", "--output-dir", name, "--resume", "--quiet"]) == 0
        weights = Path("run/model.safetensors").read_bytes()
        assert Path(name, "model.safetensors").read_bytes() == weights


def test_what_fills_in_missing_cells_is_learnt_on_the_training_part(table: pd.DataFrame) -> None:
    data = {"missing": "median", "validation_fraction": 0.3, "standardize": True}
    assert train("run", "parquet", "row_groups", "seed=5", **data) == 0
    training = table.drop(index=held_out(ROWS, 0.3, 5).tolist())
    done = load_run("run").preprocessing
    assert done.columns is not None
    fills = [column.fill for column in done.columns]
    assert fills == [training["a"].median(), training["colour"].mode()[0], training["b"].median()]
    filled = training["a"].fillna(training["a"].median())
    assert done.mean[0] == pytest.approx(filled.mean(), rel=1e-12)
    assert done.std[0] == pytest.approx(filled.std(ddof=0), rel=1e-12)


def test_classes_that_are_numbers_keep_their_names(table: pd.DataFrame) -> None:
    table.assign(y=np.where(table["b"] > 0, 3, 7)).to_parquet("t.parquet", row_group_size=GROUP)
    data = {"missing": "mean", "loss": "cross_entropy"}
    assert train("run", "parquet", "row_groups", **data) == 0
    found = load_run("run").predict_table("t.parquet")
    right = np.mean(np.array(found["prediction"]) == np.where(table["b"] > 0, "3", "7"))
    assert right > 0.9
    assert set(found) == {"prediction", "3", "7"}


def test_row_groups_come_whole_and_each_sample_once() -> None:
    """A pure function of seed and epoch: the same for another loader of the same files."""
    done = Preprocessing([5], 1)
    samples = parquet("t.parquet", "y", missing="mean").samples(lambda targets, _: targets, done)
    loaders = [MiniBatchLoader(samples, 7, order="row_groups", seed=seed) for seed in (1, 1, 2)]
    epochs = [loaders[0].draws_of(range(epoch, epoch + 1)) for epoch in (0, 1)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(ROWS))
        groups = (order // GROUP).tolist()
        changes = sum(one != other for one, other in pairwise(groups))
        assert changes == 5  # of six groups, none comes again
    assert not torch.equal(*epochs)
    again = [loader.draws_of(range(1)) for loader in loaders[1:]]
    assert torch.equal(epochs[0], again[0])
    assert not torch.equal(epochs[0], again[1])


def test_every_order_of_groups_is_as_likely_as_another() -> None:
    """Of three groups all six orders come, and of a group of three rows all six too."""
    groups, rows = set(), set()
    for epoch in range(200):
        draws = RowGroups(np.array([1, 2, 5])).draw(lambda *k, e=epoch: hash((e, *k)) % 2**63, 2)
        found = draws[0:5].tolist()
        assert sorted(found) == [0, 1, 2, 3, 4]
        rows.add(tuple(row for row in found if row > 1))
        groups.add(tuple(dict.fromkeys(min(row, 2) for row in found)))
    assert (len(groups), len(rows)) == (6, 6)


@pytest.mark.parametrize("loader", ["sample", "[{name: sample, until_epoch: 1}, batch]"])
def test_row_groups_are_the_order_that_need_not_be_named(loader: str) -> None:
    data = {"missing": "mean", "standardize": True}
    assert train("run", "parquet", "row_groups", f"loader={loader}", **data) == 0
    assert "order: row_groups" in Path("run/config.yaml").read_text()


def test_other_orders_and_other_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("run", "parquet", "reshuffle", missing="mean") == 2
    told = capsys.readouterr().err
    assert "run.yaml:4:9: loader: order must be row_groups or sequential on Parquet" in told
    pd.DataFrame({"a": [1.0, 2.0], "y": [1.0, 2.0]}).to_csv("t.csv", index=False)
    with pytest.raises(DataError, match=r"^t.csv: is not Parquet; use source: table, or convert"):
        parquet("t.csv", "y")
    with pytest.raises(ConfigError, match="order: row_groups needs data that is read in groups"):
        MiniBatchLoader((torch.ones(3, 1), torch.ones(3, 1)), 2, order="row_groups")


@pytest.mark.parametrize("setting", [{"missing": {"colur": "drop"}}, {"indicator": ["colur"]}])
def test_columns_that_settings_name_are_there(setting: dict[str, Any]) -> None:
    message = "^t.parquet: has no column 'colur'; did you mean colour\\?$"
    with pytest.raises(DataError, match=message):
        parquet("t.parquet", "y", **setting)
