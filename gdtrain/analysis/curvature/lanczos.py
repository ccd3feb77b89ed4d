"""Eigenvalues of a symmetric matrix of which only products with vectors are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_DRAW_SEED = 0x1A2C05


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at one end of the spectrum, and what it took to find them.

    values: [k] float64 on the CPU, the outermost first. vectors: [P, k], orthonormal. residuals:
    [k] float64, |A v - λ v|: some eigenvalue is no farther than this from λ, and λ's own error is
    about its square over the distance to the next. products: of the matrix with a vector.
    converged: whether all residuals came under the tolerance, and no eigenvalue farther out was
    left, as far as a random vector shows.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.4g}" for value in self.values[:5].tolist())
        more = ", …" if len(self.values) > 5 else ""
        ended = "converged" if self.converged else "not converged"
        return f"Eigenpairs({shown}{more}; {self.products} products, {ended})"


class Lanczos:
    """The method of Lanczos (1950): an orthonormal basis that grows by a vector a product.

    q_1, …, q_m of the Krylov space of A and ``start``, in which A is the tridiagonal T with
    diagonal α_j = q_jᵀ A q_j and off-diagonal β_j. With T s = λ s, the Ritz value λ has the vector
    Σ s_j q_j and the residual β_m |s_m| (Paige, 1971). Rounding would let the q_j lose their
    orthogonality and copies of eigenvalues appear, so each is orthogonalised against all earlier
    ones, twice (Kahan's "twice is enough"; Parlett, 1980, section 6.9). That takes as much memory
    as vectors.

    start: [P], not 0. apart: [l, P], orthonormal vectors to which the space is kept orthogonal.
    """

    def __init__(
        self, product: Callable[[Tensor], Tensor], start: Tensor, apart: Tensor | None = None
    ) -> None:
        self.product = product
        self.noise = 0.0  # what rounding alone may make of an eigenvalue
        self._apart = start.new_empty(0, len(start)) if apart is None else apart
        self._basis = start.new_empty(16, len(start))
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self._draw = torch.Generator().manual_seed(_DRAW_SEED)
        self._next = self._unit(start)
        self._remainder, self._length = self._next, 0.0
        self._values, self._shares = self._next[:0], self._next[:0, None]  # of T

    @property
    def products(self) -> int:
        """How many have been made, m."""
        return len(self._diagonal)

    @property
    def is_full(self) -> bool:
        """Whether there is no further direction."""
        return self.products + len(self._apart) >= self._basis.shape[1]

    @property
    def is_closed(self) -> bool:
        """Whether A leads out of the space no more, so that its Ritz values are eigenvalues."""
        return self._length == 0

    def step(self) -> bool:
        """Make a product more; False if it is not finite.

        Where A leads out of the space no more, it goes on from a random vector.
        """
        if self.products:
            self._beside.append(self._length)
            if self.is_closed:
                self._next = self._unit(random_vector(self._next, self._draw))
            else:
                self._next = self._remainder / self._length
        made = self.products
        if made == len(self._basis):
            self._basis = torch.cat([self._basis, torch.empty_like(self._basis)])
        self._basis[made] = self._next
        image = self.product(self._next)
        self._diagonal.append(float(self._next @ image))
        self._remainder = self._orthogonal(image)
        self._length = float(self._remainder.norm())
        if not (math.isfinite(self._length) and math.isfinite(self._diagonal[-1])):
            return False
        self._values, self._shares = torch.linalg.eigh(self._tridiagonal())
        unit = 4 * torch.finfo(self._basis.dtype).eps
        self.noise = unit * float(self._values.abs().max())
        if self._length <= self.noise or self.is_full:
            self._length = 0.0
        return True

    def ritz_values(self) -> tuple[Tensor, Tensor]:
        """λ, ascending, and their residuals, [m] float64."""
        return self._values, self._length * self._shares[-1].abs()

    def ritz_vectors(self, numbers: Tensor) -> Tensor:
        """Those of the values at ``numbers``, [k, P]."""
        known = self._basis[: self.products]
        found: Tensor = self._shares[:, numbers].T.to(known) @ known
        return found

    def weights(self) -> Tensor:
        """(s_1)² of each value, [m]: of the quadrature of ``start``; they sum to 1."""
        return self._shares[0].square()

    def _orthogonal(self, vector: Tensor) -> Tensor:
        for _ in range(2):
            for known in (self._apart, self._basis[: self.products]):
                vector = vector - known.T @ (known @ vector)
        return vector

    def _unit(self, vector: Tensor) -> Tensor:
        """What of the vector is at right angles to all that is known, of length 1."""
        apart = self._orthogonal(vector / vector.norm())
        unit: Tensor = apart / apart.norm()
        return unit

    def _tridiagonal(self) -> Tensor:
        off = torch.diag(torch.tensor(self._beside, dtype=torch.float64, device="cpu"), 1)
        middle = torch.tensor(self._diagonal, dtype=torch.float64, device="cpu")
        return torch.diag(middle) + off + off.T


def random_vector(like: Tensor, draw: torch.Generator) -> Tensor:
    """A normal vector of the shape, dtype and device of another; the same for every dtype."""
    return torch.randn(like.shape, generator=draw, dtype=torch.float64, device="cpu").to(like)


def largest_eigenpairs(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    count: int = 1,
    *,
    tolerance: float,
    max_products: int,
) -> Eigenpairs:
    """The ``count`` largest (algebraic) eigenvalues of the symmetric matrix A, with multiplicity.

    By :class:`Lanczos`, whose largest Ritz values approach A's from below, negative spectrum or
    not. A Krylov space has one vector of each eigenspace; so where more than one are wanted, they
    are looked for again, from a random vector at right angles to those found, until none is larger
    than the last.

    product: v [P] -> A v [P]. start: [P], not 0, with a component along every eigenvector, as a
    random one has.
    Ends when each residual is at most ``tolerance`` times \\|λ|, or of the size of rounding, or
    after ``max_products``. The values are NaN if a product is not finite.
    """
    found = _Found(min(count, len(start)), start)
    draw, products = torch.Generator().manual_seed(_DRAW_SEED + 1), 0
    while True:
        space = Lanczos(product, start, found.vectors)
        wanted = found.count if not products else 1
        while True:
            products += 1
            if not space.step():
                return found.nothing(products)
            values, residuals = space.ritz_values()
            bounds = torch.clamp(tolerance * values.abs(), min=space.noise)
            right = len(values) >= wanted and bool((residuals <= bounds)[-wanted:].all())
            least = found.least + max(tolerance * abs(found.least), space.noise)
            if right or space.is_full or products >= max_products:
                break
        none_missing = right and float(values[-1]) <= least
        is_all = space.is_full or none_missing or (right and found.count == 1)
        if not none_missing:
            found.take(space, found.count if space.is_full else wanted)
        if is_all or products >= max_products:
            return found.pairs(products, converged=is_all)
        start = random_vector(start, draw)


class _Found:
    """The largest eigenpairs of those that were found so far.

    least: the smallest of the values that were looked for; -∞ before.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        self.count = count
        self.vectors = like.new_empty(0, len(like))
        self.values = torch.empty(0, dtype=torch.float64, device="cpu")
        self.residuals = self.values

    @property
    def least(self) -> float:
        return float(self.values[-1]) if len(self.values) == self.count else -math.inf

    def take(self, space: Lanczos, count: int) -> None:
        """Take in the largest values of a space, and drop what is no longer among the largest."""
        values, residuals = space.ritz_values()
        numbers = torch.arange(len(values), device="cpu").flip(0)[:count]
        values = torch.cat([self.values, values[numbers]])
        order = values.argsort(descending=True, stable=True)[: self.count]
        self.values = values[order]
        self.residuals = torch.cat([self.residuals, residuals[numbers]])[order]
        self.vectors = torch.cat([self.vectors, space.ritz_vectors(numbers)])[order]
        self.vectors = self.vectors / self.vectors.norm(dim=1, keepdim=True)

    def pairs(self, products: int, converged: bool) -> Eigenpairs:
        return Eigenpairs(self.values, self.vectors.T, self.residuals, products, converged)

    def nothing(self, products: int) -> Eigenpairs:
        """What there is to say where a product is not finite."""
        nan = torch.full((self.count,), math.nan, dtype=torch.float64, device="cpu")
        vectors = self.vectors.new_full((self.count, self.vectors.shape[1]), math.nan)
        return Eigenpairs(nan, vectors.T, nan, products, converged=False)
