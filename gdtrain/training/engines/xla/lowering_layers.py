"""Lowerings to jax of what layers are made of: products, convolution, pooling, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _addmm(bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Any:
    return beta * bias + alpha * (x @ y) if (alpha, beta) != (1, 1) else bias + x @ y


# ── convolution and pooling ─────────────────────────────────────────────────────────────────


def _convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _: Sequence[int],
    groups: int,
) -> Any:
    if transposed:
        raise NotImplementedError("a transposed convolution")
    result = lax.conv_general_dilated(
        x,
        weight,
        window_strides=stride,
        padding=[(p, p) for p in padding],
        rhs_dilation=dilation,
        feature_group_count=groups,
    )
    return result if bias is None else result + bias.reshape(1, -1, *[1] * (x.ndim - 2))


def _convolution_backward(
    gradient: Any, x: Any, weight: Any, _: Any, *settings: Any
) -> tuple[Any, Any, Any]:
    *settings_of, wanted = settings
    _, pull_back = jax.vjp(lambda x, w: _convolution(x, w, None, *settings_of), x, weight)
    of_x, of_weight = pull_back(gradient)
    of_bias = gradient.sum((0, *range(2, gradient.ndim))) if wanted[2] else None
    return of_x if wanted[0] else None, of_weight if wanted[1] else None, of_bias


def _pair(value: Sequence[int] | int, default: Sequence[int] = ()) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value) or list(default)
    return values[0], values[-1]


class _Windows:
    """The windows of a 2-dimensional pooling, place by place: [N, C, oh, ow] each."""

    def __init__(
        self,
        shape: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        if ceil_mode:
            raise NotImplementedError("pooling with ceil_mode")
        self.height, self.width = shape[-2:]
        self.kernel = _pair(kernel)
        self.stride = _pair(stride, self.kernel)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                shape[-2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]

    def cuts(self) -> Iterator[tuple[slice, slice]]:
        """Where each place of the kernel lies in the padded picture, for all windows."""
        for place in product(*map(range, self.kernel)):
            start = [i * d for i, d in zip(place, self.dilation, strict=True)]
            yield tuple(  # type: ignore[misc]
                slice(at, at + (size - 1) * s + 1, s)
                for at, size, s in zip(start, self.sizes, self.stride, strict=True)
            )

    def pad(self, x: Any, value: Any) -> Any:
        (top, left) = self.padding
        widths = [(0, 0)] * (x.ndim - 2) + [(top, top), (left, left)]
        return jnp.pad(x, widths, constant_values=value)

    def flat_places(self) -> Any:
        """The number of each value of the padded picture in the picture, [H, W]."""
        return self.pad(jnp.arange(self.height * self.width).reshape(self.height, -1), 0)


def _max_pool(x: Any, *settings: Any) -> tuple[Any, Any]:
    windows = _Windows(x.shape, *settings)
    padded, numbers = windows.pad(x, -jnp.inf), windows.flat_places()
    stacked = jnp.stack([padded[..., a, b] for a, b in windows.cuts()])
    places = jnp.stack([numbers[a, b] for a, b in windows.cuts()])
    best = jnp.argmax(stacked, axis=0)  # the first of equals, and NaN before any number
    grid = places.reshape(-1, *[1] * (x.ndim - 2), *windows.sizes)
    chosen = jnp.take_along_axis(jnp.broadcast_to(grid, stacked.shape), best[None], axis=0)[0]
    return stacked.max(axis=0), chosen


def _max_pool_backward(gradient: Any, x: Any, *settings: Any) -> Any:
    *settings_of, chosen = settings
    windows = _Windows(x.shape, *settings_of)
    numbers = windows.flat_places()
    result = windows.pad(jnp.zeros_like(x), 0)
    for a, b in windows.cuts():
        share = jnp.where(chosen == numbers[a, b], gradient, 0)
        result = result.at[..., a, b].add(share)
    (top, left) = windows.padding
    return result[..., top : top + windows.height, left : left + windows.width]


# ── batch normalisation ─────────────────────────────────────────────────────────────────────


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


LAYERS: dict[str, Callable[..., Any]] = {
    "_native_batch_norm_legit_functional": _batch_norm,
    **dict.fromkeys(("mm", "bmm"), lambda x, y: x @ y),
    "addmm": _addmm,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "max_pool2d_with_indices": _max_pool,
    "max_pool2d_with_indices_backward": _max_pool_backward,
}
