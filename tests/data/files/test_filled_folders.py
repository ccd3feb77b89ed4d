"""Missing cells are filled in by convert, in bounded memory, as scikit-learn fills them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from gdtrain import load_run
from gdtrain.cli.main import main
from gdtrain.data.tables import learning
from gdtrain.data.tables.learning import counted_values


def table(rows: int) -> pd.DataFrame:
    """Numbers, days and words, some of each missing."""
    draw = np.random.default_rng(rows)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(1, 300, rows), "D")
    found = pd.DataFrame(
        {
            "size": draw.normal(0, 9, rows).round(1),
            "floor": draw.integers(-3, 4, rows).astype(float),
            "sold": days.strftime("%Y-%m-%d"),
            "colour": draw.choice(["red", "green", "blue"], rows),
            "y": draw.normal(size=rows),
        }
    )
    found.loc[0, "sold"] = "2020-01-01"
    for name in ("size", "floor", "sold", "colour"):
        found.loc[1 + np.flatnonzero(draw.random(rows - 1) < 0.1), name] = None
    return found


@pytest.mark.parametrize("rule", ["mean", "median", "most_frequent"])
@pytest.mark.parametrize("rows", [40, 41])
def test_missing_cells_are_filled_in_as_by_scikit_learn(
    rule: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learning, "MOST_VALUES", 3)
    given = table(rows)
    given.to_csv("t.csv", index=False)
    options = ["--target", "y", "--keep", "sold", "--missing", rule, "--indicator"]
    assert main(["convert", "t.csv", "out", *options, "--dtype", "float64"]) == 0
    x = given.drop(columns="y")
    x["sold"] = (pd.to_datetime(x["sold"]) - pd.Timestamp("2020-01-01")).dt.days
    x["colour"] = x["colour"].astype(object).where(x["colour"].notna(), None)
    numbers = ["size", "floor", "sold"]
    words = make_pipeline(
        SimpleImputer(strategy="most_frequent", missing_values=None),
        OneHotEncoder(sparse_output=False),
    )
    both = make_column_transformer((SimpleImputer(strategy=rule), numbers), (words, ["colour"]))
    filled = both.fit_transform(x)
    parts = [part for n, name in enumerate(numbers) for part in (filled[:, n], x[name].isna())]
    expected = np.column_stack([*parts, filled[:, 3:], x["colour"].isna()])
    np.testing.assert_allclose(np.load("out/inputs/000000.npy"), expected, rtol=1e-13)


def test_predictions_fill_in_what_convert_has_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = table(40)[["size", "colour", "y"]]
    given.to_csv("t.csv", index=False)
    assert main(["convert", "t.csv", "out", "--target", "y", "--missing", "median"]) == 0
    Path("a.yaml").write_text(
        "data: {source: mapped, path: out}\nmodel: linear\nloss: mse\nloader: batch\n"
        "optimizer: {lr: 0.01}\nepochs: 1\nlog: {picture: false}\n"
    )
    assert main(["--config", "a.yaml", "--output-dir", "run", "--quiet"]) == 0
    run = load_run("run")
    fill = {"size": given["size"].median(), "colour": given["colour"].mode()[0]}
    missing, filled = pd.DataFrame({"size": [None], "colour": [None]}), pd.DataFrame([fill])
    assert run.predict_table(missing) == run.predict_table(filled)


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
def test_numbers_are_counted_whatever_is_sorted_at_once(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "MOST_VALUES", most)
    draw = np.random.default_rng(most)
    numbers = np.concatenate(
        [draw.normal(size=20), draw.integers(-3, 3, 30), [1e300, -1e300, 5e-324, 0.1, 0.1]]
    )
    found = list(counted_values(lambda: iter(np.array_split(numbers + 0.0, 4))))
    values, counts = (np.concatenate(part) for part in zip(*found, strict=True))
    expected, times = np.unique(numbers, return_counts=True)
    assert (values.tolist(), counts.tolist()) == (expected.tolist(), times.tolist())
    assert most == 1 or max(map(len, (v for v, _ in found))) <= most
