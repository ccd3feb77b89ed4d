"""What becomes of a table: filled cells, validation parts, and many categories in little memory."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from gdtrain.cli.main import main
from gdtrain.config.data import prepare_data
from gdtrain.config.load import parse_config
from gdtrain.data.loaders.loader import BatchLoader, MiniBatchLoader
from gdtrain.data.tables import table as table_module
from gdtrain.data.tables.preparation import PreparedData, split
from gdtrain.errors import ConfigError, DataError

N = 120


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frame(seed: int = 0) -> pd.DataFrame:
    """Numbers and words with missing cells, dates, and numbers and classes to learn."""
    draw = random.Random(seed)
    days = pd.date_range("2023-05-01", periods=400)
    rows = [
        {
            "size": draw.choice([None, *[draw.gauss(5, 2)] * 9]),
            "rooms": draw.randrange(1, 6),
            "colour": draw.choice([None, *["red", "green", "blue"] * 3]),
            "sold": draw.choice(days).date(),
            "price": draw.gauss(100, 9),
            "kind": draw.choice(["house", "flat", "flat", "hut"]),
        }
        for _ in range(N)
    ]
    return pd.DataFrame(rows)


def prepared(loss: str = "mse", target: str = "price", **data: Any) -> PreparedData:
    drop = "kind" if target == "price" else "price"
    settings = {"source": "table", "path": "t.csv", "target": target, "exclude": [drop]} | data
    return prepare_data(
        parse_config(
            {
                "data": settings, "model": "linear", "loss": loss, "loader": "batch",
                "optimizer": {"lr": 0.1}, "epochs": 1, "seed": 3, "precision": "fp64",
            }
        )
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["mean", "median", "most_frequent"])
def test_what_is_filled_in_is_learnt_on_the_training_part_as_scikit_learn_does(rule: str) -> None:
    table = frame()
    table.to_csv("t.csv", index=False)
    data = prepared(missing=rule, keep=["sold"], validation_fraction=0.25, standardize=True)
    rows = [part.numpy() for part in split(N, 0.25, 3)]
    table["sold"] = (pd.to_datetime(table["sold"]) - pd.Timestamp("2023-05-01")).dt.days
    words = SimpleImputer(strategy="most_frequent", missing_values=None)
    encoder = make_column_transformer(
        (SimpleImputer(strategy=rule), ["size", "rooms"]),
        (make_pipeline(words, OneHotEncoder(sparse_output=False)), ["colour"]),
        ("passthrough", ["sold"]),
    )
    table["colour"] = table["colour"].astype(object).where(table["colour"].notna(), None)
    pipeline = make_pipeline(encoder, StandardScaler()).fit(table.iloc[rows[0]])
    for part, chosen in zip((data.training, data.validation), rows, strict=True):
        expected = pipeline.transform(table.iloc[chosen])
        np.testing.assert_allclose(part[0].numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(part[1][:, 0].numpy(), table["price"].iloc[chosen])


def test_flags_say_where_cells_were_missing() -> None:
    table = frame()
    table.to_csv("t.csv", index=False)
    x = prepared(missing="mean", indicator=True, exclude=["kind", "sold"]).training[0].numpy()
    assert x.shape == (N, 2 + 1 + 3 + 1)
    np.testing.assert_array_equal(x[:, 1], table["size"].isna())
    np.testing.assert_array_equal(x[:, -1], table["colour"].isna())
    x = prepared(missing="mean", indicator=["size"], exclude=["kind", "sold"]).training[0].numpy()
    assert x.shape == (N, 2 + 1 + 3)


def test_columns_whose_rows_are_dropped_have_no_flag() -> None:
    table = frame()
    table.to_csv("t.csv", index=False)
    rules = {"size": "drop", "colour": "most_frequent"}
    x = prepared(missing=rules, indicator=True, exclude=["kind", "sold"]).training[0].numpy()
    assert x.shape == (table["size"].notna().sum(), 1 + 1 + 3 + 1)
    np.testing.assert_array_equal(x[:, -1], table["colour"].isna()[table["size"].notna()])


def test_rows_with_missing_cells_are_left_out() -> None:
    table = frame()
    table.loc[::7, "price"] = None
    table.to_csv("t.csv", index=False)
    rows = table.dropna()
    data = prepared(missing="drop", exclude=["kind", "sold"])
    np.testing.assert_array_equal(data.training[1][:, 0].numpy(), rows["price"])
    rules = {"size": "mean", "colour": "most_frequent", "price": "drop"}
    data = prepared(missing=rules, exclude=["kind", "sold"])
    np.testing.assert_array_equal(data.training[1][:, 0].numpy(), table["price"].dropna())
    with pytest.raises(DataError, match="column 'colour' is text, which has no median"):
        prepared(missing=rules | {"colour": "median"}, exclude=["kind", "sold"])


def test_a_validation_file_is_encoded_as_the_training_one() -> None:
    whole = frame().drop(columns="sold")
    whole[:90].to_csv("t.csv", index=False)
    whole[90:].to_parquet("other.parquet")
    other = {"path": "other.parquet"}
    data = prepared(missing="mean", validation=other)
    mean = whole["size"][:90].mean()
    np.testing.assert_allclose(data.validation[0][:, 0], whole["size"][90:].fillna(mean))
    np.testing.assert_array_equal(data.validation[1][:, 0], whole["price"][90:])
    classes = prepared("cross_entropy", "kind", missing="mean", validation=other)
    expected = ["flat", "house", "hut"]
    assert [expected[label] for label in classes.validation[1].tolist()] == list(whole["kind"][90:])
    whole.loc[100, "colour"] = "mauve"
    whole[90:].to_parquet("other.parquet")
    with pytest.raises(DataError, match=r"other.parquet: row 10, column 'colour' is 'mauve'"):
        prepared(missing="mean", validation=other)
    data = prepared(missing="mean", validation=other, unknown_category="ignore")
    assert data.validation[0][10, -3:].tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="can't be set together with validation_fraction"):
        prepared(missing="mean", validation=other, validation_fraction=0.1)


def test_classes_have_their_shares_and_the_last_rows_are_the_last() -> None:
    table = frame().drop(columns=["sold"])
    table.to_csv("t.csv", index=False)
    options = {"missing": "mean", "validation_fraction": 0.25}
    data = prepared("cross_entropy", "kind", stratify=True, **options)
    for part, share in ((data.training, 0.75), (data.validation, 0.25)):
        counts = torch.bincount(part[1]).numpy()
        expected = share * table["kind"].value_counts().sort_index().to_numpy()
        assert (abs(counts - expected) <= 1).all()
    data = prepared(shuffle=False, **options)
    np.testing.assert_array_equal(data.validation[1][:, 0], table["price"][-30:])
    with pytest.raises(ConfigError, match="stratify: needs classes, and mse learns numbers"):
        prepared(stratify=True, **options)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_many_categories_are_made_inputs_by_the_batch(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the numbers that they have all at once."""
    frame().to_csv("t.csv", index=False)
    target = "price" if loss == "mse" else "kind"
    options = {"missing": "mean", "keep": ["sold"], "standardize": True, "indicator": True}
    options |= {"validation_fraction": 0.25, "standardize_targets": loss == "mse"}
    at_once = prepared(loss, target, **options)
    monkeypatch.setattr(table_module, "MOST_BYTES", 0)
    monkeypatch.setattr(table_module, "MOST_TIMES", 0)
    by_batch = prepared(loss, target, **options)
    assert not isinstance(by_batch.training, tuple)
    assert by_batch.preprocessing.columns == at_once.preprocessing.columns
    for part, whole in (
        (by_batch.training, at_once.training),
        (by_batch.validation, at_once.validation),
    ):
        (batch,) = BatchLoader(part)
        torch.testing.assert_close(batch.inputs, whole[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(batch.targets, whole[1], rtol=1e-12, atol=1e-12)
        batches = list(MiniBatchLoader(part, 7, order="sequential"))
        assert torch.equal(torch.cat([each.inputs for each in batches]), batch.inputs)


def test_the_columns_are_said_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    table = frame().drop(columns="sold")
    table.to_csv("t.csv", index=False)
    data = "{source: csv, path: t.csv, target: price, missing: mean, indicator: true}"
    Path("a.yaml").write_text(
        f"data: {data}\nmodel: linear\nloss: mse\nloader: batch\noptimizer: {{lr: 0.01}}\n"
        "epochs: 1\nlog: {picture: false}\n"
    )
    missing = table.isna().sum()
    most = "3 one-hot inputs, missing: most frequent, a flag where missing"
    filled = "a number, missing: mean, a flag where missing"
    for arguments in (["--dry-run"], ["--output-dir", "out"]):
        assert main(["--config", "a.yaml", *arguments]) == 0
        assert capsys.readouterr().err.splitlines()[:5] == [
            f"column  type    missing  distinct  {'becomes':<{len(most)}}  why",
            f"size    number  {missing['size']:<7}  over 32   {filled:<{len(most)}}  "
            "all cells are numbers",
            f"rooms   number  0        5         {'a number':<{len(most)}}  all cells are numbers",
            f"colour  text    {missing['colour']:<7}  3         {most}  text",
            f"kind    text    0        3         {'3 one-hot inputs':<{len(most)}}  text",
        ]
    kept = json.loads(Path("out/preprocessing.json").read_text("utf-8"))["columns"]
    assert [column["name"] for column in kept] == ["size", "rooms", "colour", "kind"]
    assert kept[0]["fill"] == pytest.approx(table["size"].mean())
    assert kept[2]["fill"] == table["colour"].mode()[0]
    assert json.loads(Path("out/summary.json").read_text("utf-8"))["columns"] == {
        "numbers": 2, "dates": 0, "categories": 2, "inputs": 10,
    }  # fmt: skip
