"""Lowerings to jax of products, decompositions, distances and Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.scipy import linalg
from torch import Tensor

Lowering = Callable[..., Any]


def _addmm(bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Any:
    return beta * bias + alpha * (x @ y) if (alpha, beta) != (1, 1) else bias + x @ y


def _addbmm(bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Any:
    return beta * bias + alpha * (x @ y).sum(0)


def _cross(x: Any, y: Any, dim: int = -1) -> Any:
    return jnp.cross(x, y, axis=dim)


def _trilinear(
    x: Any,
    y: Any,
    z: Any,
    new_in_x: Sequence[int],
    new_in_y: Sequence[int],
    new_in_z: Sequence[int],
    summed: Sequence[int],
    _: int = 1,
) -> Any:
    """Σ x y z, as in Bilinear, each with new dimensions along which it is the same."""
    pairs = ((x, new_in_x), (y, new_in_y), (z, new_in_z))
    a, b, c = (jnp.expand_dims(factor, tuple(new)) for factor, new in pairs)
    return (a * b * c).sum(tuple(summed))


_PRODUCTS: dict[str, Lowering] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), lambda x, y: x @ y),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _addmm),
    "addbmm": _addbmm,
    "linalg_cross": _cross,
    "_trilinear": _trilinear,
    "linalg_matrix_exp": linalg.expm,
}


# ── decompositions ──────────────────────────────────────────────────────────────────────────


def _t(x: Any) -> Any:
    return jnp.swapaxes(x, -1, -2)


def _h(x: Any) -> Any:
    return jnp.conj(_t(x))


def _sound(x: Any) -> Any:
    """What LAPACK says if nothing is wrong: a zero for each matrix."""
    return jnp.zeros(x.shape[:-2], jnp.int32)


def _lu(x: Any, *_: Any, **__: Any) -> tuple[Any, Any, Any]:
    factors: tuple[Any, Any, Any] = lax.linalg.lu(x)
    return factors[0], factors[1] + 1, _sound(x)


def _order_of(pivots: Any, rows: int) -> Any:
    """The permutation that exchanges of rows, counted from one, come to."""
    return lax.linalg.lu_pivots_to_permutation(pivots - 1, rows)


def _lu_solve(lu: Any, pivots: Any, y: Any, left: bool = True, adjoint: bool = False) -> Any:
    if not left:  # X A = Y is Aᴴ Xᴴ = Yᴴ
        return _h(_lu_solve(lu, pivots, _h(y), True, not adjoint))
    order = _order_of(pivots, lu.shape[-1])
    lu, order, y = _batched(lu, order, y)
    if not adjoint:
        y = jnp.take_along_axis(y, order[..., None], axis=-2)
        return _triangular(lu, _triangular(lu, y, lower=True, unit=True), lower=False)
    z = _triangular(lu, y, lower=False, adjoint=True)
    z = _triangular(lu, z, lower=True, unit=True, adjoint=True)
    return jnp.take_along_axis(z, jnp.argsort(order, axis=-1)[..., None], axis=-2)


def _batched(lu: Any, order: Any, y: Any) -> tuple[Any, Any, Any]:
    lead = jnp.broadcast_shapes(lu.shape[:-2], y.shape[:-2])
    return (
        jnp.broadcast_to(lu, (*lead, *lu.shape[-2:])),
        jnp.broadcast_to(order, (*lead, order.shape[-1])),
        jnp.broadcast_to(y, (*lead, *y.shape[-2:])),
    )


def _triangular(
    a: Any,
    y: Any,
    *,
    lower: bool,
    unit: bool = False,
    adjoint: bool = False,
    left: bool = True,
) -> Any:
    return lax.linalg.triangular_solve(
        a,
        y,
        left_side=left,
        lower=lower,
        unit_diagonal=unit,
        transpose_a=adjoint,
        conjugate_a=adjoint and jnp.iscomplexobj(a),
    )


def _solve(
    a: Any, y: Any, left: bool = True, check_errors: bool = False, *, memory: Tensor
) -> tuple[Any, Any, Any, Any]:
    lu, pivots, info = _lu(a)
    is_vector = y.ndim == 1 or (y.shape == a.shape[:-1] and y.ndim == a.ndim - 1)
    rows = y[..., None] if is_vector else y
    result = _lu_solve(lu, pivots, rows, left or is_vector)
    if _solve_keeps_factors_as_it_lies():
        lu, pivots = _lu_as_it_lies(a, memory)
    return result[..., 0] if is_vector else result, lu, pivots, info


@cache
def _solve_keeps_factors_as_it_lies() -> bool:
    """Whether PyTorch differentiates a solution by factors as those of a determinant: 2.6 does."""
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device="cpu")
    _, factors, _, _ = torch._linalg_solve_ex(rows, rows)
    return factors[0, 0].item() == 2.0


def _inverse(a: Any, **_: Any) -> tuple[Any, Any]:
    lu, pivots, info = _lu(a)
    return _lu_solve(
        lu, pivots, jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    ), info


def _sign_of(pivots: Any) -> Any:
    moved = pivots != jnp.arange(1, pivots.shape[-1] + 1)
    return 1 - 2 * (moved.sum(-1) % 2)


def _lu_as_it_lies(a: Any, memory: Tensor) -> tuple[Any, Any]:
    """The factors that PyTorch keeps of a determinant, say, and differentiates it by.

    Of a real matrix that lies row by row in memory they are those of its transpose.
    """
    transposed = memory.is_contiguous() and not memory.is_complex()
    lu, pivots, _ = _lu(_t(a) if transposed else a)
    return lu, pivots


def _det(a: Any, memory: Tensor) -> tuple[Any, Any, Any]:
    lu, pivots = _lu_as_it_lies(a, memory)
    diagonal = jnp.diagonal(lu, axis1=-2, axis2=-1)
    return diagonal.prod(-1) * _sign_of(pivots), lu, pivots


def _slogdet(a: Any, memory: Tensor) -> tuple[Any, Any, Any, Any]:
    lu, pivots = _lu_as_it_lies(a, memory)
    diagonal = jnp.diagonal(lu, axis1=-2, axis2=-1)
    sign = jnp.sign(diagonal).prod(-1) * _sign_of(pivots)
    return sign, jnp.log(jnp.abs(diagonal)).sum(-1), lu, pivots


def _lu_unpack(
    lu: Any, pivots: Any, unpack_data: bool = True, unpack_pivots: bool = True
) -> tuple[Any, Any, Any]:
    rows, columns = lu.shape[-2:]
    least = min(rows, columns)
    lower = jnp.tril(lu[..., :, :least], -1) + jnp.eye(rows, least, dtype=lu.dtype)
    order = _order_of(pivots, rows)
    permutation = _t(jax.nn.one_hot(order, rows, dtype=lu.dtype))
    return permutation, lower, jnp.triu(lu[..., :least, :])


def _lu_parts(a: Any, pivot: bool = True) -> tuple[Any, Any, Any]:
    lu, pivots, _ = _lu(a)
    return _lu_unpack(lu, pivots)


def _cholesky(a: Any, upper: bool = False, check_errors: bool = False) -> tuple[Any, Any]:
    lower = jnp.linalg.cholesky(a, symmetrize_input=False)
    return _h(lower) if upper else lower, _sound(a)


def _cholesky_solve(y: Any, factor: Any, upper: bool = False) -> Any:
    lower = _h(factor) if upper else factor
    return _triangular(lower, _triangular(lower, y, lower=True), lower=True, adjoint=True)


def _cholesky_inverse(factor: Any, upper: bool = False) -> Any:
    ones = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return _cholesky_solve(jnp.broadcast_to(ones, factor.shape), factor, upper)


def _qr(a: Any, mode: str = "reduced") -> tuple[Any, Any]:
    if mode == "r":
        return jnp.zeros((0,), a.dtype), jnp.linalg.qr(a, "r")
    q, r = jnp.linalg.qr(a, mode)
    return q, r


def _eigh(a: Any, uplo: str = "L", compute_v: bool = True) -> tuple[Any, Any]:
    if not compute_v:
        return jnp.linalg.eigvalsh(a, uplo, symmetrize_input=False), jnp.zeros((0,), a.dtype)
    values, vectors = jnp.linalg.eigh(a, uplo, symmetrize_input=False)
    return values, vectors


def _eig(a: Any) -> tuple[Any, Any]:
    values, vectors = lax.linalg.eig(a, compute_left_eigenvectors=False)
    return values, vectors


def _svd(
    a: Any, full_matrices: bool = False, compute_uv: bool = True, driver: Any = None
) -> tuple[Any, Any, Any]:
    if not compute_uv:
        nothing = jnp.zeros((0,), a.dtype)
        return nothing, jnp.linalg.svd(a, compute_uv=False), nothing
    u, s, vh = jnp.linalg.svd(a, full_matrices=full_matrices)
    return u, s, vh


def _solve_triangular(
    a: Any, y: Any, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    lead = jnp.broadcast_shapes(a.shape[:-2], y.shape[:-2])
    a = jnp.broadcast_to(a, (*lead, *a.shape[-2:]))
    y = jnp.broadcast_to(y, (*lead, *y.shape[-2:]))
    return _triangular(a, y, lower=not upper, unit=unitriangular, left=left)


def _ormqr(a: Any, tau: Any, y: Any, left: bool = True, transpose: bool = False) -> Any:
    """Q Y or Y Q, with the whole of Q, of which a and tau have the reflections."""
    rows, columns = a.shape[-2:]
    room = [(0, 0)] * (a.ndim - 1)
    q = lax.linalg.householder_product(jnp.pad(a, [*room, (0, rows - columns)]), tau)
    q = _h(q) if transpose else q
    return q @ y if left else y @ q


def _pinv(a: Any, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Any:
    if hermitian:
        s, u = jnp.linalg.eigh(a, symmetrize_input=False)
        s, vh = jnp.abs(s), jnp.sign(s)[..., None] * _h(u)
    else:
        u, s, vh = jnp.linalg.svd(a, full_matrices=False)
    if rtol is None:
        rtol = max(a.shape[-2:]) * np.finfo(s.dtype).eps if atol is None else 0.0
    least = jnp.maximum(0.0 if atol is None else atol, rtol * s.max(-1))
    inverse = jnp.where(s > least[..., None], 1 / s, 0)
    return _h(vh) @ (inverse[..., None] * _h(u))


_DECOMPOSITIONS: dict[str, Lowering] = {
    "linalg_lu_factor_ex": _lu,
    "linalg_lu_solve": _lu_solve,
    "linalg_lu": _lu_parts,
    "lu_unpack": _lu_unpack,
    "_linalg_solve_ex": _solve,
    "linalg_inv_ex": _inverse,
    "_linalg_det": _det,
    "_linalg_slogdet": _slogdet,
    "linalg_cholesky_ex": _cholesky,
    "cholesky": lambda a, upper=False: _cholesky(a, upper)[0],
    "cholesky_solve": _cholesky_solve,
    "cholesky_inverse": _cholesky_inverse,
    "linalg_qr": _qr,
    "linalg_householder_product": lax.linalg.householder_product,
    "ormqr": _ormqr,
    "_linalg_eigh": _eigh,
    "linalg_eig": _eig,
    "_linalg_eigvals": lambda a: _eig(a)[0],
    "_linalg_svd": _svd,
    "linalg_solve_triangular": _solve_triangular,
    "linalg_pinv": _pinv,
    # What is singular gives numbers that are not finite, and so no update.
    "_linalg_check_errors": lambda *_, **__: None,
}


# ── distances ───────────────────────────────────────────────────────────────────────────────


def _length(difference: Any, order: float) -> Any:
    size = jnp.abs(difference)
    if order == 0:
        return (size != 0).sum(-1)
    if math.isinf(order):
        return size.max(-1)
    if order == 1:
        return size.sum(-1)
    if order == 2:
        return jnp.sqrt((size * size).sum(-1))
    return (size**order).sum(-1) ** (1 / order)


def _slope(difference: Any, order: float, distance: Any) -> Any:
    """∂‖d‖ₚ/∂d; zero where the distance is."""
    distance = distance[..., None]
    size, sign = jnp.abs(difference), jnp.sign(difference)
    if order == 0:
        return jnp.zeros_like(difference)
    if order == 1:
        return sign
    if math.isinf(order):
        return sign * (size == distance)
    safe = jnp.where(distance == 0, 1, distance)
    return jnp.where(distance == 0, 0, sign * (size / safe) ** (order - 1))


def _cdist(x: Any, y: Any, order: float, _: Any = None) -> Any:
    return _length(x[..., :, None, :] - y[..., None, :, :], order)


def _cdist_backward(gradient: Any, x: Any, y: Any, order: float, distance: Any) -> Any:
    difference = x[..., :, None, :] - y[..., None, :, :]
    return (gradient[..., None] * _slope(difference, order, distance)).sum(-2)


def _pairs(count: int) -> tuple[Any, Any]:
    pairs = np.array(list(combinations(range(count), 2)), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _pdist(x: Any, order: float = 2) -> Any:
    one, other = _pairs(len(x))
    return _length(x[one] - x[other], order)


def _pdist_backward(gradient: Any, x: Any, order: float, distance: Any) -> Any:
    one, other = _pairs(len(x))
    slope = gradient[:, None] * _slope(x[one] - x[other], order, distance)
    return jnp.zeros_like(x).at[one].add(slope).at[other].add(-slope)


_DISTANCES: dict[str, Lowering] = {
    "_cdist_forward": _cdist,
    "_cdist_backward": _cdist_backward,
    "_pdist_forward": _pdist,
    "_pdist_backward": _pdist_backward,
}


# ── Fourier transforms ──────────────────────────────────────────────────────────────────────


def _scale(sizes: Sequence[int], normalization: int) -> float:
    """normalization: 0 none, 1 by √n, 2 by n."""
    return float(math.prod(sizes) ** -(0.0, 0.5, 1.0)[normalization])


def _c2c(x: Any, dims: Sequence[int], normalization: int, forward: bool) -> Any:
    sizes = [x.shape[dim] for dim in dims]
    for dim in dims:
        x = jnp.fft.fft(x, axis=dim) if forward else jnp.fft.ifft(x, axis=dim, norm="forward")
    return x * _scale(sizes, normalization)


def _r2c(x: Any, dims: Sequence[int], normalization: int, onesided: bool) -> Any:
    *others, last = dims
    sizes = [x.shape[dim] for dim in dims]
    x = (jnp.fft.rfft if onesided else jnp.fft.fft)(x, axis=last)
    return _c2c(x, others, 0, True) * _scale(sizes, normalization)


def _c2r(x: Any, dims: Sequence[int], normalization: int, size: int) -> Any:
    *others, last = dims
    sizes = [*(x.shape[dim] for dim in others), size]
    x = _c2c(x, others, 0, False)
    return jnp.fft.irfft(x, size, axis=last, norm="forward") * _scale(sizes, normalization)


_FOURIER: dict[str, Lowering] = {"_fft_c2c": _c2c, "_fft_r2c": _r2c, "_fft_c2r": _c2r}

LINEAR_ALGEBRA = {**_PRODUCTS, **_DECOMPOSITIONS, **_DISTANCES, **_FOURIER}
