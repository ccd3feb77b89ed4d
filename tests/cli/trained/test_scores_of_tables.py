"""From a file to a model: the scores of scikit-learn on the same rows, whatever the columns are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from gdtrain import load_run
from gdtrain.cli.main import main
from gdtrain.data.tables.preparation import split

DATES = ("sold", "built")
FIRST_DAY = pd.Timestamp("2015-01-01")


def houses(seed: int, kind: str) -> pd.DataFrame:
    """Rows with numbers, words and dates, some of each missing, and a price or one of classes."""
    draw, rows = np.random.default_rng(seed), 240
    size, rooms = draw.normal(90, 20, rows), draw.integers(1, 7, rows)
    colour, place = draw.choice(["red", "green", "blue"], rows), draw.integers(0, 8, rows)
    sold, built = draw.integers(2000, 2900, rows), draw.integers(0, 2000, rows)
    price = 3 * size + 20 * (colour == "red") + 4 * place + sold / 30 - built / 90
    price += draw.normal(0, 25, rows)
    table = pd.DataFrame(
        {
            "size": size,
            "rooms": rooms.astype(float),
            "colour": colour,
            "place": [f"place {number}" for number in place],
            "sold": (FIRST_DAY + pd.to_timedelta(sold, "D")).strftime("%Y-%m-%d"),
            "built": (FIRST_DAY + pd.to_timedelta(built, "D")).strftime("%Y-%m-%d"),
        }
    )
    table.loc[0, "built"] = f"{FIRST_DAY:%Y-%m-%d}"
    for name in table.columns:
        table.loc[1 + np.flatnonzero(draw.random(rows - 1) < 0.05), name] = None
    classes = {"two classes": ["low", "high"], "three classes": ["low", "middle", "high"]}
    if kind == "numbers":
        return table.assign(y=price)
    names = np.array(classes[kind])
    edges = np.quantile(price, np.arange(1, len(names)) / len(names))
    return table.assign(y=names[np.searchsorted(edges, price)])


def of_sklearn(load: Callable[..., Any]) -> pd.DataFrame:
    bunch = load(as_frame=True)
    return bunch.data.assign(y=bunch.target)


HOUSES: dict[str, tuple[int, str, str]] = {
    "prices, mean": (1, "numbers", "mean"),
    "prices, median": (2, "numbers", "median"),
    "prices, most frequent": (3, "numbers", "most_frequent"),
    "more prices, mean": (4, "numbers", "mean"),
    "more prices, median": (5, "numbers", "median"),
    "two classes, mean": (6, "two classes", "mean"),
    "two classes, median": (7, "two classes", "median"),
    "two classes, most frequent": (8, "two classes", "most_frequent"),
    "three classes, mean": (9, "three classes", "mean"),
    "three classes, median": (10, "three classes", "median"),
}
# Planes part these classes, so the loss has no minimum: weights grow for as long as a solver goes
# on, and where two solvers stop, a few rows beside the planes may differ.
PARTED: dict[str, Callable[[], pd.DataFrame]] = {
    "cancer": lambda: of_sklearn(datasets.load_breast_cancer),
    "iris": lambda: of_sklearn(datasets.load_iris),
    "wine": lambda: of_sklearn(datasets.load_wine),
    "named iris": lambda: of_sklearn(datasets.load_iris).replace({"y": {0: "a", 1: "b", 2: "c"}}),
}


def of_scikit_learn(table: pd.DataFrame, rows: Any, rule: str) -> tuple[Any, pd.DataFrame]:
    """Scikit-learn's model of the training rows, and the inputs of all."""
    x = table.drop(columns="y").copy()
    for name in set(DATES) & set(x):
        x[name] = (pd.to_datetime(x[name]) - FIRST_DAY).dt.days
    words = [name for name in x if not pd.api.types.is_numeric_dtype(x[name])]
    x[words] = x[words].astype(object).where(x[words].notna(), None)
    fill = SimpleImputer(strategy="most_frequent", missing_values=None)
    encoder = make_column_transformer(
        (SimpleImputer(strategy=rule), [name for name in x if name not in words]),
        (make_pipeline(fill, OneHotEncoder(sparse_output=False)), words),
    )
    is_number = pd.api.types.is_float_dtype(table["y"])
    model = (
        LinearRegression() if is_number else LogisticRegression(C=1e8, max_iter=20_000, tol=1e-9)
    )
    pipeline = make_pipeline(encoder, StandardScaler(), model)
    return pipeline.fit(x.iloc[rows], table["y"].iloc[rows]), x


def predicted(table: pd.DataFrame, rule: str) -> tuple[Any, Any, pd.DataFrame, Any, Any]:
    """Predictions of the command line with L-BFGS for all rows, the other model and its inputs.

    Then the training and the validation rows.
    """
    table.to_csv("t.csv", index=False)
    is_number = pd.api.types.is_float_dtype(table["y"])
    data = {
        "source": "table", "path": "t.csv", "target": "y", "missing": rule, "standardize": True,
        "keep": [name for name in DATES if name in table], "validation_fraction": 0.3,
    }  # fmt: skip
    loss = "mse" if is_number else "cross_entropy"
    Path("a.yaml").write_text(
        f"data: {json.dumps(data)}\nmodel: linear\nloss: {loss}\nloader: batch\n"
        "optimizer: {name: lbfgs, max_iter: 500}\n"
        "epochs: 2\nprecision: fp64\nlog: {picture: false}\n"
    )
    assert main(["--config", "a.yaml", "--output-dir", "out", "--quiet"]) == 0
    training, validation = (part.numpy() for part in split(len(table), 0.3, 0))
    told = load_run("out").predict_table("t.csv")
    ours = np.array(told[next(iter(told))])
    return ours, *of_scikit_learn(table, training, rule), training, validation


@pytest.mark.few(5)
@pytest.mark.parametrize("name", [*HOUSES, "diabetes"])
def test_scores_are_those_of_scikit_learn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R² or accuracy on the validation part."""
    monkeypatch.chdir(tmp_path)
    seed, kind, rule = HOUSES.get(name, (0, "", "mean"))
    table = houses(seed, kind) if kind else of_sklearn(datasets.load_diabetes)
    if kind:  # cells are missing in each column
        assert table.drop(columns="y").isna().any().all()
    found, pipeline, x, _, validation = predicted(table, rule)
    ours, truth = found[validation], table["y"].iloc[validation]
    theirs = pipeline.score(x.iloc[validation], truth)
    if pd.api.types.is_float_dtype(truth):
        rest = ((ours - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
        assert 1 - rest == pytest.approx(theirs, abs=1e-3)
    else:
        assert (ours == truth.astype(str)).mean() == pytest.approx(theirs, abs=1e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", PARTED)
def test_scores_are_near_those_of_scikit_learn_where_planes_part_the_classes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All training rows are right in both, and of the validation rows as many but for two."""
    monkeypatch.chdir(tmp_path)
    table = PARTED[name]()
    found, pipeline, x, training, validation = predicted(table, "mean")
    truth = table["y"].astype(str)
    ours, theirs = found == truth, pipeline.predict(x).astype(str) == truth
    assert theirs[training].all()
    assert ours[training].all()
    assert abs(ours[validation].sum() - theirs[validation].sum()) <= 2
