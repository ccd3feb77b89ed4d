"""Generated problems: data whose answer is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gdtrain.data.checks import whole_number
from gdtrain.data.orders.order import generator
from gdtrain.data.tables.preparation import LoadedData
from gdtrain.errors import ConfigError

_PROBLEM_KEY = 0xDA7A  # keeps the data's draws apart from those of orders and split


def teaching(num_samples: int = 500, num_features: int = 2, seed: int = 0) -> LoadedData:
    """The teaching example: X ~ randn(n, d), y ~ randn(n, 1), independent of each other."""
    draw = _generator(num_samples, num_features, seed)
    inputs = torch.randn(num_samples, num_features, generator=draw)
    return LoadedData(inputs, torch.randn(num_samples, 1, generator=draw))


def linear_regression(
    num_samples: int = 1000,
    num_features: int = 10,
    weights: list[float] | None = None,
    bias: float = 0.0,
    noise: float = 0.1,
    seed: int = 0,
) -> LoadedData:
    """y = Xw + b + noise · ε with X, ε ~ N(0, 1); w ~ N(0, 1) unless given. y is [n, 1]."""
    draw = _generator(num_samples, num_features, seed)
    if weights is not None and len(weights) != num_features:
        raise ConfigError.of(
            "weights", f"must hold num_features = {num_features} numbers, got {len(weights)}"
        )
    inputs = torch.randn(num_samples, num_features, generator=draw)
    error = torch.randn(num_samples, 1, generator=draw)
    drawn = torch.randn(num_features, generator=draw)
    chosen = drawn if weights is None else torch.tensor(weights, dtype=inputs.dtype)
    return LoadedData(inputs, inputs @ chosen[:, None] + bias + noise * error)


def two_moons(num_samples: int = 1000, noise: float = 0.1, seed: int = 0) -> LoadedData:
    """Two interleaved half circles of radius 1, one for each class.

    Class 0 is (cos t, sin t), class 1 is (1 - cos t, ½ - sin t), t evenly spaced in [0, π];
    both coordinates get normal noise. inputs [n, 2], targets [n] int64.
    """
    first = whole_number("num_samples", num_samples, minimum=2) // 2
    draw = generator(seed, _PROBLEM_KEY)
    t, u = torch.linspace(0, math.pi, first), torch.linspace(0, math.pi, num_samples - first)
    upper = torch.stack([t.cos(), t.sin()], dim=1)
    lower = torch.stack([1 - u.cos(), 0.5 - u.sin()], dim=1)
    clean = torch.cat([upper, lower])
    inputs = clean + noise * torch.randn(num_samples, 2, generator=draw)
    labels = torch.cat([torch.zeros(first), torch.ones(num_samples - first)]).long()
    return LoadedData(inputs, labels, class_names=["upper", "lower"])


def quadratic(spectrum: list[float], num_samples: int | None = None, seed: int = 0) -> LoadedData:
    """Least squares with J(θ) = mean (Xθ - y)² = ½ (θ - θ*)ᵀ A (θ - θ*), and A's spectrum chosen.

    X = √(n/2) Q Λ^½ Vᵀ with Q [n, d] of orthonormal columns and V orthogonal, so that
    A = (2/n) XᵀX = V Λ Vᵀ; θ* ~ N(0, 1) and y = Xθ*. A linear model without bias and the mse
    loss descend on exactly this quadratic; :func:`quadratic_solution` gives θ* and V.
    float64: inputs [n, d], targets [n, 1].
    """
    solution, vectors = quadratic_solution(spectrum, seed)
    n = len(spectrum) if num_samples is None else whole_number("num_samples", num_samples, 1)
    if n < len(spectrum):
        raise ConfigError.of(
            "num_samples", f"must be >= {len(spectrum)}, one per eigenvalue, got {n}"
        )
    noise = torch.randn(n, len(spectrum), generator=generator(seed, _PROBLEM_KEY, 1)).double()
    orthonormal = torch.linalg.qr(noise).Q
    roots = torch.tensor(spectrum, dtype=torch.float64).sqrt()
    inputs = math.sqrt(n / 2) * (orthonormal * roots) @ vectors.T
    return LoadedData(inputs, inputs @ solution[:, None])


def quadratic_solution(spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """θ* [d] and the eigenvectors V [d, d] (columns, in the order of the spectrum), float64."""
    d = len(spectrum)
    if d == 0 or not all(0 <= value < math.inf for value in spectrum):
        raise ConfigError.of("spectrum", f"must hold numbers >= 0, at least one, got {spectrum}")
    draw = generator(seed, _PROBLEM_KEY, 2)
    solution = torch.randn(d, generator=draw).double()
    return solution, torch.linalg.qr(torch.randn(d, d, generator=draw).double()).Q


def _generator(num_samples: int, num_features: int, seed: int) -> torch.Generator:
    whole_number("num_samples", num_samples, minimum=1)
    whole_number("num_features", num_features, minimum=1)
    return generator(seed, _PROBLEM_KEY)
