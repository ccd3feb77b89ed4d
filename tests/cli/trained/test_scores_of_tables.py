"""From a file to a model: the scores of scikit-learn on the same rows, whatever the columns are."""

from __future__ import annotations

import json
import random
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


def houses(draw: random.Random, kind: str) -> pd.DataFrame:
    """Rows with numbers, words and dates, some of them missing, and a price or a class."""
    days = pd.date_range("2021-01-01", periods=900)
    rows = []
    for _ in range(160):
        size, colour, day = draw.gauss(90, 20), draw.choice("rgb"), draw.randrange(900)
        price = 3 * size + {"r": 20, "g": 0, "b": -9}[colour] + day / 30 + draw.gauss(0, 12)
        rows.append(
            {
                "size": None if draw.random() < 0.06 else size,
                "rooms": draw.randrange(1, 7),
                "colour": None if draw.random() < 0.06 else colour,
                "sold": days[day].date(),
                "y": price if kind == "number" else ["low", "high"][price > 290],
            }
        )
    return pd.DataFrame(rows)


def of_sklearn(load: Callable[..., Any], rows: int = 400) -> pd.DataFrame:
    bunch = load(as_frame=True)
    table = bunch.data.assign(y=bunch.target)[:: max(1, len(bunch.data) // rows)]
    if len(set(bunch.target)) < 10:  # classes: where a plane parts them, weights grow without end
        draw = np.random.default_rng(0)
        wrong = draw.choice(len(table), len(table) // 6, replace=False)
        table.iloc[wrong, -1] = draw.choice(list(set(bunch.target)), len(wrong))
    return table.reset_index(drop=True)


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "diabetes": lambda: of_sklearn(datasets.load_diabetes),
    "houses 1": lambda: houses(random.Random(1), "number"),
    "houses 2": lambda: houses(random.Random(2), "number"),
    "dear houses 1": lambda: houses(random.Random(3), "class"),
    "dear houses 2": lambda: houses(random.Random(4), "class"),
    "cancer": lambda: of_sklearn(datasets.load_breast_cancer),
    "iris": lambda: of_sklearn(datasets.load_iris),
    "wine": lambda: of_sklearn(datasets.load_wine),
    "named iris": lambda: of_sklearn(datasets.load_iris).replace({"y": {0: "a", 1: "b", 2: "c"}}),
    "houses 3": lambda: houses(random.Random(5), "number"),
}


def expected(table: pd.DataFrame, rows: Any, is_number: bool) -> tuple[Any, Any]:
    """Scikit-learn's model of the training rows, and its predictions for all."""
    x = table.drop(columns="y").copy()
    if "sold" in x:
        x["sold"] = (pd.to_datetime(x["sold"]) - pd.Timestamp("2021-01-01")).dt.days
    words = [name for name in x if not pd.api.types.is_numeric_dtype(x[name])]
    x[words] = x[words].astype(object).where(x[words].notna(), None)
    numbers = [name for name in x if name not in words]
    fill = SimpleImputer(strategy="most_frequent", missing_values=None)
    encoder = make_column_transformer(
        (SimpleImputer(), numbers),
        (make_pipeline(fill, OneHotEncoder(sparse_output=False)), words),
    )
    model = (
        LinearRegression() if is_number else LogisticRegression(C=1e8, max_iter=20_000, tol=1e-9)
    )
    pipeline = make_pipeline(encoder, StandardScaler(), model).fit(
        x.iloc[rows], table["y"].iloc[rows]
    )
    return pipeline, x


@pytest.mark.parametrize("name", TABLES)
def test_scores_are_those_of_scikit_learn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R² and accuracy on the validation part, by L-BFGS and by scikit-learn's solvers."""
    monkeypatch.chdir(tmp_path)
    table = TABLES[name]()
    table.to_csv("t.csv", index=False)
    is_number = pd.api.types.is_float_dtype(table["y"])
    data = {
        "source": "table", "path": "t.csv", "target": "y", "missing": "mean", "standardize": True,
        "keep": ["sold"] if "sold" in table else [], "validation_fraction": 0.3,
    }  # fmt: skip
    loss = "mse" if is_number else "cross_entropy"
    Path("a.yaml").write_text(
        f"data: {json.dumps(data)}\nmodel: linear\nloss: {loss}\nloader: batch\n"
        "optimizer: {name: lbfgs, max_iter: 500}\n"
        "epochs: 2\nprecision: fp64\nlog: {picture: false}\n"
    )
    assert main(["--config", "a.yaml", "--output-dir", "out", "--quiet"]) == 0
    training, validation = (part.numpy() for part in split(len(table), 0.3, 0))
    pipeline, x = expected(table, training, is_number)
    truth = table["y"].iloc[validation]
    theirs = pipeline.score(x.iloc[validation], truth)
    (column, *_), found = (lambda told: (list(told), told))(load_run("out").predict_table("t.csv"))
    ours = np.array(found[column])[validation]
    if is_number:
        rest = ((ours - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
        assert 1 - rest == pytest.approx(theirs, abs=1e-3)
    else:
        assert (ours == truth.astype(str)).mean() == pytest.approx(theirs, abs=1e-3)
