"""Lowerings to jax of operators that reduce, normalise or accumulate along dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Lowering = Callable[..., Any]


def _axes(dims: Any) -> Any:
    """A reduction's dimensions as jax wants them; none given means all."""
    if dims is None or isinstance(dims, int):
        return dims
    return tuple(dims) or None


def _reduce(function: Lowering) -> Lowering:
    def lowered(x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        if not jnp.ndim(x):
            dims = None
        options = {} if dtype is None else {"dtype": dtype}
        return function(x, axis=_axes(dims), keepdims=keepdim, **options)

    return lowered


def _of_some(function: Lowering) -> Lowering:
    """A reduction that has no option for the dtype."""

    def lowered(x: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
        return function(x, axis=_axes(dims) if jnp.ndim(x) else None, keepdims=keepdim)

    return lowered


def _norm(x: Any, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """(Σ |x|ᵖ)^(1/p), with its limits at 0 and ±∞."""
    axes, size = _axes(dims) if x.ndim else None, jnp.abs(x)
    if order == 2:
        return jnp.sqrt(jnp.sum(size * size, axis=axes, keepdims=keepdim))
    if order == 1:
        return jnp.sum(size, axis=axes, keepdims=keepdim)
    if order == 0:
        return jnp.sum(x != 0, axis=axes, keepdims=keepdim)
    if math.isinf(order):
        function = jnp.max if order > 0 else jnp.min
        return function(size, axis=axes, keepdims=keepdim)
    return jnp.sum(size**order, axis=axes, keepdims=keepdim) ** (1 / order)


# ── spread ──────────────────────────────────────────────────────────────────────────────────


def _var(x: Any, dims: Any = None, correction: Any = None, keepdim: bool = False, **_: Any) -> Any:
    axes = _axes(dims) if x.ndim else None
    mean = jnp.mean(x, axis=axes, keepdims=True)
    squares = jnp.square(jnp.abs(x - mean)).sum(axis=axes, keepdims=keepdim)
    count = x.size // max(1, mean.size)
    left = count - (1 if correction is None else correction)
    return squares / max(left, 0) if left > 0 else squares / jnp.zeros_like(squares)


def _mean(x: Any, dims: Any, keepdim: bool) -> Any:
    return jnp.mean(x, axis=_axes(dims) if x.ndim else None, keepdims=keepdim)


def _std(x: Any, dims: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    return jnp.sqrt(_var(x, dims, correction, keepdim))


def _var_mean(
    x: Any, dims: Any = None, correction: Any = None, keepdim: bool = False
) -> tuple[Any, Any]:
    return _var(x, dims, correction, keepdim), _mean(x, dims, keepdim)


def _std_mean(
    x: Any, dims: Any = None, correction: Any = None, keepdim: bool = False
) -> tuple[Any, Any]:
    return _std(x, dims, correction, keepdim), _mean(x, dims, keepdim)


# ── normalisation ───────────────────────────────────────────────────────────────────────────


def _softmax(function: Lowering) -> Lowering:
    return lambda x, dim, _: function(x, axis=dim) if x.ndim else function(x[None], axis=0)[0]


def _batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Any, Any, Any, Any, Any]:
    """Output, mean and 1/σ of the batch, and the new running mean and variance."""
    axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    if training:
        mean, variance = x.mean(axes), x.var(axes)
        count = x.size // x.shape[1]
        unbiased = variance * (count / (count - 1))
        running_mean = momentum * mean + (1 - momentum) * running_mean
        running_var = momentum * unbiased + (1 - momentum) * running_var
    else:
        mean, variance = running_mean, running_var
    scale = lax.rsqrt(variance + eps)
    result = (x - mean.reshape(shape)) * scale.reshape(shape)
    result = result if weight is None else result * weight.reshape(shape)
    result = result if bias is None else result + bias.reshape(shape)
    return result, mean, scale, running_mean, running_var


def _weight_norm(v: Any, g: Any, dim: int = 0) -> tuple[Any, Any]:
    """g v / ‖v‖, and the norms over all dimensions but one."""
    axes = tuple(axis for axis in range(v.ndim) if axis != dim % v.ndim)
    norms = jnp.sqrt(jnp.sum(v * v, axis=axes, keepdims=True))
    return v * (g / norms), norms


def _weight_norm_backward(gradient: Any, v: Any, g: Any, _: Any, dim: int) -> tuple[Any, Any]:
    _, pull_back = jax.vjp(lambda v, g: _weight_norm(v, g, dim)[0], v, g)
    of_v, of_g = pull_back(gradient)
    return of_v, of_g


# ── along a dimension, from its start ───────────────────────────────────────────────────────


def _cumulative(function: Lowering) -> Lowering:
    return lambda x, dim, dtype=None: (
        function(x if dtype is None else x.astype(dtype), axis=dim) if jnp.ndim(x) else x
    )


def _running(is_better: Lowering) -> Lowering:
    """The best so far and where it is: the last of equals; NaN is best of all."""

    def pick(one: Any, other: Any) -> Any:
        takes = is_better(other[0], one[0]) | jnp.isnan(other[0])
        return tuple(jnp.where(takes, b, a) for a, b in zip(one, other, strict=True))

    def lowered(x: Any, dim: int) -> tuple[Any, Any]:
        if not x.ndim:
            return x, jnp.zeros((), jnp.int64)
        places = lax.broadcasted_iota(jnp.int64, x.shape, dim % x.ndim)
        values, where = lax.associative_scan(pick, (x, places), axis=dim % x.ndim)
        return values, where

    return lowered


def _count_nonzero(x: Any, dims: Any = None) -> Any:
    return jnp.sum(x != 0, axis=_axes(dims) if x.ndim else None)


def _logcumsumexp(x: Any, dim: int) -> Any:
    return lax.cumlogsumexp(x, axis=dim % x.ndim) if x.ndim else x


def _trace(x: Any) -> Any:
    return jnp.trace(x)


_REDUCTIONS: dict[str, Lowering] = {
    **{name: _reduce(getattr(jnp, name)) for name in ("sum", "mean", "prod")},
    **{name: _of_some(getattr(jnp, name)) for name in ("any", "all", "amax", "amin", "nansum")},
    **dict.fromkeys(("linalg_vector_norm", "norm"), _norm),
    "logsumexp": _of_some(jax.nn.logsumexp),
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    "count_nonzero": _count_nonzero,
    "trace": _trace,
}
_NORMALISERS: dict[str, Lowering] = {
    "_softmax": _softmax(jax.nn.softmax),
    "_log_softmax": _softmax(jax.nn.log_softmax),
    "_native_batch_norm_legit_functional": _batch_norm,
    "_weight_norm_interface": _weight_norm,
    "_weight_norm_interface_backward": _weight_norm_backward,
}
_RUNNING: dict[str, Lowering] = {
    "cumsum": _cumulative(jnp.cumsum),
    "cumprod": _cumulative(jnp.cumprod),
    "logcumsumexp": _logcumsumexp,
    "cummax": _running(lambda new, old: new >= old),
    "cummin": _running(lambda new, old: new <= old),
}
REDUCTIONS = {**_REDUCTIONS, **_NORMALISERS, **_RUNNING}


def _prim_var(x: Any, dims: Sequence[int], correction: float = 1, **_: Any) -> Any:
    return _var(x, dims, correction)


def _prim(function: Lowering) -> Lowering:
    return lambda x, dims=None, **_: function(x, axis=None if dims is None else tuple(dims))


PRIMS: dict[str, Lowering] = {
    **{name: _prim(getattr(jnp, name)) for name in ("sum", "prod", "amax", "amin")},
    "var": _prim_var,
}
