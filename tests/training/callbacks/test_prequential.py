"""Prequential means where a run is looked at, by several, or from its middle on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.training.callbacks.prequential import Prequential

draw = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=draw, dtype=torch.float64)
Y = torch.randn(12, 1, generator=draw, dtype=torch.float64)


def error(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).abs().mean()


class Own(Trainer):
    """Never asks for the batch's gradient."""

    def train_step(self, batch: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.compute_loss(batch)
        loss.backward()
        self.finish_gradient()
        self.optimizer.step()
        return loss.detach()


class Looks(Callback):
    """Before the others, at every update."""

    def on_before_update(self, trainer: Trainer) -> None:
        trainer.evaluate()
        trainer.predict(X)


class Adds(Callback):
    every_n_steps = 2

    def __init__(self, late: Callback) -> None:
        super().__init__()
        self.late = late

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == 2:
            trainer.callbacks.append(self.late)


def by_hand(steps: int) -> list[float]:
    """The mean error of each update's batch before it, of batches of four."""
    torch.manual_seed(1)
    model = nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(steps):
        rows = slice(4 * (step % 3), 4 * (step % 3) + 4)
        optimizer.zero_grad()
        output = model(X[rows])
        found.append(float(error(output.detach(), Y[rows])))
        F.mse_loss(output, Y[rows]).backward()
        optimizer.step()
    return found


@pytest.mark.parametrize("kind", [Trainer, Own])
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_two_of_them_and_looks_in_between(kind: type[Trainer], microbatch_size: Any) -> None:
    if kind is Own and microbatch_size:
        pytest.skip("its own train_step takes whole batches")
    first, second, late = (Prequential(8, {"error": error}) for _ in range(3))
    torch.manual_seed(1)
    model = nn.Linear(3, 1).double()
    trainer = kind(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        MiniBatchLoader((X, Y), 4, order="sequential"),
        device="cpu",
        callbacks=[Looks(), first, second, Adds(late)],
        microbatch_size=microbatch_size,
    )
    trainer.fit(2)
    expected = by_hand(6)
    newest = pytest.approx(sum(expected[-2:]) / 2, rel=1e-12)
    for each in (first, second, late):
        assert each.report()["prequential_error"] == newest
