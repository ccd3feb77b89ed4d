"""Runs that version 0.1.0 left: their checkpoints load, and end with its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.paths import FIXTURES
from torch import nn

from gdtrain import BatchLoader, EarlyStopping, MiniBatchLoader, Trainer
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.checkpoint.format import read_state
from gdtrain.cli.main import main

OLD = FIXTURES / "0.1.0"
CHECKPOINTS = sorted(path.relative_to(OLD) for path in OLD.glob("*/checkpoints/step-*"))
RUNS = [path for path in CHECKPOINTS if path.parts[0] != "api"]
SNAPSHOTS = [path for path in CHECKPOINTS if path.parts[0] == "api"]


def assert_weights(path: Path, expected: Path) -> None:
    """The same names, and the same numbers: of another machine, up to float64's rounding."""
    got, there = read(path), read(expected)
    assert got.keys() == there.keys()
    for name, tensor in there.items():
        assert tensor.dtype == got[name].dtype
        torch.testing.assert_close(got[name], tensor, rtol=1e-9, atol=1e-12)


def read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_there_are_such_runs() -> None:
    assert len(RUNS) == 7
    assert len(SNAPSHOTS) == 2


@pytest.mark.parametrize("checkpoint", RUNS, ids=str)
def test_a_run_goes_on(checkpoint, tmp_path, monkeypatch) -> None:
    """Momentum, Adam, BatchNorm, averaging, L-BFGS; schedules; within an epoch and at its end."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(OLD / "data.csv", "data.csv")
    shutil.copytree(OLD / checkpoint.parts[0], "run")
    for other in Path("run/checkpoints").iterdir():
        if other.name != checkpoint.name:
            shutil.rmtree(other)
    Path("run/model.safetensors").unlink()
    given = ["--config", "run/config.yaml", "--output-dir", "run", "--resume", "log.picture=false"]
    assert main(given) == 0
    assert_weights(Path("run/model.safetensors"), OLD / checkpoint.parts[0] / "model.safetensors")


@pytest.mark.parametrize("checkpoint", SNAPSHOTS, ids=str)
def test_a_snapshot_goes_on(checkpoint) -> None:
    """AdamW, BatchNorm, dropout, MultiStepLR, validation and early stopping, built in Python."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(14, 3, generator=draw, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2)
    ).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        MiniBatchLoader((x, y), 4, seed=6),
        device="cpu",
        scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], 0.3),
        validation=BatchLoader((x[:5], y[:5])),
        engine="eager",
        callbacks=[EarlyStopping("val_loss", patience=9)],
    )
    trainer.load_state_dict(read_state(OLD / checkpoint, tensor_check(trainer)))
    trainer.fit(6)
    assert trainer.history.lr == pytest.approx([0.02, 0.02, 0.006, 0.006, 0.0018, 0.0018])
    expected = read(OLD / "api" / "model.safetensors")
    # BatchNorm takes the mean out again, so the bias before it has gradient 0 but for rounding of
    # about 1e-17. AdamW moves it by lr / eps = 2e6 of that: other bits on another machine, in the
    # mean that BatchNorm keeps too.
    rounding = {"0.bias": 1e-8, "1.running_mean": 1e-8}
    for name, tensor in model.state_dict().items():
        atol = rounding.get(name, 1e-12)
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=atol)
