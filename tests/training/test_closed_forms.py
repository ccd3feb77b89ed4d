"""Gradient descent on a quadratic, against the formulas of its trajectory and its stability."""

import math

import pytest
import torch
from helpers.quadratics import LARGEST, SPECTRUM, THRESHOLDS, descend
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.data.builtin.problems import quadratic_solution


def test_plain_gradient_descent_follows_the_closed_form_to_1e_12() -> None:
    lr, steps = 0.15, 60
    solution, V = quadratic_solution(SPECTRUM)
    points = descend(lr, steps)
    spectrum = torch.tensor(SPECTRUM, dtype=torch.float64)
    assert len(points) == steps + 1
    for t, point in enumerate(points):
        expected = V @ ((1 - lr * spectrum) ** t * (V.T @ (points[0] - solution)))
        assert (point - solution - expected).abs().max() < 1e-12


def distance_after(steps: int, lr: float, **sgd: object) -> float:
    solution, _ = quadratic_solution(SPECTRUM)
    return float((descend(lr, steps, **sgd)[-1] - solution).norm())


@pytest.mark.few(1)
@pytest.mark.parametrize(("sgd", "threshold"), THRESHOLDS)
def test_it_converges_just_below_the_stability_threshold_and_diverges_just_above(
    sgd: dict, threshold: float
) -> None:
    solution, V = quadratic_solution(SPECTRUM)

    def stiffest(lr: float) -> list[float]:
        """The error along the eigenvector of the largest eigenvalue, which decides."""
        return [abs(float(V[:, -1] @ (p - solution))) for p in descend(lr, 900, **sgd)]

    below = stiffest(0.995 * threshold / LARGEST)
    above = stiffest(1.005 * threshold / LARGEST)
    assert max(below[-10:]) < 1e-3 * below[0]
    assert max(above[-10:]) > 1e3 * above[0]


def test_plain_descent_converges_to_the_minimum_and_the_slowest_rate_is_the_predicted_one() -> None:
    lr = 1.99 / LARGEST
    slowest = max(abs(1 - lr * value) for value in SPECTRUM)
    assert distance_after(1000, lr) < 2 * slowest**1000 * distance_after(0, lr) + 1e-12


@pytest.mark.parametrize("form", ["batch", "sample", "minibatch"])
def test_one_step_is_the_weights_minus_lr_times_the_hand_derived_gradient(form: str) -> None:
    """J = mean (xᵀθ - y)² has ∂J/∂θ = (2/B) Σ (xᵀθ - y) x over the batch."""
    X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]).double()
    y = torch.tensor([[1.0], [2.0], [-1.0]]).double()
    loader, B = {
        "batch": (BatchLoader((X, y)), 3),
        "sample": (SampleLoader((X, y), order="sequential"), 1),
        "minibatch": (MiniBatchLoader((X, y), 2, order="sequential"), 2),
    }[form]
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.2]]))
    trainer = Trainer(
        model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), loader, device="cpu"
    )
    theta = torch.tensor([0.3, -0.2]).double()
    losses = []
    for s in range(0, 3, B):
        x, t = X[s : s + B], y[s : s + B, 0]
        error = x @ theta - t
        losses.append((float((error**2).mean()), len(x)))
        theta = theta - 0.1 * 2 / len(x) * (error @ x)
    history = trainer.fit(1)
    assert torch.allclose(model.weight[0], theta, rtol=0, atol=1e-15)
    weighted = sum(loss * n for loss, n in losses) / 3
    assert math.isclose(history.train_loss[0], weighted, rel_tol=1e-14)
