"""Generated problems: data whose answer is known."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from gdtrain.data.checks import whole_number
from gdtrain.data.orders.order import generator
from gdtrain.data.tables.preparation import LoadedData
from gdtrain.errors import ConfigError
from gdtrain.registry import register_source
from gdtrain.settings import NonNegative, Number, Positive, SourceSettings

_PROBLEM_KEY = 0xDA7A  # keeps the data's draws apart from those of orders and split


class Teaching(SourceSettings):
    """The teaching example: independent normal inputs and targets, so there is nothing to learn."""

    num_samples: Positive = 500
    """Number of rows."""
    num_features: Positive = 2
    """Number of input columns."""


@register_source("teaching", Teaching)
def teaching(num_samples: int = 500, num_features: int = 2, seed: int = 0) -> LoadedData:
    """The teaching example: X ~ randn(n, d), y ~ randn(n, 1), independent of each other."""
    draw = _generator(num_samples, num_features, seed)
    inputs = torch.randn(num_samples, num_features, generator=draw, device="cpu")
    return LoadedData(inputs, torch.randn(num_samples, 1, generator=draw, device="cpu"))


class LinearRegression(SourceSettings):
    """y = Xw + b + noise, with X normal and w known."""

    num_samples: Positive = 1000
    """Number of rows."""
    num_features: Positive = 10
    """Number of input columns, and of weights if these are given."""
    weights: Annotated[list[Number], Field(min_length=1)] | None = None
    """w; drawn from a normal distribution if left out."""
    bias: Number = 0.0
    """b."""
    noise: NonNegative = 0.1
    """Standard deviation of the noise."""

    @field_validator("weights")
    @classmethod
    def _one_per_feature(cls, value: list[float] | None, info: ValidationInfo) -> Any:
        features = info.data.get("num_features")
        if value is not None and features is not None and len(value) != features:
            raise ValueError(f"must hold num_features = {features} numbers, got {len(value)}")
        return value


@register_source("linear_regression", LinearRegression)
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
    inputs = torch.randn(num_samples, num_features, generator=draw, device="cpu")
    error = torch.randn(num_samples, 1, generator=draw, device="cpu")
    drawn = torch.randn(num_features, generator=draw, device="cpu")
    chosen = drawn if weights is None else torch.tensor(weights, dtype=inputs.dtype, device="cpu")
    return LoadedData(inputs, inputs @ chosen[:, None] + bias + noise * error)


class TwoMoons(SourceSettings):
    """Two interleaved half circles, one for each of two classes."""

    num_samples: Annotated[int, Field(ge=2, lt=2**31)] = 1000
    """Number of rows."""
    noise: NonNegative = 0.1
    """Standard deviation of the noise on both coordinates."""


@register_source("two_moons", TwoMoons)
def two_moons(num_samples: int = 1000, noise: float = 0.1, seed: int = 0) -> LoadedData:
    """Two interleaved half circles of radius 1, one for each class.

    Class 0 is (cos t, sin t), class 1 is (1 - cos t, ½ - sin t), t evenly spaced in [0, π];
    both coordinates get normal noise. inputs [n, 2], targets [n] int64.
    """
    first = whole_number("num_samples", num_samples, minimum=2) // 2
    draw = generator(seed, _PROBLEM_KEY)
    t = torch.linspace(0, math.pi, first, device="cpu")
    u = torch.linspace(0, math.pi, num_samples - first, device="cpu")
    upper = torch.stack([t.cos(), t.sin()], dim=1)
    lower = torch.stack([1 - u.cos(), 0.5 - u.sin()], dim=1)
    clean = torch.cat([upper, lower])
    inputs = clean + noise * torch.randn(num_samples, 2, generator=draw, device="cpu")
    labels = torch.cat(
        [torch.zeros(first, device="cpu"), torch.ones(num_samples - first, device="cpu")]
    ).long()
    return LoadedData(inputs, labels, class_names=["upper", "lower"])


class Quadratic(SourceSettings):
    """Least squares whose mean squared error has a Hessian with the chosen eigenvalues."""

    spectrum: Annotated[list[NonNegative], Field(min_length=1, max_length=2048)] = Field(
        [1.0, 10.0]
    )
    """The eigenvalues; their number is the number of input columns."""
    num_samples: Positive | None = None
    """Number of rows, at least that of the eigenvalues; equal to it if left out."""

    @field_validator("num_samples")
    @classmethod
    def _enough(cls, value: int | None, info: ValidationInfo) -> int | None:
        needed = len(info.data.get("spectrum", ()))
        if value is not None and value < needed:
            raise ValueError(f"must be >= {needed}, one per eigenvalue, got {value}")
        return value


@register_source("quadratic", Quadratic)
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
    noise = torch.randn(
        n, len(spectrum), generator=generator(seed, _PROBLEM_KEY, 1), device="cpu"
    ).double()
    orthonormal = torch.linalg.qr(noise).Q
    roots = torch.tensor(spectrum, dtype=torch.float64, device="cpu").sqrt()
    inputs = math.sqrt(n / 2) * (orthonormal * roots) @ vectors.T
    return LoadedData(inputs, inputs @ solution[:, None])


def quadratic_solution(spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """θ* [d] and the eigenvectors V [d, d] (columns, in the order of the spectrum), float64."""
    d = len(spectrum)
    if d == 0 or not all(0 <= value < math.inf for value in spectrum):
        raise ConfigError.of("spectrum", f"must hold numbers >= 0, at least one, got {spectrum}")
    draw = generator(seed, _PROBLEM_KEY, 2)
    solution = torch.randn(d, generator=draw, device="cpu").double()
    return solution, torch.linalg.qr(torch.randn(d, d, generator=draw, device="cpu").double()).Q


def _generator(num_samples: int, num_features: int, seed: int) -> torch.Generator:
    whole_number("num_samples", num_samples, minimum=1)
    whole_number("num_features", num_features, minimum=1)
    return generator(seed, _PROBLEM_KEY)
