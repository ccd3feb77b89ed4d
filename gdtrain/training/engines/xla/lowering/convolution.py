"""Lowerings to jax of convolutions, transposed ones among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _transposed(
    x: Any,
    weight: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """The gradient of a convolution by its input: one over x, its elements set apart.

    weight: [in, out / groups, …], as PyTorch has it.
    """
    channels, outputs, *kernel = weight.shape
    parts = weight.reshape(groups, channels // groups, outputs, *kernel)
    turned = jnp.swapaxes(parts, 1, 2).reshape(groups * outputs, channels // groups, *kernel)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    edges = zip(reach, padding, output_padding, strict=True)
    return lax.conv_general_dilated(
        x,
        jnp.flip(turned, tuple(range(2, turned.ndim))),
        window_strides=[1] * len(kernel),
        padding=[(r - p, r - p + more) for r, p, more in edges],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )


def _convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    space = x.ndim - 2
    stride, padding, dilation = (_each(value, space) for value in (stride, padding, dilation))
    if transposed:
        more = _each(output_padding, space)
        result = _transposed(x, weight, stride, padding, dilation, more, groups)
    else:
        result = lax.conv_general_dilated(
            x,
            weight,
            window_strides=stride,
            padding=[(p, p) for p in padding],
            rhs_dilation=dilation,
            feature_group_count=groups,
        )
    return result if bias is None else result + bias.reshape(1, -1, *[1] * space)


def _each(value: Sequence[int], count: int) -> Sequence[int]:
    return value if len(value) == count else [*value] * count


def _convolution_backward(
    gradient: Any, x: Any, weight: Any, _: Any, *settings: Any
) -> tuple[Any, Any, Any]:
    *settings_of, wanted = settings
    _, pull_back = jax.vjp(lambda x, w: _convolution(x, w, None, *settings_of), x, weight)
    of_x, of_weight = pull_back(gradient)
    of_bias = gradient.sum((0, *range(2, gradient.ndim))) if wanted[2] else None
    return of_x if wanted[0] else None, of_weight if wanted[1] else None, of_bias


CONVOLUTION: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
}
