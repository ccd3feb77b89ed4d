"""A run beside a plain loop: the same bits where they must be, or the first update that differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau
from torch.utils.data import IterableDataset

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer, register_model
from gdtrain.analysis.verify.side_by_side import side_by_side
from gdtrain.cli.main import main

N = 23  # no batch size divides it
draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(N, 3, generator=draw), torch.randn(N, 2, generator=draw)


class Annealed(Trainer):
    def compute_loss(self, batch: Any) -> torch.Tensor:
        penalty = self.model[0].weight.square().sum() / (1 + self.progress.step)
        return (self.model(batch.inputs) - batch.targets).square().mean() + penalty

    def loss_weight(self, batch: Any) -> float:
        return len(batch)


def maker(
    *layers: Callable[[], nn.Module],
    optimizer: Any = torch.optim.SGD,
    kind: type[Trainer] = Trainer,
    schedule: Any = None,
    callbacks: Callable[[], list[Callback]] = list,
    dtype: torch.dtype = torch.float32,
    rate: float = 0.05,
    data: Any = None,
    **options: Any,
) -> Callable[[], Trainer]:
    """Makes a new trainer at each call, all of them alike."""

    def make() -> Trainer:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), *(layer() for layer in layers), nn.Linear(4, 2))
        model.to(dtype)
        descent = optimizer(model.parameters(), lr=rate)
        return kind(
            model, nn.MSELoss(), descent, MiniBatchLoader(data or (X, Y), 4), device="cpu",
            scheduler=schedule and schedule(descent), callbacks=callbacks(), **options,
        )  # fmt: skip

    return make


SAME = {
    "plain": maker(nn.Tanh),
    "dropout": maker(lambda: nn.Dropout(0.4), optimizer=torch.optim.Adam),
    "batch norm": maker(lambda: nn.BatchNorm1d(4), validation=BatchLoader((X, Y))),
    "clipped": maker(nn.ReLU, clip_grad_norm=0.3, clip_grad_value=0.1),
    "schedule": maker(nn.Tanh, schedule=lambda o: ExponentialLR(o, 0.5), scheduler_per="step"),
    "schedule of epochs": maker(nn.Tanh, schedule=lambda o: ExponentialLR(o, 0.5)),
    "l-bfgs": maker(nn.Tanh, optimizer=torch.optim.LBFGS),
    "own loss": maker(nn.Tanh, kind=Annealed),
    "bf16": maker(nn.Tanh, precision="bf16"),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("name", SAME)
def test_same_bits(name: str) -> None:
    """Whole batches under the eager engine: every tensor of model and optimizer, every update."""
    seen = side_by_side(SAME[name], 17, num_epochs=10)
    assert (seen.updates, seen.tolerance, seen.error, seen.first) == (17, 0.0, 0.0, None)
    assert seen.tensors >= 4
    assert str(seen) == (
        "17 updates by gdtrain (engine eager) and by a plain PyTorch loop: "
        f"all {seen.tensors} tensors of model, loss and optimizer have the same bits"
    )


def test_it_ends_with_the_run() -> None:
    seen = side_by_side(maker(), 1000, num_epochs=2)
    assert (seen.updates, seen.holds) == (12, True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_microbatches_agree_to_rounding(dtype: torch.dtype, tolerance: float) -> None:
    seen = side_by_side(maker(nn.Tanh, dtype=dtype, microbatch_size=3), 20, num_epochs=4)
    assert seen.holds
    assert seen.tolerance == tolerance
    assert 0 < seen.error < tolerance
    assert "agree (largest relative error" in str(seen)


def test_scan_agrees_to_rounding() -> None:
    pytest.importorskip("jax")
    seen = side_by_side(maker(nn.Tanh, engine="scan"), 20, num_epochs=4)
    assert (seen.engine, seen.holds, seen.tolerance) == ("scan", True, 1e-4)


# ── differences ─────────────────────────────────────────────────────────────────────────────────


class Nudge(Callback):
    """Moves one weight after one update, as no loop by hand would know."""

    every_n_steps = 1

    def __init__(self, update: int, layer: int) -> None:
        super().__init__()
        self.update, self.layer = update, layer

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.update:
            with torch.no_grad():
                trainer.model[self.layer].bias[0] += 0.5


@pytest.mark.parametrize("update", [1, 2, 7, 16, 17])
def test_the_first_update_and_tensor_that_differ(update: int) -> None:
    make = maker(nn.Tanh, callbacks=lambda: [Nudge(update, layer=2)])
    seen = side_by_side(make, 17, num_epochs=10)
    assert not seen.holds
    assert (seen.updates, seen.first, seen.name) == (17, update, "2.bias")
    assert (
        f"DIFFERENT: update {update} is the first after which they differ; the first tensor "
        in (str(seen))
    )


def test_a_difference_that_comes_too_late() -> None:
    assert side_by_side(maker(callbacks=lambda: [Nudge(9, layer=0)]), 8, num_epochs=4).holds


def test_updates_before_one_that_is_not_finite() -> None:
    """A rate that blows up: compared are the updates up to the one that was not made."""
    seen = side_by_side(maker(rate=1e4), 50, num_epochs=20)
    assert seen.holds
    assert 1 < seen.updates < 50


# ── what can't be compared ──────────────────────────────────────────────────────────────────────


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from zip(X, Y, strict=True)


class Corrects(Callback):
    def on_gradient(self, trainer: Trainer, batch: Any, loss: torch.Tensor) -> None:
        pass


class OwnStep(Trainer):
    def train_step(self, batch: Any) -> torch.Tensor:
        return super().train_step(batch)


SKIPPED = {
    "a stream is read once": maker(data=Stream()),
    "Corrects corrects the gradient of every update": maker(callbacks=lambda: [Corrects()]),
    "OwnStep says itself what an update is (train_step)": maker(kind=OwnStep),
    "the model or the loss draws random numbers, and microbatches and compiled engines draw "
    "others than one pass": maker(lambda: nn.Dropout(0.5), microbatch_size=2),
    "ReduceLROnPlateau follows what is evaluated in between": maker(schedule=ReduceLROnPlateau),
    "microbatch_allow accepts other gradients than those of whole batches": maker(
        lambda: nn.BatchNorm1d(4), microbatch_size=2, microbatch_allow=["1"]
    ),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_what_is_not_compared(reason: str) -> None:
    seen = side_by_side(SKIPPED[reason], 8, num_epochs=2)
    assert seen.holds
    assert str(seen) == f"A plain PyTorch loop was not compared: {reason}"


# ── the command ─────────────────────────────────────────────────────────────────────────────────


CONFIG = """\
data: {source: csv, path: PATH, target: [y]}
model: MODEL
loss: mse
loader: {name: minibatch, batch_size: 3}
optimizer: {lr: 0.01}
epochs: 4
log: {picture: false}
"""


@pytest.fixture
def config(tmp_path) -> Callable[[str], str]:
    rows = "\n".join(f"{a},{b},{a - 2 * b}" for a in range(4) for b in range(3))
    (tmp_path / "rows.csv").write_text("a,b,y\n" + rows + "\n")

    def write(model: str) -> str:
        path = tmp_path / "run.yaml"
        text = CONFIG.replace("PATH", str(tmp_path / "rows.csv")).replace("MODEL", model)
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.long
def test_command(config, capsys) -> None:
    assert main(["verify", "--config", config("linear"), "--updates", "13"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(
        "13 updates by gdtrain (engine eager) and by a plain PyTorch loop: all 2 tensors"
    )
    assert "all comparisons hold" in printed


@pytest.mark.long
def test_command_without_updates(config, capsys) -> None:
    assert main(["verify", "--config", config("linear"), "--updates", "0"]) == 0
    assert "plain PyTorch loop" not in capsys.readouterr().out


@pytest.mark.long
def test_command_says_what_differs(config, capsys) -> None:
    """A model that is another one each time that it is built."""
    made = []

    @register_model("restless")
    def restless(inputs: int = 2) -> nn.Module:
        made.append(inputs)
        model = nn.Linear(inputs, 1)
        nn.init.constant_(model.weight, len(made) / 10)
        return model

    assert main(["verify", "--config", config("restless"), "--updates", "3"]) == 1
    assert "update 1 is the first after which they differ" in capsys.readouterr().out


def test_command_refuses_a_negative_number(config, capsys) -> None:
    assert main(["verify", "--config", config("linear"), "--updates", "-1"]) == 2
    assert "--updates: must be >= 0, got -1" in capsys.readouterr().err
