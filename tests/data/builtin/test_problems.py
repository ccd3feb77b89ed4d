"""Generated problems: their answers are the closed forms that they promise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gdtrain.data.builtin.problems import (
    linear_regression,
    quadratic,
    quadratic_solution,
    teaching,
    two_moons,
)
from gdtrain.data.tables.preparation import LoadedData
from gdtrain.errors import ConfigError


def refuses(message: str) -> Any:
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


def objective(data: LoadedData) -> Callable[[Tensor], Tensor]:
    """J(θ) = mean (Xθ - y)², as torch computes it."""
    return lambda theta: torch.nn.functional.mse_loss(data.inputs @ theta[:, None], data.targets)


SPECTRA = [([3.0], None), ([1.0, 10.0], None), ([0.0, 0.5, 2.0], 7), ([4.0, 1.0, 1e-6, 100.0], 50)]


@pytest.mark.parametrize(("spectrum", "n"), SPECTRA)
def test_the_quadratics_hessian_has_the_chosen_spectrum_and_eigenvectors(
    spectrum: list[float], n: int | None
) -> None:
    data = quadratic(spectrum, n, seed=3)
    _, vectors = quadratic_solution(spectrum, seed=3)
    hessian = torch.autograd.functional.hessian(
        objective(data), torch.zeros(len(spectrum)).double()
    )
    assert isinstance(hessian, Tensor)
    assert torch.allclose(torch.linalg.eigvalsh(hessian), torch.tensor(sorted(spectrum)).double(),
                          rtol=1e-12, atol=1e-12 * max(spectrum))  # fmt: skip
    expected = vectors @ torch.diag(torch.tensor(spectrum).double()) @ vectors.T
    assert torch.allclose(hessian, expected, rtol=0, atol=1e-12 * max(spectrum))
    eye = torch.eye(len(spectrum)).double()
    assert torch.allclose(vectors.T @ vectors, eye, rtol=0, atol=1e-14 * len(spectrum))


@pytest.mark.parametrize(("spectrum", "n"), SPECTRA)
def test_the_quadratics_minimum_is_zero_at_theta_star(spectrum: list[float], n: int | None) -> None:
    data = quadratic(spectrum, n, seed=1)
    solution, vectors = quadratic_solution(spectrum, seed=1)
    theta = solution.clone().requires_grad_()
    loss = objective(data)(theta)
    (gradient,) = torch.autograd.grad(loss, theta)
    assert loss.item() == pytest.approx(0, abs=1e-28 * max(spectrum))
    assert gradient.abs().max().item() == pytest.approx(0, abs=1e-13 * max(spectrum))
    # One unit away along an eigenvector, J is half its eigenvalue.
    for value, vector in zip(spectrum, vectors.T, strict=True):
        assert objective(data)(solution + vector).item() == pytest.approx(value / 2, abs=1e-12)


def test_the_quadratics_size_and_type() -> None:
    data = quadratic([1.0, 2.0], num_samples=5)
    assert data.inputs.shape == (5, 2)
    assert data.targets.shape == (5, 1)
    assert data.inputs.dtype == data.targets.dtype == torch.float64


def test_linear_regression_without_noise_is_solved_by_its_weights_and_bias() -> None:
    weights = [1.5, -2.0, 0.25]
    data = linear_regression(50, 3, weights=weights, bias=0.5, noise=0.0)
    design = np.column_stack([data.inputs.numpy(), np.ones(50)])
    found = np.linalg.lstsq(design.astype(float), data.targets[:, 0].numpy(), rcond=None)[0]
    assert found == pytest.approx([*weights, 0.5], abs=1e-5)


def test_linear_regressions_residuals_have_the_chosen_deviation() -> None:
    data = linear_regression(20_000, 2, weights=[1.0, 2.0], noise=0.3)
    residuals = data.targets[:, 0] - data.inputs @ torch.tensor([1.0, 2.0])
    # Standard errors: 0.3 / √n of the mean, 0.3 / √(2n) of the deviation; four of each.
    assert residuals.mean().item() == pytest.approx(0, abs=4 * 0.3 / math.sqrt(20_000))
    assert residuals.std().item() == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(40_000))


def test_teaching_is_500_independent_normal_rows() -> None:
    data = teaching()
    assert data.inputs.shape == (500, 2)
    assert data.targets.shape == (500, 1)
    together = torch.cat([data.inputs, data.targets], dim=1).double()
    covariance = torch.cov(together.T, correction=0)
    assert torch.allclose(covariance, torch.eye(3).double(), atol=4 * math.sqrt(2 / 500))


def test_moons_without_noise_are_two_half_circles() -> None:
    data = two_moons(101, noise=0.0)
    upper, lower = data.inputs[data.targets == 0], data.inputs[data.targets == 1]
    assert (len(upper), len(lower)) == (50, 51)
    assert torch.allclose(upper.norm(dim=1), torch.ones(50))
    assert torch.allclose((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(51))
    assert upper[:, 1].min() > -1e-6
    assert lower[:, 1].max() < 0.5 + 1e-6
    assert data.class_names == ["upper", "lower"]


def test_moons_are_those_of_scikit_learn() -> None:
    reference, labels = pytest.importorskip("sklearn.datasets").make_moons(21, shuffle=False)
    data = two_moons(21, noise=0.0)
    assert np.allclose(data.inputs.numpy(), reference, atol=1e-6)
    assert data.targets.tolist() == labels.tolist()


def test_moons_noise_has_the_chosen_deviation() -> None:
    moved = two_moons(10_000, noise=0.2).inputs - two_moons(10_000, noise=0.0).inputs
    assert moved.std().item() == pytest.approx(0.2, abs=4 * 0.2 / math.sqrt(40_000))


@pytest.mark.parametrize(
    "make", [teaching, linear_regression, two_moons, lambda seed: quadratic([1.0, 2.0], seed=seed)]
)
def test_a_problem_is_a_function_of_its_seed_alone(make: Callable[..., LoadedData]) -> None:
    state = torch.get_rng_state()
    first = make(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    again, other = make(seed=1), make(seed=2)
    assert torch.equal(again.inputs, first.inputs)
    assert torch.equal(again.targets, first.targets)
    assert not torch.equal(other.inputs, first.inputs)


@pytest.mark.parametrize("make", [teaching, linear_regression])
def test_sizes_must_be_whole_and_positive(make: Callable[..., LoadedData]) -> None:
    with refuses("num_samples: must be >= 1, got 0"):
        make(num_samples=0)
    with refuses("num_samples: must be a whole number, got 2.5"):
        make(num_samples=2.5)
    with refuses("num_features: must be >= 1, got -1"):
        make(num_features=-1)


def test_moons_need_a_sample_each() -> None:
    with refuses("num_samples: must be >= 2, got 1"):
        two_moons(1)


def test_weights_must_be_as_many_as_the_features() -> None:
    with refuses("weights: must hold num_features = 3 numbers, got 1"):
        linear_regression(num_features=3, weights=[1.0])


@pytest.mark.parametrize("spectrum", [[], [1.0, -1.0], [math.nan], [math.inf]])
def test_a_spectrum_must_be_finite_and_not_negative(spectrum: list[float]) -> None:
    with refuses(f"spectrum: must hold numbers >= 0, at least one, got {spectrum}"):
        quadratic(spectrum)


@pytest.mark.parametrize(
    ("n", "said"), [(1, "must be >= 2, one per eigenvalue, got 1"), (0, "must be >= 1, got 0")]
)
def test_a_quadratic_needs_a_row_per_eigenvalue(n: int, said: str) -> None:
    with refuses(f"num_samples: {said}"):
        quadratic([1.0, 2.0], n)
