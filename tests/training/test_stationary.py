"""Constant-step SGD on f_i = ½ (θ - x_i)²: its stationary variance, against the closed form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gdtrain import Callback, MiniBatchLoader, SampleLoader, Trainer

pytest.importorskip("jax")

CASES = [
    pytest.param(B, lr, marks=() if (B, lr) in ((1, 0.5), (10, 0.1)) else pytest.mark.long)
    for B in (1, 10)
    for lr in (0.01, 0.1, 0.5)
]


class Chains(nn.Module):
    """θ, [d]: each component is a chain of its own, on its own column of the data."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(d))


class Quadratic(Trainer):
    """∂/∂θ of ½ |θ - x|², averaged over the batch, is θ - x̄."""

    def compute_loss(self, batch):
        return 0.5 * (self.model.theta - batch.inputs).square().sum(1).mean()


class Squares(Callback):
    """θ² at every k-th step, [looks, d]."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self.kept: list[Tensor] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        self.kept.append(trainer.model.theta.detach().square())


def columns(n: int, d: int) -> Tensor:
    """[n, d] of mean 0, variance 1 and no correlation, all of them exactly."""
    draw = torch.Generator().manual_seed(0)
    drawn = torch.cat([torch.ones(n, 1), torch.randn(n, d, generator=draw)], dim=1).double()
    return (math.sqrt(n) * torch.linalg.qr(drawn).Q[:, 1:]).float()


def variance(
    n: int, d: int, order: str, B: int, lr: float, looks: int, every: int
) -> tuple[float, float]:
    """The mean of θ² over chains and looks after the start is forgotten, and its standard error.

    Under scan where there are many updates between looks.
    """
    X = columns(n, d)
    model = Chains(d)
    form = SampleLoader((X, X), order=order, seed=3)
    loader = form if B == 1 else MiniBatchLoader((X, X), batch_size=B, order=order, seed=3)
    watch = Squares(every)
    trainer = Quadratic(
        model,
        None,
        torch.optim.SGD(model.parameters(), lr=lr),
        loader,
        device="cpu",
        engine="scan" if every >= 100 else "eager",
        callbacks=[watch],
    )
    forgotten = math.ceil(8 / lr / every)  # (1 - lr)^(2 · 8 / lr) is about e^-16
    trainer.fit(math.ceil((forgotten + looks) * every / len(loader)))
    squares = torch.stack(watch.kept[forgotten:]).double().numpy()
    return float(squares.mean()), float(squares.mean(axis=1).std() / math.sqrt(len(squares)))


@pytest.mark.few(1)
@pytest.mark.parametrize(("B", "lr"), CASES)
def test_with_replacement_it_is_lr_over_b_times_2_minus_lr_within_two_percent(B, lr) -> None:
    """θ' = (1 - α) θ + α x̄ with Var x̄ = σ² / B gives V = (1 - α)² V + α² σ² / B."""
    every = math.ceil(1 / lr)  # so that looks are nearly independent
    found, error = variance(250, 200, "replacement", B, lr, looks=700, every=every)
    expected = lr / (B * (2 - lr))
    assert error < 0.007 * expected  # or the test would say nothing
    assert abs(found - expected) < 0.02 * expected


@pytest.mark.parametrize(
    ("B", "lr"),
    [
        pytest.param(1, 0.01, marks=pytest.mark.long),
        pytest.param(1, 0.1, marks=pytest.mark.long),
        (1, 0.5),
        pytest.param(4, 0.1, marks=pytest.mark.long),
    ],
)
def test_with_reshuffling_it_is_below(B: int, lr: float) -> None:
    """Each epoch's samples sum to the mean of all, so that what one draw adds, others take back."""
    every = math.ceil(1 / lr) | 1  # odd: every place in an epoch of 32 or 8 steps has its turn
    found, error = variance(32, 31, "reshuffle", B, lr, looks=1500, every=every)
    assert found + 5 * error < lr / (B * (2 - lr))
    assert np.isfinite(found)
    assert found > 0
