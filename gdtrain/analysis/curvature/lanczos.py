"""The largest eigenvalue of a symmetric matrix of which only products with vectors are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvalue and what it took to find it.

    value: the largest Ritz value, which never exceeds the largest eigenvalue but by rounding.
    vector: [P], of length 1. products: of the matrix with a vector.
    residual: |A·vector - value·vector|. Some eigenvalue is no farther than this from ``value``;
    the error of the largest is about residual² over its distance to the next.
    """

    value: float
    vector: Tensor
    products: int
    residual: float


def largest_eigenpair(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float,
    max_products: int,
) -> Eigenpair:
    """The largest (algebraic) eigenvalue of the symmetric matrix A that ``product`` multiplies by.

    The method of Lanczos (1950): orthonormal q_1, …, q_m of the Krylov space of A and ``start``,
    in which A is the tridiagonal T with diagonal α_j = q_jᵀ A q_j and off-diagonal β_j. Its
    largest eigenvalue is the best approximation to A's from below, negative spectrum or not;
    with T s = value · s, the residual is β_m |s_m| (Paige, 1971). Rounding would let the q_j
    lose their orthogonality and copies of eigenvalues appear, so each is orthogonalised against
    all earlier ones, twice (Kahan's "twice is enough"; Parlett, 1980, section 6.9). That takes
    ``products`` vectors of memory.

    start: [P], not 0, with a component along every eigenvector, as a random one has.
    Ends when the residual is at most ``tolerance`` times \\|value|, or of the size of rounding, or
    after ``max_products``. The value is NaN if a product is not finite.
    """
    size = start.numel()
    rounding = 4 * torch.finfo(start.dtype).eps
    basis = torch.empty(min(16, max_products), size, dtype=start.dtype, device=start.device)
    diagonal: list[float] = []
    beside: list[float] = []
    vector = start / start.norm()
    while True:
        made = len(diagonal)
        if made == len(basis):
            more = min(len(basis), max_products - made)
            basis = torch.cat([basis, torch.empty_like(basis[:more])])
        basis[made] = vector
        remainder = product(vector)
        diagonal.append(float(vector @ remainder))
        known = basis[: made + 1]
        for _ in range(2):
            remainder = remainder - known.T @ (known @ remainder)
        length = float(remainder.norm())
        if not (math.isfinite(length) and math.isfinite(diagonal[-1])):
            return Eigenpair(math.nan, vector, made + 1, math.nan)
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        value, share = float(values[-1]), vectors[:, -1]
        residual = length * abs(float(share[-1]))
        noise = rounding * float(values.abs().max())
        done = residual <= max(tolerance * abs(value), noise) or length <= noise
        if done or made + 1 == min(max_products, size):
            found = known.T @ share.to(known)
            return Eigenpair(value, found / found.norm(), made + 1, residual)
        beside.append(length)
        vector = remainder / length


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    off = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
    return torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + off + off.T
