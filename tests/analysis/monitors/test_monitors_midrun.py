"""Monitors of a run whose model and optimizer change in its middle."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.midrun import add_group, freeze, unfreeze
from torch import Tensor, nn

from gdtrain import (
    BatchLoader,
    Callback,
    FullLoss,
    GradientNorm,
    MiniBatchLoader,
    NoiseScale,
    SampleGradients,
    SharpnessMonitor,
    Trainer,
    Trajectory,
    UpdateRatio,
)
from gdtrain.analysis.landscape import landscape

draw = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=draw, dtype=torch.float64)
Y = torch.randn(12, 1, generator=draw, dtype=torch.float64)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Act(Callback):
    """Does something after two updates, and notes the weights after each."""

    every_n_steps = 1

    def __init__(self, act: Callable[[Trainer], Any] | None) -> None:
        super().__init__()
        self.act = act
        self.seen: list[Tensor] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        parts = [p.detach().flatten() for p in trainer.model.parameters()]
        self.seen.append(torch.cat(parts))
        if trainer.progress.step == 2 and self.act is not None:
            self.act(trainer)


def bind(trainer: Trainer) -> None:
    trainer.model.first.weight.data = trainer.model.first.weight.data / 2


def remove(trainer: Trainer) -> None:
    trainer.optimizer.param_groups[0]["params"] = list(trainer.model.last.parameters())


ACTS = {"freeze": freeze, "unfreeze": unfreeze, "add group": add_group, "bind": bind,
        "remove": remove}  # fmt: skip


def run(act: str | None, *callbacks: Callback, epochs: int = 2) -> tuple[Trainer, Act]:
    """Updates of batches of six, two an epoch."""
    model, acting = Two(), Act(ACTS[act] if act else None)
    model.first.requires_grad_(act not in ("unfreeze", "add group"))
    held = model.last.parameters() if act == "add group" else model.parameters()
    optimizer = torch.optim.SGD(held, lr=0.1)
    trainer = Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        MiniBatchLoader((X, Y), 6, seed=1),
        device="cpu",
        callbacks=[*callbacks, acting],
    )
    trainer.fit(epochs)
    return trainer, acting


@pytest.mark.few(2)
@pytest.mark.parametrize("act", ACTS)
def test_all_of_them_go_on_and_change_nothing(act: str) -> None:
    kinds = [FullLoss, GradientNorm, NoiseScale, SampleGradients, SharpnessMonitor, Trajectory]
    watchers = [kind(every_n_steps=1) for kind in kinds] + [UpdateRatio(every_n_steps=1)]
    _, alone = run(act)
    trainer, watched = run(act, *watchers)
    assert all(map(torch.equal, alone.seen, watched.seen))
    for watcher in watchers:
        assert watcher.records[-1]["step"] == 4
    full = watchers[0].records[-1]["full_loss"]
    assert full == pytest.approx(trainer.evaluate()["loss"], rel=1e-12)


@pytest.mark.parametrize("act", ["freeze", "unfreeze", "bind", "remove"])
def test_a_trajectory_follows_what_the_optimizer_held_at_its_start(act: str) -> None:
    path = Trajectory(every_n_steps=1)
    trainer, acting = run(act, path)
    points = path.weight_path().points
    assert np.array_equal(points[1:], torch.stack(acting.seen).numpy())
    distance = float(np.linalg.norm(points[-1] - points[0]))
    assert path.report()["distance_from_start"] == pytest.approx(distance, rel=1e-12)
    if act != "remove":  # a slice is of what the optimizer holds, frozen or not
        found = landscape(trainer, [path.weight_path()], resolution=2)
        assert len(found.centre) == len(acting.seen[0])


def test_what_the_optimizer_is_given_later_is_not_in_the_trajectory_and_told(caplog) -> None:
    path = Trajectory(every_n_steps=1)
    with caplog.at_level(logging.WARNING, "gdtrain"):
        _, acting = run("add group", path)
    expected = torch.stack(acting.seen)[:, 16:]  # the last layer's
    assert np.array_equal(path.weight_path().points[1:], expected.numpy())
    assert caplog.messages == [
        "trajectory: the optimizer was given parameters after the first point; they are not among "
        "its weights"
    ]


@pytest.mark.parametrize(
    ("act", "moved", "both"),
    [
        ("freeze", slice(16, None), slice(16, None)),
        ("unfreeze", slice(None), slice(None)),
        ("remove", slice(16, None), slice(16, None)),
        ("bind", slice(None), slice(None)),
    ],
)
def test_the_update_ratio_is_of_what_the_update_moved(act: str, moved: Any, both: Any) -> None:
    ratio = UpdateRatio(every_n_steps=4)
    _, acting = run(act, ratio)
    before, after = acting.seen[2], acting.seen[3]
    expected = float((after - before)[moved].norm() / before[both].norm())
    assert ratio.records[-1]["update_ratio"] == pytest.approx(expected, rel=1e-12)
    assert math.isfinite(expected)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "make",
    [
        lambda: FullLoss(every_n_epochs=1),
        FullLoss,
        UpdateRatio,
        Trajectory,
        SharpnessMonitor,
        lambda: GradientNorm(every_n_steps=1),
    ],
)
def test_a_monitor_may_be_added_in_mid_run(make: Callable[[], Any]) -> None:
    late = make()

    def add(trainer: Trainer) -> None:
        trainer.callbacks.append(late)

    _, alone = run(None, epochs=20)
    model, acting = Two(), Act(add)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, Y), 6, seed=1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[acting])
    trainer.fit(20)
    assert all(map(torch.equal, alone.seen, acting.seen))
    assert late.every_n_steps is not None or late.every_n_epochs is not None
    # Some look by default more rarely than this run has updates.
    assert late.records or late.every_n_steps > trainer.progress.step


def test_of_one_full_batch_the_sharpness_follows_what_is_trained() -> None:
    model = Two()
    watch, acting = SharpnessMonitor(every_n_steps=1), Act(freeze)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu",
        callbacks=[watch, acting],
    )  # fmt: skip
    trainer.fit(4)
    inner = torch.cat([torch.tanh(model.first(X)), torch.ones(12, 1).double()], 1).detach()
    expected = float(torch.linalg.eigvalsh(2 * inner.T @ inner / 12)[-1])
    assert watch.records[-1]["sharpness"] == pytest.approx(expected, rel=1e-6)
