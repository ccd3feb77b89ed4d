"""Lowerings to jax of operators that compute each element by itself."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special

Lowering = Callable[..., Any]
# A power by as small a whole number is a product.
_SMALL_POWERS = (2.0, 3.0, 4.0)


def _add(x: Any, y: Any, alpha: float = 1) -> Any:
    return x + (y if alpha == 1 else alpha * y)


def _sub(x: Any, y: Any, alpha: float = 1) -> Any:
    return x - (y if alpha == 1 else alpha * y)


def _div(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    if rounding_mode == "trunc":
        return _truncated(x, y)
    return x / y


def _truncated(x: Any, y: Any) -> Any:
    whole = jnp.issubdtype(jnp.result_type(x, y), jnp.integer)
    return lax.div(*jnp.broadcast_arrays(*_alike(x, y))) if whole else jnp.trunc(x / y)


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    dtype = jnp.result_type(x, y)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def _pow(x: Any, y: Any) -> Any:
    return x ** int(y) if isinstance(y, float) and y in _SMALL_POWERS else jnp.power(x, y)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    return jnp.clip(x, low, high)


def _nan_to_num(x: Any, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    return jnp.nan_to_num(x, nan=nan or 0.0, posinf=posinf, neginf=neginf)


def _round(x: Any, decimals: int = 0) -> Any:
    return jnp.round(x, decimals)  # half to even, as PyTorch


def _sign(x: Any) -> Any:
    return jnp.sign(x)  # of complex numbers x / |x|


def _elu(x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    below = scale * alpha * jnp.expm1(jnp.minimum(x, 0) * input_scale)
    return jnp.where(x > 0, scale * x, below)


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return jax.nn.gelu(x, approximate=True)
    return 0.5 * x * (1 + lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


def _hardsigmoid(x: Any) -> Any:
    return jnp.clip(x + 3, 0, 6) / 6


def _hardsigmoid_backward(gradient: Any, x: Any) -> Any:
    # PyTorch takes 1/6 in float32, whatever the dtype of x is.
    return jnp.where((x > -3) & (x < 3), gradient * float(np.float32(1 / 6)), 0)


def _outside(gradient: Any, x: Any, bound: float) -> Any:
    """The gradient where |x| > bound."""
    return jnp.where((x >= -bound) & (x <= bound), 0, gradient)


def _copysign(x: Any, y: Any) -> Any:
    return jnp.where(jnp.signbit(jnp.asarray(y, x.dtype)), -jnp.abs(x), jnp.abs(x))


def _xlogy(x: Any, y: Any) -> Any:
    safe = jnp.where(x == 0, 1, y)
    return jnp.where(jnp.isnan(y), jnp.nan, jnp.where(x == 0, 0, x * jnp.log(safe)))


def _polygamma(order: int, x: Any) -> Any:
    if order == 0:
        return special.digamma(x)
    if order == 1:
        return _trigamma(x)
    return (-1) ** (order + 1) * math.factorial(order) * _zeta(float(order + 1), x)


def _zeta(s: Any, x: Any) -> Any:
    """Σ (x + k)⁻ˢ. jax's is not exact below 0, so the first terms stand before it."""
    first = sum(jnp.power(x + k, -s) for k in range(_TERMS))
    return first + special.zeta(jnp.asarray(s, jnp.result_type(x)), x + _TERMS)


_TERMS = 16


def _trigamma(x: Any) -> Any:
    """ψ′(x), by the series that PyTorch has, which is right to 1e-9.

    For x < ½ by reflection; else Σ 1/(x + k)² over six terms, and the asymptotic series behind.
    """
    reflects = x < 0.5
    y = jnp.where(reflects, 1 - x, x)
    total = jnp.zeros_like(y)
    for _ in range(6):
        total = total + 1 / (y * y)
        y = y + 1
    square = 1 / (y * y)
    series = 1 + 1 / (2 * y) + square * (1 / 6 - square * (1 / 30 - square * (1 / 42)))
    total = total + series / y
    sine = jnp.pi / jnp.sin(jnp.pi * x)
    return jnp.where(reflects, sine * sine - total, total)


def _erfcx(x: Any) -> Any:
    """exp(x²) erfc(x); from 5 on by its continued fraction, as the factors leave the range."""
    far = jnp.maximum(x, 5)
    fraction = far
    for k in range(30, 0, -1):
        fraction = far + k / 2 / fraction
    near = jnp.minimum(x, 5)
    return jnp.where(x < 5, jnp.exp(near * near) * lax.erfc(near), jnp.pi**-0.5 / fraction)


def _log_ndtr(x: Any) -> Any:
    z = x * 0.5**0.5
    below = jnp.log(_erfcx(-z) / 2) - z * z
    return jnp.where(x < 1, below, jnp.log1p(-lax.erfc(z) / 2))


def _frexp(x: Any) -> tuple[Any, Any]:
    return jnp.frexp(x)


_UNARY: dict[str, Lowering] = {
    **{name: getattr(jnp, name) for name in ("abs", "exp", "exp2", "expm1", "log", "log2")},
    **{name: getattr(jnp, name) for name in ("log10", "log1p", "sqrt", "floor", "ceil", "trunc")},
    **{name: getattr(jnp, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{name: getattr(jnp, f"arc{name[1:]}") for name in ("asin", "acos", "atan")},
    **{name: getattr(jnp, f"arc{name[1:]}") for name in ("asinh", "acosh", "atanh")},
    **{name: getattr(jnp, name) for name in ("isnan", "isinf", "isfinite", "isposinf", "isneginf")},
    **{name: getattr(jnp, name) for name in ("signbit", "logical_not", "positive", "square")},
    **dict.fromkeys(("sign", "sgn"), _sign),
    "neg": operator.neg,
    "round": _round,
    "frac": lambda x: x - jnp.trunc(x),
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lax.rsqrt,
    "cbrt": jnp.cbrt,
    "erf": lax.erf,
    "erfc": lax.erfc,
    **dict.fromkeys(("erfinv", "erf_inv"), lax.erf_inv),
    "lgamma": lax.lgamma,
    "digamma": lax.digamma,
    **dict.fromkeys(("prims.erfcx", "special_erfcx"), _erfcx),
    "special_log_ndtr": _log_ndtr,
    "polygamma": _polygamma,
    **dict.fromkeys(("i0", "bessel_i0", "special_i0", "special_modified_bessel_i0"), special.i0),
    **dict.fromkeys(("bessel_i0e", "special_i0e"), special.i0e),
    **dict.fromkeys(("bessel_i1", "special_i1", "special_modified_bessel_i1"), special.i1),
    **dict.fromkeys(("bessel_i1e", "special_i1e"), special.i1e),
    **dict.fromkeys(("ndtri", "special_ndtri"), special.ndtri),
    "nan_to_num": _nan_to_num,
    "bitwise_not": operator.invert,
    "frexp": _frexp,
}
_ACTIVATIONS: dict[str, Lowering] = {
    "sigmoid": jax.nn.sigmoid,
    "relu": lambda x: jnp.maximum(x, 0),
    "elu": _elu,
    "gelu": _gelu,
    "hardtanh": lambda x, low=-1, high=1: jnp.clip(x, low, high),
    "leaky_relu": lambda x, slope=0.01: jnp.where(x > 0, x, slope * x),
    "hardsigmoid": _hardsigmoid,
    "hardsigmoid_backward": _hardsigmoid_backward,
    **dict.fromkeys(("hardshrink_backward", "softshrink_backward"), _outside),
}
_BINARY: dict[str, Lowering] = {
    **{name: getattr(operator, name) for name in ("mul", "eq", "ne", "lt", "le", "gt", "ge")},
    "add": _add,
    "sub": _sub,
    "rsub": lambda x, y, alpha=1: _sub(y, x, alpha),
    "div": _div,
    "pow": _pow,
    **{name: getattr(jnp, name) for name in ("maximum", "minimum", "fmax", "fmin", "hypot")},
    **{name: getattr(jnp, name) for name in ("logaddexp", "logaddexp2", "nextafter", "gcd")},
    **{name: getattr(jnp, name) for name in ("remainder", "fmod", "floor_divide", "logical_and")},
    **{name: getattr(jnp, name) for name in ("logical_or", "logical_xor", "lcm", "heaviside")},
    "atan2": jnp.arctan2,
    "copysign": _copysign,
    "xlogy": _xlogy,
    **dict.fromkeys(("zeta", "special_zeta"), _zeta),
    "igamma": special.gammainc,
    "igammac": special.gammaincc,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    **dict.fromkeys(("bitwise_left_shift", "__lshift__", "shift_left"), jnp.left_shift),
    **dict.fromkeys(
        ("bitwise_right_shift", "__rshift__", "shift_right_arithmetic"), jnp.right_shift
    ),
}
_SEVERAL: dict[str, Lowering] = {
    "where": jnp.where,
    "clamp": _clamp,
    "clamp_min": jnp.maximum,
    "clamp_max": jnp.minimum,
    "lerp": lambda x, y, weight: x + weight * (y - x),
    "addcmul": lambda x, y, z, value=1: x + value * y * z,
    "addcdiv": lambda x, y, z, value=1: x + value * y / z,
}


# ── complex numbers ─────────────────────────────────────────────────────────────────────────


def _as_complex(x: Any) -> Any:
    return lax.complex(x[..., 0], x[..., 1])


def _as_real(x: Any) -> Any:
    return jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)


_COMPLEX: dict[str, Lowering] = {
    **dict.fromkeys(("_conj", "conj_physical", "_conj_physical", "conj"), jnp.conj),
    "_neg_view": operator.neg,
    **dict.fromkeys(("resolve_conj", "resolve_neg"), lambda x: x),
    "real": jnp.real,
    "imag": jnp.imag,
    "view_as_complex": _as_complex,
    "view_as_real": _as_real,
    "complex": lambda x, y: lax.complex(*jnp.broadcast_arrays(x, y)),
    "polar": lambda size, angle: size * jnp.exp(1j * angle),
    "angle": jnp.angle,
}

POINTWISE = {**_UNARY, **_ACTIVATIONS, **_BINARY, **_SEVERAL, **_COMPLEX}
