"""Eigenpairs, traces and densities of matrices that are known."""

import math

import pytest
import torch
from torch import Tensor

from gdtrain.analysis.curvature.matrix import SymmetricMatrix
from gdtrain.errors import ConfigError


def turned(values: Tensor) -> Tensor:
    """A matrix with these eigenvalues, in no particular directions."""
    draw = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=draw).double())
    return q @ torch.diag(values) @ q.T


def matrix_of(dense: Tensor) -> SymmetricMatrix:
    return SymmetricMatrix(lambda vectors: dense @ vectors, dense[0])


def normal(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).double()


SPECTRA = {
    "distinct": normal(300),
    "one value": torch.ones(6).double(),
    "repeated at both ends": torch.tensor([5, 5, 5, 1, 0, 0, 0, -3, -3]).double(),
    "mostly zero": torch.cat([torch.zeros(240).double(), normal(60).abs()]),
    "a pair above a bulk": torch.cat(
        [torch.tensor([2.0, 2.0]), torch.linspace(0, 1.9, 98)]
    ).double(),
    "negative": -normal(50).abs() - 1,
    "zero": torch.zeros(4).double(),
}


@pytest.mark.few(8)
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_outermost_eigenvalues_are_found_with_their_multiplicity(name, count) -> None:
    values = SPECTRA[name].sort().values
    dense = turned(values)
    matrix = matrix_of(dense)
    for found, expected in (
        (matrix.top(count, max_products=1000), values.flip(0)[:count]),
        (matrix.bottom(count, max_products=1000), values[:count]),
    ):
        assert found.converged
        assert (found.values - expected).abs().max() < 1e-6
        assert found.vectors.shape == (len(values), count)
        off = found.vectors.T @ found.vectors - torch.eye(count).double()
        assert off.abs().max() < 1e-10
        left = (dense @ found.vectors - found.vectors * found.values).norm(dim=0)
        assert torch.allclose(left, found.residuals, atol=1e-8)
        assert (left <= 1e-6 * found.values.abs() + 1e-10).all()


def test_what_is_not_found_in_time_is_said() -> None:
    found = matrix_of(turned(normal(300))).top(5, max_products=7)
    assert (found.products, found.converged) == (7, False)
    assert found.residuals.max() > 1e-2


def test_results_are_shown_in_a_line() -> None:
    matrix = matrix_of(torch.diag(torch.arange(1.0, 9).double()))
    assert repr(matrix) == "SymmetricMatrix(8 rows)"
    assert repr(matrix.top(6)).startswith("Eigenpairs(8, 7, 6, 5, 4, …; ")
    assert repr(matrix.top(6)).endswith(" products, converged)")
    assert repr(matrix.spectrum(1)) == "Spectrum(8 nodes from 1 to 8; 8 products)"


def test_a_product_that_is_not_finite_gives_nan() -> None:
    matrix = SymmetricMatrix(lambda vectors: vectors * math.nan, torch.zeros(5))
    found = matrix.top(2)
    assert found.values.isnan().all()
    assert not found.converged
    assert matrix.spectrum().nodes.isnan().all()
    assert math.isnan(matrix.trace().value)


def test_a_trace_is_exact_from_as_many_products_as_parameters() -> None:
    dense = turned(normal(40))
    found = matrix_of(dense).trace(40)
    assert math.isclose(found.value, float(dense.trace()), rel_tol=1e-12)
    assert (found.standard_error, found.products) == (0, 40)


def test_a_matrix_of_low_rank_has_an_exact_trace_sooner() -> None:
    """Q then spans all that A reaches, and nothing is left to estimate."""
    values = torch.zeros(100).double()
    values[:5] = torch.arange(1.0, 6)
    found = matrix_of(turned(values)).trace(30)
    assert math.isclose(found.value, 15, rel_tol=1e-10)
    assert found.standard_error < 1e-10


def test_the_trace_is_unbiased_and_its_standard_error_is_that_of_its_scatter() -> None:
    dense = turned(normal(60))
    found = [matrix_of(dense).trace(24, seed=seed) for seed in range(400)]
    values = torch.tensor([each.value for each in found]).double()
    scatter = float(values.std())
    assert abs(float(values.mean() - dense.trace())) < 4 * scatter / 20
    squares = torch.tensor([each.standard_error**2 for each in found]).double()
    assert math.isclose(float(squares.mean().sqrt()), scatter, rel_tol=0.15)
    assert {each.products for each in found} == {24}


def test_it_has_less_scatter_than_hutchinsons_of_as_many_products() -> None:
    values = 1 / torch.arange(1, 101).double() ** 2
    dense = turned(values)
    draw, errors = torch.Generator().manual_seed(0), []
    for _ in range(200):
        probes = torch.randint(0, 2, (100, 30), generator=draw).double() * 2 - 1
        errors.append(float((probes * (dense @ probes)).sum() / 30 - values.sum()))
    plain = math.sqrt(sum(error**2 for error in errors) / 200)
    mine = [
        matrix_of(dense).trace(30, seed=seed).value - float(values.sum()) for seed in range(200)
    ]
    assert math.sqrt(sum(error**2 for error in mine) / 200) < plain / 5


def test_of_a_diagonal_matrix_every_moment_of_the_spectrum_is_exact() -> None:
    """Random signs v have vᵀ f(A) v = tr f(A) there, and m nodes integrate degree 2 m - 1."""
    values = normal(50)
    found = matrix_of(torch.diag(values)).spectrum(probes=2, steps=5)
    assert found.products == 10
    assert math.isclose(float(found.weights.sum()), 1, rel_tol=1e-12)
    for power in range(10):
        expected = float((values**power).mean())
        assert math.isclose(found.mean(lambda x, p=power: x**p), expected, rel_tol=1e-9)
    assert not math.isclose(found.mean(lambda x: x**12), float((values**12).mean()), rel_tol=1e-3)


def test_with_all_steps_the_nodes_are_the_eigenvalues() -> None:
    values = normal(30).sort().values
    found = matrix_of(turned(values)).spectrum(probes=1, steps=100)
    assert (found.nodes - values).abs().max() < 1e-10
    assert found.products == 30


def test_the_density_is_that_of_the_eigenvalues_smoothed() -> None:
    values = normal(200)
    found = matrix_of(torch.diag(values)).spectrum(probes=1, steps=200)
    at = torch.linspace(-4, 4, 33).double()
    bells = torch.distributions.Normal(values, 0.3).log_prob(at[:, None]).exp().mean(1)
    assert (found.density(at, 0.3) - bells).abs().max() < 1e-10


def test_repeated_eigenvalues_end_a_probe_early() -> None:
    found = matrix_of(turned(torch.tensor([1.0, 1, 1, 4, 4]).double())).spectrum(probes=3, steps=9)
    assert found.products == 6
    assert sorted({round(node, 6) for node in found.nodes.tolist()}) == [1, 4]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.top(0), "count: must be >= 1, got 0"),
        (lambda m: m.top(tolerance=1.0), "tolerance: must be > 0 and < 1, got 1.0"),
        (lambda m: m.top(3, max_products=2), "max_products: must be >= 3, got 2"),
        (lambda m: m.trace(5), "products: must be >= 6, got 5"),
        (lambda m: m.spectrum(0), "probes: must be >= 1, got 0"),
        (lambda m: m.spectrum(steps=0), "steps: must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_bounds_are_refused(ask, said) -> None:
    with pytest.raises(ConfigError) as error:
        ask(matrix_of(torch.eye(4).double()))
    assert str(error.value) == said
