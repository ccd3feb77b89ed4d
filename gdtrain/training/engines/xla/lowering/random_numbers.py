"""Lowerings to jax of operators that draw random numbers, each with a key of its own.

PyTorch's generator gives its numbers one after the other, so what a step draws depends on all that
was drawn before. Here a key is a pure function of the seed, the number of the step and the place
in the step; the numbers are of the distributions that PyTorch's are, and others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Lowering = Callable[..., Any]


def _float(dtype: Any) -> Any:
    return jnp.float32 if dtype is None else dtype


def _uniform(key: Any, shape: Sequence[int], dtype: Any = None) -> Any:
    return jax.random.uniform(key, tuple(shape), _float(dtype))


def _normal(key: Any, shape: Sequence[int], dtype: Any = None) -> Any:
    return jax.random.normal(key, tuple(shape), _float(dtype))


def _bernoulli(key: Any, x: Any, p: Any = None) -> Any:
    """Ones with probability p, of the shape of x; without p, x has the probabilities."""
    p = x if p is None else p
    return jax.random.uniform(key, x.shape, x.dtype) < p


def _dropout(key: Any, x: Any, p: float, train: bool | None) -> tuple[Any, Any]:
    if train is False or p == 0:
        return x, jnp.ones(x.shape, bool)
    kept = jax.random.uniform(key, x.shape, x.dtype) >= p
    return jnp.where(kept, x / (1 - p) if p < 1 else 0, 0), kept


def _rrelu(
    key: Any, x: Any, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> tuple[Any, Any]:
    if not training:
        return jnp.where(x >= 0, x, x * (lower + upper) / 2), noise
    slopes = jax.random.uniform(key, x.shape, x.dtype, lower, upper)
    slopes = jnp.where(x <= 0, slopes, 1)
    return x * slopes, slopes


def _whole(key: Any, shape: Sequence[int], low: int, high: int) -> Any:
    return jax.random.randint(key, tuple(shape), low, high, jnp.int64)


def _randint(key: Any, *arguments: Any, dtype: Any = None) -> Any:
    *bounds, shape = arguments
    low, high = (0, *bounds) if len(bounds) == 1 else bounds
    return _whole(key, shape, low, high)


def _randint_like(key: Any, x: Any, *bounds: Any, dtype: Any = None) -> Any:
    low, high = (0, *bounds) if len(bounds) == 1 else bounds
    return _whole(key, x.shape, low, high)


def _multinomial(key: Any, weights: Any, count: int, replacement: bool = False) -> Any:
    """Places by weight; without replacement by the largest log w + Gumbel's noise."""
    logits = jnp.log(weights)
    if replacement:
        shape = (count, *weights.shape[:-1])
        return jnp.moveaxis(jax.random.categorical(key, logits, shape=shape), 0, -1)
    noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    return jax.lax.top_k(noisy, count)[1]


def _any_normal(key: Any, mean: Any, std: Any = 1.0, shape: Any = None) -> Any:
    """Either of the two, or both, may be tensors."""
    tensors = [part for part in (mean, std) if hasattr(part, "dtype")]
    if shape is None:
        shape = jnp.broadcast_shapes(*(part.shape for part in tensors))
    dtype = tensors[0].dtype if tensors else jnp.float64
    return mean + std * jax.random.normal(key, tuple(shape), dtype)


def _prim_normal(key: Any, shape: Sequence[int], *, mean: Any, std: Any, dtype: Any) -> Any:
    return mean + std * _normal(key, shape, dtype)


def _prim_uniform(
    key: Any, shape: Sequence[int], *, low: Any, high: Any, dtype: Any, stride: Any = None
) -> Any:
    return low + (high - low) * _uniform(key, shape, dtype)


def _exponential(key: Any, x: Any, rate: float = 1.0) -> Any:
    return jax.random.exponential(key, x.shape, x.dtype) / rate


# Each takes a key first.
RANDOM: dict[str, Lowering] = {
    "rand": _uniform,
    "rand_like": lambda key, x, dtype=None: _uniform(key, x.shape, dtype or x.dtype),
    "randn": _normal,
    "randn_like": lambda key, x, dtype=None: _normal(key, x.shape, dtype or x.dtype),
    "randint": _randint,
    "randint_like": _randint_like,
    "randperm": lambda key, count, dtype=None: jax.random.permutation(key, count),
    "bernoulli": _bernoulli,
    "native_dropout": _dropout,
    "rrelu_with_noise_functional": _rrelu,
    "multinomial": _multinomial,
    "normal": _any_normal,
    "normal_functional": lambda key, x, mean=0.0, std=1.0: _any_normal(key, mean, std, x.shape),
    "exponential": _exponential,
    "poisson": lambda key, rate: jax.random.poisson(key, rate, dtype=jnp.int64),
    "prims.normal": _prim_normal,
    "prims.uniform": _prim_uniform,
}
