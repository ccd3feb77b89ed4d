"""The gradient noise scale against closed forms and numpy's covariance."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from gdtrain import BatchLoader, MiniBatchLoader, NoiseScale, Trainer
from gdtrain.analysis.curvature.full_loss import Objective
from gdtrain.analysis.noise_scale import GradientNoise, Scatter, gradient_noise
from gdtrain.errors import ConfigError, DataError


def problem(n: int = 200, d: int = 6) -> tuple[Trainer, np.ndarray]:
    """Least squares in float64, and each sample's gradient 2 (xᵀθ - y) x, [n, d], by numpy."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=draw).double()
    y = torch.randn(n, 1, generator=draw).double()
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, d)[None])
    errors = X.numpy() @ model.weight.detach().numpy()[0] - y.numpy()[:, 0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, y), batch_size=7)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")
    return trainer, 2 * errors[:, None] * X.numpy()


def test_at_batch_size_1_it_is_the_trace_of_the_gradient_covariance_to_1e_10() -> None:
    trainer, gradients = problem()
    found = gradient_noise(trainer)
    trace = np.trace(np.cov(gradients, rowvar=False))
    square = float((gradients.mean(axis=0) ** 2).sum())
    assert math.isclose(found.covariance_trace, trace, rel_tol=1e-10)
    assert math.isclose(found.gradient_square, square, rel_tol=1e-10)
    assert math.isclose(found.scale, trace / square, rel_tol=1e-10)
    assert found.critical_batch_size == round(trace / square)
    assert found.num_samples == 200


def test_a_parameter_that_the_loss_does_not_use_has_no_noise() -> None:
    class Spare(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 1, bias=False)
            self.spare = nn.Parameter(torch.ones(3, 2))

    trainer, gradients = problem()
    model = Spare().double()
    with torch.no_grad():
        model.weight.copy_(trainer.model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = gradient_noise(Trainer(model, nn.MSELoss(), optimizer, trainer.loader, device="cpu"))
    trace = np.trace(np.cov(gradients, rowvar=False))
    assert math.isclose(found.covariance_trace, trace, rel_tol=1e-10)


def test_it_is_the_same_in_chunks_of_any_size(monkeypatch) -> None:
    trainer, gradients = problem()
    trace = np.trace(np.cov(gradients, rowvar=False))
    for numbers in (1, 7 * 6, 1000 * 6):
        monkeypatch.setattr("gdtrain.analysis.sample_gradients.CHUNK_NUMBERS", numbers)
        assert math.isclose(gradient_noise(trainer).covariance_trace, trace, rel_tol=1e-10)


@pytest.mark.parametrize(
    ("batch_size", "num_samples"), [(10, 100), pytest.param(50, 200, marks=pytest.mark.long)]
)
def test_it_is_unbiased_within_two_percent(batch_size: int, num_samples: int) -> None:
    trainer, gradients = problem()
    trace = np.trace(np.cov(gradients, rowvar=False))
    square = float((gradients.mean(axis=0) ** 2).sum())
    draws = 500 if batch_size == 10 else 2000
    found = [
        gradient_noise(trainer, num_samples=num_samples, batch_size=batch_size, seed=seed)
        for seed in range(draws)
    ]
    traces = np.array([noise.covariance_trace for noise in found])
    squares = np.array([noise.gradient_square for noise in found])
    for values, expected in ((traces, trace), (squares, square)):
        error = values.std() / math.sqrt(draws)
        assert error < 0.01 * expected  # or the test would say nothing
        assert abs(values.mean() - expected) < 0.02 * expected


def test_uneven_groups_are_unbiased_too() -> None:
    """7 samples in groups of 3, 3 and 1, over all 7!/(3! 3! 1!) ways, by hand."""
    from itertools import combinations

    draw = np.random.default_rng(0)
    gradients = torch.from_numpy(draw.standard_normal((7, 4)))
    trace = np.trace(np.cov(gradients.numpy(), rowvar=False))
    estimates = []
    for first in combinations(range(7), 3):
        for second in combinations(sorted(set(range(7)) - set(first)), 3):
            (third,) = set(range(7)) - set(first) - set(second)
            scatter = Scatter()
            for rows in (list(first), list(second), [third]):
                scatter.add([gradients[rows].mean(0)[None]], size=len(rows))
            estimates.append(scatter.noise(7).covariance_trace)
    assert len(estimates) == 140
    assert math.isclose(np.mean(estimates), trace, rel_tol=1e-12)


def test_without_a_population_the_square_is_that_of_the_distribution() -> None:
    """Of N draws from N(μ, σ² I_d), |ḡ|² - tr Σ / N estimates |μ|² without bias."""
    draw = np.random.default_rng(0)
    d, N, mean = 5, 8, 0.3
    squares = []
    for _ in range(20_000):
        scatter = Scatter()
        scatter.add([torch.from_numpy(mean + draw.standard_normal((N, d)))])
        squares.append(scatter.noise().gradient_square)
    assert abs(np.mean(squares) - d * mean**2) < 4 * np.std(squares) / math.sqrt(20_000)
    assert min(squares) < 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_mean_gradient_is_that_of_the_full_loss(reduction, batch_size, monkeypatch) -> None:
    """With class weights, ignored targets and sums, whose parts do not weigh the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    targets = torch.arange(23) % 3
    targets[::6] = -100
    weight = torch.tensor([1.0, 4.0, 0.5]).double()
    loss = nn.CrossEntropyLoss(weight, reduction=reduction)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((torch.randn(23, 5).double(), targets))
    trainer = Trainer(model, loss, optimizer, loader, device="cpu")
    kept: list[Scatter] = []
    noise = Scatter.noise
    monkeypatch.setattr(Scatter, "noise", lambda self, n: kept.append(self) or noise(self, n))
    found = gradient_noise(trainer, batch_size=batch_size)
    gradient = Objective(trainer).gradient() / (23 if reduction == "sum" else 1)
    assert torch.allclose(
        torch.cat([m.flatten() for m in kept[0].mean]), gradient, rtol=1e-10, atol=1e-14
    )
    assert math.isclose(found.gradient_square, float(gradient @ gradient), rel_tol=1e-9)


def test_at_a_minimum_the_scale_is_infinite_and_without_noise_it_is_one() -> None:
    assert GradientNoise(2.0, 0.0, 10).scale == math.inf
    assert GradientNoise(2.0, -0.1, 10).critical_batch_size == math.inf
    assert math.isnan(GradientNoise(0.0, 0.0, 10).scale)
    assert GradientNoise(0.0, 3.0, 10).critical_batch_size == 1
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(30, 1, generator=draw).double()

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(X.mean(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.theta.expand(len(x), 1)

    model = Bias()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, X)), device="cpu")
    found = gradient_noise(trainer)
    assert math.isclose(found.covariance_trace, 4 * float(X.var()), rel_tol=1e-10)
    assert found.gradient_square < 1e-30


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.ones(6), torch.ones(1)


def test_what_can_not_be_estimated_is_refused() -> None:
    trainer, _ = problem(n=10)
    said = r"^the gradient noise needs two batches of 10 at least, and there are 10 samples$"
    with pytest.raises(DataError, match=said):
        gradient_noise(trainer, batch_size=10)
    with pytest.raises(ConfigError, match=r"^batch_size: must be < num_samples = 8, .*, got 8$"):
        NoiseScale(num_samples=8, batch_size=8)
    with pytest.raises(DataError, match=r"^the gradient noise needs two batches of 1 at least"):
        gradient_noise(problem(n=1)[0])
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stream = Trainer(model, nn.MSELoss(), optimizer, MiniBatchLoader(Endless(), 4), device="cpu")
    with pytest.raises(DataError, match=r"^a stream's samples are read once"):
        gradient_noise(stream)
