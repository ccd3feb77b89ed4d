"""A symmetric matrix that is never formed, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gdtrain.analysis.curvature.lanczos import Eigenpairs, largest_eigenpairs, random_vector
from gdtrain.analysis.curvature.probes import Spectrum, Trace, spectrum_of, trace_of
from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError

_AT_ONCE = 16  # vectors of a product
# How much of a random direction is mixed into a start that is given. With less of it, the
# eigenvector of the last look hides an eigenvalue that has grown past it in a direction at right
# angles; with as much, and a tolerance of 1e-4, it did in none of 600 spectra of 100 and of 1,000
# values, where a random start takes the same number of products.
FRESH_SHARE = 1.0


class SymmetricMatrix:
    """A symmetric matrix A [P, P] of which only products with vectors are known.

    product: [P, k] -> A · [P, k]. like: [P], for the size, dtype and device of its vectors.
    Random vectors are drawn by ``seed``, the same on every process.

    >>> import torch
    >>> from gdtrain.analysis.curvature.matrix import SymmetricMatrix
    >>> dense = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    >>> matrix = SymmetricMatrix(lambda vectors: dense @ vectors, dense[0])
    >>> [round(value, 6) for value in matrix.top(2).values.tolist()]
    [3.0, 1.0]
    """

    def __init__(self, product: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self._product = product
        self._like = like

    @property
    def shape(self) -> tuple[int, int]:
        """P, P."""
        return len(self._like), len(self._like)

    def __repr__(self) -> str:
        return f"SymmetricMatrix({len(self._like):,} rows)"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """A · vectors, of the shape of ``vectors``: [P], or [P, k]. Raises ConfigError."""
        size = len(self._like)
        if vectors.ndim not in (1, 2) or len(vectors) != size:
            message = f"must have the shape [{size}] or [{size}, k], got {list(vectors.shape)}"
            raise ConfigError.of("vectors", message)
        columns = vectors.to(self._like).reshape(size, -1)
        parts = [self._product(part) for part in torch.split(columns, _AT_ONCE, dim=1)]
        return torch.cat(parts, dim=1).reshape(vectors.shape)

    def top(
        self,
        count: int = 1,
        *,
        tolerance: float | None = None,
        max_products: int | None = None,
        start: Tensor | None = None,
    ) -> Eigenpairs:
        """The ``count`` largest (algebraic) eigenvalues, with multiplicity, and their vectors.

        By Lanczos, whose vectors take as much memory as P numbers times the products.
        tolerance: of the residual |A v - λ v|, relative to \\|λ|, which λ's error never exceeds;
        1e-6 if left out, or 1,000 roundings of the dtype. max_products: 200, or 20 for each
        eigenvalue, if left out; after which ``converged`` may be false. start: [P], such as an
        eigenvector of a while ago. Raises ConfigError for arguments out of bounds.
        """
        return self._outermost(1.0, count, tolerance, max_products, start)

    def bottom(
        self,
        count: int = 1,
        *,
        tolerance: float | None = None,
        max_products: int | None = None,
        start: Tensor | None = None,
    ) -> Eigenpairs:
        """The ``count`` smallest (algebraic) eigenvalues, the smallest first; see :meth:`top`."""
        found = self._outermost(-1.0, count, tolerance, max_products, start)
        return Eigenpairs(
            -found.values, found.vectors, found.residuals, found.products, found.converged
        )

    def trace(self, products: int = 60, *, seed: int = 0) -> Trace:
        """An unbiased estimate of the trace, and its standard error, by Hutch++.

        See :func:`~gdtrain.analysis.curvature.probes.trace_of`. products: >= 6; from P on it is
        exact.
        """
        whole_number("products", products, minimum=6)
        return trace_of(self.__matmul__, self._like, products, whole_number("seed", seed, 0))

    def spectrum(self, probes: int = 4, steps: int = 60, *, seed: int = 0) -> Spectrum:
        """The density of the eigenvalues, by stochastic Lanczos quadrature.

        See :func:`~gdtrain.analysis.curvature.probes.spectrum_of`.
        """
        whole_number("probes", probes, minimum=1)
        whole_number("steps", steps, minimum=1)
        seed = whole_number("seed", seed, minimum=0)
        return spectrum_of(self.__matmul__, self._like, probes, steps, seed)

    def dense(self) -> Tensor:
        """A itself, [P, P], by P products; for small P."""
        size = len(self._like)
        formed = self @ torch.eye(size, dtype=self._like.dtype, device=self._like.device)
        return (formed + formed.T) / 2

    def _outermost(
        self,
        sign: float,
        count: int,
        tolerance: float | None,
        max_products: int | None,
        start: Tensor | None,
    ) -> Eigenpairs:
        size = len(self._like)
        if whole_number("count", count, minimum=1) > size:
            raise ConfigError.of("count", f"must be <= {size}, the parameters, got {count}")
        if tolerance is None:
            tolerance = max(1e-6, 1000 * torch.finfo(self._like.dtype).eps)
        if not 0 < tolerance < 1:
            raise ConfigError.of("tolerance", f"must be > 0 and < 1, got {tolerance}")
        if max_products is None:
            max_products = max(200, 20 * count)
        whole_number("max_products", max_products, minimum=count)
        return largest_eigenpairs(
            lambda vector: sign * (self @ vector),
            self._start(start),
            count,
            tolerance=tolerance,
            max_products=max_products,
        )

    def _start(self, given: Tensor | None) -> Tensor:
        fresh = random_vector(self._like, torch.Generator().manual_seed(0))
        if given is None:
            return fresh
        if given.shape != fresh.shape:
            message = f"must have the shape [{len(fresh)}] of all parameters, got "
            raise ConfigError.of("start", f"{message}{list(given.shape)}")
        length, given = given.norm(), given.to(fresh)
        return given / length + FRESH_SHARE * fresh / fresh.norm() if length > 0 else fresh
