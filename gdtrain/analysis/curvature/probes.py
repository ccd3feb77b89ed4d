"""What random vectors tell of a symmetric matrix: its trace, and the density of its spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gdtrain.analysis.curvature.lanczos import Lanczos

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace.

    value: without bias. standard_error: of it, from the scatter of the random vectors; 0 where it
    is exact, NaN of a single one. products: of the matrix with a vector.
    """

    value: float
    standard_error: float
    products: int


@dataclass(frozen=True)
class Spectrum:
    """An estimate of a spectral density, (1/P) Σ δ(λ - λ_i) over a matrix's P eigenvalues.

    nodes: [m] float64, and weights: [m] float64, which sum to 1: the density is Σ w δ(λ - node).
    products: of the matrix with a vector.
    """

    nodes: Tensor
    weights: Tensor
    products: int

    def __repr__(self) -> str:
        ends = f"{float(self.nodes.min()):.4g} to {float(self.nodes.max()):.4g}"
        return f"Spectrum({len(self.nodes)} nodes from {ends}; {self.products} products)"

    def density(self, at: Tensor, width: float) -> Tensor:
        """The density at some λ, [g] float64, each node smoothed to a Gaussian of this σ."""
        apart = (at.double()[:, None] - self.nodes) / width
        bells = torch.exp(-apart.square() / 2) / (width * math.sqrt(2 * math.pi))
        return bells @ self.weights

    def mean(self, function: Callable[[Tensor], Tensor]) -> float:
        """The mean of a function over the spectrum, tr f(A) / P, as estimated by the nodes."""
        return float(function(self.nodes) @ self.weights)


def trace_of(product: Product, like: Tensor, products: int, seed: int) -> Trace:
    """The trace of a matrix A by Hutch++ (Meyer, Musco, Musco and Woodruff, 2021, algorithm 1).

    With random signs S and G [P, m/3], and Q an orthonormal basis of A S:

        tr A ≈ tr Qᵀ A Q + (3/m) tr Gᵀ (I - Q Qᵀ) A (I - Q Qᵀ) G.

    Its variance is O(1/m²), where that of plain random vectors (Hutchinson, 1990) is O(1/m). The
    standard error is that of the mean over the columns of G; Q, being drawn apart, only makes
    it small. product: [P, k] -> A · [P, k]. like: [P], for dtype and device. Exact with 2 P
    products or more.
    """
    draw, size = torch.Generator().manual_seed(seed), len(like)
    if products >= size:  # the diagonal
        each = _quadratic(product, torch.eye(size, dtype=like.dtype, device=like.device))
        return Trace(float(each.sum()), 0.0, size)
    count = products // 3
    basis, _ = torch.linalg.qr(product(_signs(draw, size, count, like)))
    probes = _signs(draw, size, products - 2 * count, like)
    probes = probes - basis @ (basis.T @ probes)
    each = _quadratic(product, probes)
    value = float(_quadratic(product, basis).sum() + each.mean())
    return Trace(value, float(each.std() / math.sqrt(len(each))), products)


def spectrum_of(product: Product, like: Tensor, probes: int, steps: int, seed: int) -> Spectrum:
    """The spectral density by stochastic Lanczos quadrature (Lin, Saad and Yang, 2016; Ghorbani,
    Krishnan and Xiao, 2019).

    For each of ``probes`` vectors v of random signs, ``steps`` of Lanczos give nodes θ_i and
    weights τ_i², for which Σ τ_i² p(θ_i) = vᵀ p(A) v / P for every polynomial of degree
    2 · steps - 1, and E vᵀ p(A) v = tr p(A). product: [P] -> A · [P]. like: [P].
    """
    draw, size = torch.Generator().manual_seed(seed), len(like)
    nodes, weights, made = [], [], 0
    for probe in _signs(draw, size, probes, like).T:
        space = Lanczos(product, probe.contiguous())
        for _ in range(min(steps, size)):
            finite = space.step()
            made += 1
            if not finite:
                nan = torch.full((1,), math.nan, dtype=torch.float64, device="cpu")
                return Spectrum(nan, nan, made)
            if space.is_closed:
                break
        nodes.append(space.ritz_values()[0])
        weights.append(space.weights() / probes)
    return Spectrum(torch.cat(nodes), torch.cat(weights), made)


def _signs(draw: torch.Generator, size: int, count: int, like: Tensor) -> Tensor:
    """±1, [size, count]; the same on every process and in every dtype."""
    return torch.randint(0, 2, (size, count), generator=draw, device="cpu").mul_(2).sub_(1).to(like)


def _quadratic(product: Product, vectors: Tensor) -> Tensor:
    """vᵀ A v of each column, [k] float64 on the CPU."""
    return (vectors * product(vectors)).double().sum(0).cpu()
