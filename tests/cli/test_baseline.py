"""Baselines in summary.json, and metrics in the targets' own units, against numpy."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn import metrics as sk

from gdtrain.cli.main import main
from gdtrain.config.build import build
from gdtrain.config.load import load_config
from gdtrain.output.run_directory import read_metrics

REST = ["loader: batch", "optimizer: {lr: 0.1}", "epochs: 2", "precision: fp64"]


def table(folder: Path, rows: int = 50) -> Path:
    draw = np.random.default_rng(3)
    kinds = np.array(["low", "mid", "high"])
    lines = ["a,b,price,heat,kind,hot"]
    for _ in range(rows):
        a, b = draw.normal(size=2)
        price, heat = 1000 + 50 * a + draw.normal(), 2 * b + draw.normal()
        kind = kinds[int(np.clip(round(a + 0.4), -1, 1)) + 1]
        lines.append(f"{a},{b},{price},{heat},{kind},{int(b > 0.3)}")
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def settings(folder: Path, target: Any, *lines: str, model: str = "linear", **data: Any) -> str:
    section = {
        "source": "csv", "path": str(table(folder)), "target": target, "features": ["a", "b"],
        "validation_fraction": 0.3,
    } | data  # fmt: skip
    return "\n".join([f"data: {json.dumps(section)}", f"model: {model}", *REST, *lines]) + "\n"


def trained(folder: Path, target: Any, *lines: str, **data: Any) -> tuple[Any, dict[str, Any]]:
    """What was built of a configuration, and the summary of its run."""
    text = settings(folder, target, *lines, "log: {picture: false}", **data)
    (folder / "a.yaml").write_text(text)
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    assert main(["--config", str(folder / "a.yaml"), "--output-dir", str(out), "--quiet"]) == 0
    config, _ = load_config(folder / "a.yaml")
    return build(config), json.loads((folder / "run/summary.json").read_text())


def targets(run: Any) -> tuple[np.ndarray, np.ndarray]:
    parts = run.loader.samples.targets, run.validation.samples.targets
    return parts[0].numpy(), parts[1].numpy()


def test_of_classes_it_is_the_most_frequent_one(tmp_path) -> None:
    run, summary = trained(tmp_path, "kind", "loss: cross_entropy", "metrics: [accuracy, f1]")
    training, validation = targets(run)
    shares = np.bincount(training, minlength=3) / len(training)
    assert summary["baseline"].pop("prediction") == "most frequent class"
    assert summary["baseline"] == pytest.approx(
        {
            "loss": -np.log(shares)[validation].mean(),
            "accuracy": (validation == shares.argmax()).mean(),
            "f1": sk.f1_score(
                validation, np.full(len(validation), shares.argmax()), average="macro"
            ),
        },
        rel=1e-10,
    )
    assert set(summary["validation"]) == {"loss", "accuracy", "f1"}


@pytest.mark.parametrize(
    ("loss", "model"),
    [
        ("bce", "{name: mlp, hidden: [3], output_activation: sigmoid}"),
        ("bce_with_logits", "linear"),
    ],
)
def test_of_one_logit_it_is_the_more_frequent_one(tmp_path, loss, model) -> None:
    run, summary = trained(tmp_path, "hot", f"loss: {loss}", model=model)
    training, validation = (part[:, 0] for part in targets(run))
    share = training.mean()
    expected = {
        "loss": -np.log(np.where(validation > 0.5, share, 1 - share)).mean(),
        "accuracy": ((validation > 0.5) == (share > 0.5)).mean(),
    }
    assert summary["baseline"].pop("prediction") == "most frequent class"
    assert summary["baseline"] == pytest.approx(expected, rel=1e-10)


def test_of_numbers_it_is_their_mean_in_both_units(tmp_path) -> None:
    run, summary = trained(
        tmp_path, ["price", "heat"], "loss: mse", "metrics: [mae, rmse, r2]",
        standardize_targets=True,
    )  # fmt: skip
    training, validation = targets(run)
    mean, std = map(np.array, (run.preprocessing.target_mean, run.preprocessing.target_std))
    errors = validation - training.mean(0)
    own = validation * std + mean
    expected = {
        "loss": (errors**2).mean(),
        "mae": abs(errors).mean(),
        "rmse": math.sqrt((errors**2).mean()),
        "r2": sk.r2_score(own, np.broadcast_to(mean, own.shape)),
        "mae_original_units": abs(own - mean).mean(),
        "rmse_original_units": math.sqrt(((own - mean) ** 2).mean()),
    }
    assert summary["baseline"].pop("prediction") == "mean"
    assert summary["baseline"] == pytest.approx(expected, rel=1e-8)


def test_errors_in_the_targets_own_units_stand_beside_those_of_training(tmp_path) -> None:
    run, _ = trained(
        tmp_path, "price", "loss: mse", "metrics: [mae, rmse]",
        "early_stopping: {monitor: val_rmse_original_units}", standardize_targets=True,
    )  # fmt: skip
    record = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    std = run.preprocessing.target_std[0]
    for name in ("mae", "rmse"):
        own = record[f"val_{name}_original_units"]
        assert own == pytest.approx(record[f"val_{name}"] * std, rel=1e-9)
        assert own > 1  # prices


def test_where_nothing_is_known_to_beat_there_is_no_baseline(tmp_path) -> None:
    _, summary = trained(tmp_path, "kind", "loss: multi_margin")
    assert "baseline" not in summary
    _, summary = trained(tmp_path, "kind", "loss: cross_entropy", validation_fraction=0.0)
    assert "baseline" not in summary


def test_the_baseline_changes_no_weight(tmp_path) -> None:
    run, _ = trained(tmp_path, "kind", "loss: cross_entropy")
    run.trainer.fit(2)
    left = load_file(tmp_path / "run/model.safetensors")
    assert all(torch.equal(left[n], p) for n, p in run.trainer.model.state_dict().items())


def test_a_missing_package_is_said_before_the_data_are_read(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    text = settings(tmp_path, "kind", "loss: cross_entropy", "metrics: [f1]")
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "table.csv").unlink()
    assert main(["--config", str(tmp_path / "a.yaml"), "--output-dir", str(tmp_path / "run")]) != 0
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            "metrics: f1 needs torchmetrics, which is not installed; pip install 'gdtrain[metrics]'"
        )
    )
    assert not (tmp_path / "run").exists()
