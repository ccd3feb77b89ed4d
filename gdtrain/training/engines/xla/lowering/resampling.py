"""Lowerings to jax of what reads pictures between their points: upsampling, grids, padding.

Resizing is linear in each dimension by itself, so it is a product with a matrix for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdtrain.training.engines.xla.lowering.pooling import along_each

Lowering = Callable[..., Any]
# Of Keys' cubic: PyTorch takes -0.75 where it interpolates, -0.5 where it also averages.
_CUBIC, _CUBIC_AVERAGING = -0.75, -0.5


def _nearest_places(size: int, count: int, scale: float | None, *, exact: bool) -> Any:
    """Which element each result is; PyTorch computes it in float32."""
    step = np.float32(size / count if scale is None else 1 / scale)
    at = (np.arange(count, dtype=np.float32) + np.float32(0.5 if exact else 0)) * step
    return np.minimum(np.floor(at).astype(np.int64), size - 1)


def _sources(size: int, count: int, align: bool, scale: float | None) -> Any:
    """Where between the elements each result lies, [count]."""
    if align:
        return np.arange(count) * ((size - 1) / (count - 1) if count > 1 else 0.0)
    step = size / count if scale is None else 1 / scale
    return (np.arange(count) + 0.5) * step - 0.5


def _spread(size: int, places: Any, weights: Any) -> Any:
    """The matrix that has the weights, [count, taps], at places that are moved to the edges."""
    matrix = np.zeros((len(places), size))
    rows = np.arange(len(places))[:, None]
    np.add.at(matrix, (rows, np.clip(places, 0, size - 1)), weights)
    return matrix


def _linear_matrix(size: int, count: int, align: bool, scale: float | None) -> Any:
    at = np.maximum(_sources(size, count, align, scale), 0)
    below = np.minimum(np.floor(at).astype(np.int64), size - 1)
    part = np.minimum(at - below, 1.0)
    return _spread(size, below[:, None] + np.arange(2), np.stack([1 - part, part], 1))


def _cubic(distance: Any, a: float) -> Any:
    """Keys' cubic convolution kernel (1981, eq. 4)."""
    t = abs(distance)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return (t <= 1) * near + ((t > 1) & (t < 2)) * far


def _cubic_matrix(size: int, count: int, align: bool, scale: float | None) -> Any:
    at = _sources(size, count, align, scale)
    below = np.floor(at).astype(np.int64)
    taps = np.arange(-1, 3)
    weights = _cubic((at - below)[:, None] - taps, _CUBIC)
    return _spread(size, below[:, None] + taps, weights)


def _averaging_matrix(
    kernel: Callable[[Any], Any], reach: float, size: int, count: int, align: bool, scale: Any
) -> Any:
    """Weights by a kernel that is as wide as a step, where there are fewer results."""
    if align:
        step = (size - 1) / (count - 1) if count > 1 else 0.0
    else:
        step = size / count if scale is None else 1 / scale
    wide = max(step, 1.0)
    matrix = np.zeros((count, size))
    for row in range(count):
        centre = step * (row + 0.5)
        start = max(int(centre - reach * wide + 0.5), 0)
        stop = min(int(centre + reach * wide + 0.5), size)
        weights = kernel((np.arange(start, stop) - centre + 0.5) / wide)
        matrix[row, start:stop] = weights / weights.sum()
    return matrix


def _triangle(distance: Any) -> Any:
    return np.maximum(0, 1 - abs(distance))


_MATRICES: dict[str, Callable[..., Any]] = {
    "linear": _linear_matrix,
    "cubic": _cubic_matrix,
    "linear_aa": lambda *size: _averaging_matrix(_triangle, 1, *size),
    "cubic_aa": lambda *size: _averaging_matrix(
        lambda distance: _cubic(distance, _CUBIC_AVERAGING), 2, *size
    ),
}


@cache
def _matrix(kind: str, size: int, count: int, align: bool, scale: float | None) -> Any:
    if kind in ("nearest", "exact"):
        places = _nearest_places(size, count, scale, exact=kind == "exact")
        return _spread(size, places[:, None], np.ones((count, 1)))
    return _MATRICES[kind](size, count, align, scale)


def _matrices(kind: str, old: Any, new: Any, settings: Any, dtype: Any) -> list[Any]:
    align, scales = False, settings
    if kind not in ("nearest", "exact"):
        align, *scales = settings
    scales = list(scales) or [None] * len(new)
    each = zip(old, new, scales, strict=True)
    return [jnp.asarray(_matrix(kind, s, n, align, scale), dtype) for s, n, scale in each]


def _resize(kind: str) -> Lowering:
    def lowered(x: Any, new: Sequence[int], *settings: Any) -> Any:
        old = x.shape[-len(new) :]
        if kind in ("nearest", "exact"):
            scales = list(settings) or [None] * len(new)
            for axis, count, scale in zip(range(2, x.ndim), new, scales, strict=True):
                places = _nearest_places(x.shape[axis], count, scale, exact=kind == "exact")
                x = jnp.take(x, places, axis=axis)
            return x
        return along_each(x, _matrices(kind, old, new, settings, x.dtype))

    return lowered


def _resize_backward(kind: str) -> Lowering:
    def lowered(gradient: Any, new: Sequence[int], shape: Sequence[int], *settings: Any) -> Any:
        matrices = _matrices(kind, shape[2:], new, settings, gradient.dtype)
        return along_each(gradient, [matrix.T for matrix in matrices])

    return lowered


_RESIZES = {
    **{f"upsample_nearest{n}d": "nearest" for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": "exact" for n in (1, 2, 3)},
    **{"upsample_linear1d": "linear", "upsample_bilinear2d": "linear"},
    **{"upsample_trilinear3d": "linear", "upsample_bicubic2d": "cubic"},
    **{"_upsample_bilinear2d_aa": "linear_aa", "_upsample_bicubic2d_aa": "cubic_aa"},
}


# ── padding by what is at the edges ─────────────────────────────────────────────────────────


def _edge_places(mode: str, size: int, before: int, after: int) -> Any:
    at = np.arange(-before, size + after)
    if mode == "reflect":
        at = np.abs(at)
        return (size - 1) - np.abs((size - 1) - at)
    return np.clip(at, 0, size - 1)


def _pad_by(mode: str) -> Lowering:
    def lowered(x: Any, widths: Sequence[int]) -> Any:
        for number, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
            axis = x.ndim - 1 - number
            x = jnp.take(x, _edge_places(mode, x.shape[axis], before, after), axis=axis)
        return x

    return lowered


def _pad_by_backward(mode: str) -> Lowering:
    pad = _pad_by(mode)

    def lowered(gradient: Any, x: Any, widths: Sequence[int]) -> Any:
        return jax.vjp(lambda x: pad(x, widths), x)[1](gradient)[0]

    return lowered


_PADDINGS: dict[str, Lowering] = {
    **{f"reflection_pad{n}d": _pad_by("reflect") for n in (1, 2, 3)},
    **{f"reflection_pad{n}d_backward": _pad_by_backward("reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d": _pad_by("edge") for n in (1, 2, 3)},
    **{f"replication_pad{n}d_backward": _pad_by_backward("edge") for n in (1, 2, 3)},
}


# ── grids ───────────────────────────────────────────────────────────────────────────────────


def _reflected(at: Any, low: float, high: float) -> Any:
    """Folded back at both ends; low and high: where, times two."""
    if low == high:
        return jnp.zeros_like(at)
    span = (high - low) / 2
    moved = jnp.abs(at - low / 2)
    turns = jnp.floor(moved / span)
    rest = moved - turns * span
    return jnp.where(turns % 2 == 0, rest, span - rest) + low / 2


def _inside(at: Any, size: int, padding: int, align: bool) -> Any:
    """padding: 0 zeros, 1 border, 2 reflection."""
    if padding == 2:
        low, high = (0, 2 * (size - 1)) if align else (-1, 2 * size - 1)
        at = _reflected(at, low, high)
    return jnp.clip(at, 0, size - 1) if padding else at


def _at_points(x: Any, places: Sequence[Any]) -> Any:
    """x [N, C, …] at whole places [N, …], zero outside: [N, C, …]."""
    valid = jnp.ones((), bool)
    safe = []
    for place, size in zip(places, x.shape[2:], strict=True):
        valid = valid & (place >= 0) & (place < size)
        safe.append(jnp.clip(place, 0, size - 1).astype(jnp.int64))
    samples = jnp.arange(x.shape[0]).reshape(-1, *[1] * (safe[0].ndim - 1))
    read = jnp.moveaxis(x, 1, -1)[(samples, *safe)]
    return jnp.moveaxis(jnp.where(valid[..., None], read, 0), -1, 1)


def _grid_sample(x: Any, grid: Any, mode: int, padding: int, align: bool) -> Any:
    """mode: 0 linear, 1 nearest, 2 cubic. grid: [N, …, space], the last dimension first."""
    sizes = x.shape[2:]
    points = []
    for number, size in enumerate(sizes):
        at = grid[..., len(sizes) - 1 - number]
        at = (at + 1) / 2 * (size - 1) if align else ((at + 1) * size - 1) / 2
        points.append(at if mode == 2 else _inside(at, size, padding, align))
    if mode == 1:
        return _at_points(x, [jnp.round(at) for at in points])
    taps = (0, 1) if mode == 0 else (-1, 0, 1, 2)
    below = [jnp.floor(at) for at in points]
    result = jnp.zeros((), x.dtype)
    for offsets in product(taps, repeat=len(sizes)):
        along = list(zip(points, below, offsets, strict=True))
        if mode == 0:
            weights = [1 - jnp.abs(at - (low + offset)) for at, low, offset in along]
            places = [low + offset for _, low, offset in along]
        else:
            weights = [_cubic(at - low - offset, _CUBIC) for at, low, offset in along]
            moved = zip(along, sizes, strict=True)
            places = [_inside(lo + off, size, padding, align) for (_, lo, off), size in moved]
        result = result + _at_points(x, places) * prod(weights)[:, None]  # type: ignore[index]
    return result


def _grid_sample_backward(
    gradient: Any, x: Any, grid: Any, mode: int, padding: int, align: bool, wanted: Sequence[bool]
) -> tuple[Any, Any]:
    _, pull_back = jax.vjp(lambda x, g: _grid_sample(x, g, mode, padding, align), x, grid)
    of_x, of_grid = pull_back(gradient)
    return of_x if wanted[0] else None, of_grid if wanted[1] else None


RESAMPLING: dict[str, Lowering] = {
    **{name: _resize(kind) for name, kind in _RESIZES.items()},
    **{f"{name}_backward": _resize_backward(kind) for name, kind in _RESIZES.items()},
    **_PADDINGS,
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), _grid_sample),
    **{f"grid_sampler_{n}d_backward": _grid_sample_backward for n in (2, 3)},
}
