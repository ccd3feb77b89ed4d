"""Lowerings to jax of operators that move elements, or make tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

Lowering = Callable[..., Any]


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _transpose(x: Any, one: int, other: int) -> Any:
    return jnp.swapaxes(x, one, other) if x.ndim else x


def _t(x: Any) -> Any:
    return x.T


def _expand(x: Any, shape: Sequence[int], **_: Any) -> Any:
    lead = len(shape) - x.ndim
    sizes = [x.shape[i - lead] if size == -1 else size for i, size in enumerate(shape)]
    return jnp.broadcast_to(x, sizes)


def _squeeze(x: Any, dims: Any = None) -> Any:
    if not x.ndim:
        return x
    chosen = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return jnp.squeeze(x, tuple(d for d in chosen if x.shape[d] == 1))


def _cut(x: Any, dim: int, start: Any, stop: Any, step: int) -> tuple[slice, ...]:
    cut = [slice(None)] * x.ndim
    cut[dim] = slice(start, stop, step)
    return tuple(cut)


def _slice(x: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    return x[_cut(x, dim, start, stop, step)]


def _slice_scatter(
    x: Any, source: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Any:
    return x.at[_cut(x, dim, start, stop, step)].set(source)


def _slice_backward(
    gradient: Any, shape: Sequence[int], dim: int, start: int, stop: int, step: int
) -> Any:
    return _slice_scatter(jnp.zeros(shape, gradient.dtype), gradient, dim, start, stop, step)


def _select(x: Any, dim: int, index: int) -> Any:
    return lax.index_in_dim(x, index, dim, keepdims=False)


def _select_scatter(x: Any, source: Any, dim: int, index: int) -> Any:
    place = [slice(None)] * x.ndim
    place[dim] = index  # type: ignore[call-overload]
    return x.at[tuple(place)].set(source)


def _select_backward(gradient: Any, shape: Sequence[int], dim: int, index: int) -> Any:
    return _select_scatter(jnp.zeros(shape, gradient.dtype), gradient, dim, index)


def _split(x: Any, size: int | Sequence[int], dim: int = 0) -> list[Any]:
    length = x.shape[dim]
    sizes = size
    if isinstance(size, int):
        sizes = [min(size, length - at) for at in range(0, length, size)] if size else [0]
    ends = accumulate(sizes, initial=0)  # type: ignore[arg-type]
    return [lax.slice_in_dim(x, a, b, axis=dim) for a, b in pairwise(ends)]


def _constant_pad(x: Any, widths: Sequence[int], value: Any = 0) -> Any:
    """widths: before and after, of the last dimension first; negative ones cut."""
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    edges = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    return lax.pad(x, jnp.asarray(value, x.dtype), [(a, b, 0) for a, b in edges])


def _roll(x: Any, shifts: Any, dims: Any = ()) -> Any:
    dims = [dims] if isinstance(dims, int) else list(dims)
    return jnp.roll(x, tuple(shifts) if dims else shifts, tuple(dims) if dims else None)


def _diagonal_places(shape: Sequence[int], offset: int, one: int, other: int) -> Any:
    """The index of a diagonal's elements; the result's last dimension is along it."""
    rows, columns = shape[one], shape[other]
    length = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    along = np.arange(length)
    return along + max(0, -offset), along + max(0, offset)


def _diagonal(x: Any, offset: int = 0, one: int = 0, other: int = 1) -> Any:
    return jnp.diagonal(x, offset, one, other)


def _diagonal_scatter(x: Any, source: Any, offset: int = 0, one: int = 0, other: int = 1) -> Any:
    moved = jnp.moveaxis(x, (one, other), (-2, -1))
    rows, columns = _diagonal_places(x.shape, offset, one, other)
    return jnp.moveaxis(moved.at[..., rows, columns].set(source), (-2, -1), (one, other))


def _diagonal_backward(
    gradient: Any, shape: Sequence[int], offset: int, one: int, other: int
) -> Any:
    return _diagonal_scatter(jnp.zeros(shape, gradient.dtype), gradient, offset, one, other)


def _unfold(x: Any, dim: int, size: int, step: int) -> Any:
    """Windows along a dimension; what is in them becomes the last one."""
    if not x.ndim:
        return jnp.broadcast_to(x, (size,))
    dim %= x.ndim
    starts = np.arange(0, x.shape[dim] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + np.arange(size), axis=dim)
    return jnp.moveaxis(windows, dim + 1, -1)


def _unfold_backward(gradient: Any, shape: Sequence[int], dim: int, size: int, step: int) -> Any:
    if not shape:
        return gradient.sum()
    dim %= len(shape)
    places = np.arange(0, shape[dim] - size + 1, step)[:, None] + np.arange(size)
    windows = jnp.moveaxis(gradient, (dim, -1), (0, 1))
    rest = [length for axis, length in enumerate(shape) if axis != dim]
    total = jnp.zeros((shape[dim], *rest), gradient.dtype).at[places].add(windows)
    return jnp.moveaxis(total, 0, dim)


def _triangle(function: Lowering) -> Lowering:
    return lambda x, diagonal=0: function(x, diagonal)


# ── memory as it lies ───────────────────────────────────────────────────────────────────────


def _places_in(memory: torch.Tensor) -> Any:
    """For each place of a tensor's memory, the number of the element there; [storage]."""
    size, item = memory.untyped_storage().nbytes(), memory.element_size()
    numbers = np.zeros(size // item, np.int64)
    spots = _spots(memory.shape, memory.stride(), int(memory.storage_offset()))
    numbers[spots] = np.arange(memory.numel()).reshape(memory.shape)
    return numbers


def _spots(shape: Sequence[int], strides: Sequence[int], offset: int) -> Any:
    steps = zip(shape, strides, strict=True)
    grids = np.ix_(*[np.arange(size) * stride for size, stride in steps])
    return np.asarray(sum(grids, np.zeros((), np.int64)) + offset).reshape(tuple(shape))


def _as_strided(
    x: Any, shape: Sequence[int], strides: Sequence[int], offset: int | None = None, *, memory: Any
) -> Any:
    """memory: the tensor that PyTorch has for x, whose layout the strides are of."""
    offset = int(memory.storage_offset()) if offset is None else offset
    return jnp.ravel(x)[_places_in(memory)[_spots(shape, strides, offset)]]


def _as_strided_scatter(
    x: Any,
    source: Any,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int | None = None,
    *,
    memory: Any,
) -> Any:
    offset = memory.storage_offset() if offset is None else offset
    places = _places_in(memory)[_spots(shape, strides, offset)]
    return jnp.ravel(x).at[places].set(source).reshape(x.shape)


# ── new tensors ─────────────────────────────────────────────────────────────────────────────


def _arange(*bounds: Any, dtype: Any = None) -> Any:
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    return jnp.arange(start, stop, step, dtype)


def _iota(length: int, *, start: int, step: int, dtype: Any) -> Any:
    return start + step * jnp.arange(length, dtype=dtype)


def _linspace(start: Any, stop: Any, steps: int, dtype: Any = None) -> Any:
    return jnp.linspace(start, stop, steps, dtype=dtype)


def _full(shape: Sequence[int], value: Any, dtype: Any = None) -> Any:
    return jnp.full(shape, value, dtype)


def _zeros(shape: Sequence[int], *_: Any, dtype: Any = None) -> Any:
    return jnp.zeros(shape, dtype)


def _new_zeros(_: Any, shape: Sequence[int], *__: Any, dtype: Any = None) -> Any:
    return jnp.zeros(shape, dtype)


def _eye(rows: int, columns: int | None = None, dtype: Any = None) -> Any:
    return jnp.eye(rows, columns, dtype=dtype)


def _copy(x: Any, source: Any, *_: Any) -> Any:
    return jnp.broadcast_to(source, x.shape)


_VIEWS: dict[str, Lowering] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), lambda x, shape: x.reshape(shape)),
    **dict.fromkeys(("clone", "alias", "detach", "lift_fresh_copy", "view_of"), _same),
    **dict.fromkeys(("_to_copy", "contiguous", "_reshape_alias"), _same),  # results are cast anyway
    **dict.fromkeys(("convert_element_type", "device_put", "lift_fresh", "lift"), _same),
    "_reshape_alias": lambda x, shape, *_: x.reshape(shape),
    "permute": jnp.transpose,
    "transpose": _transpose,
    "t": _t,
    "expand": _expand,
    "squeeze": _squeeze,
    "unsqueeze": jnp.expand_dims,
    "select": _select,
    "select_scatter": _select_scatter,
    "select_backward": _select_backward,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "slice_backward": _slice_backward,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _split),
    "unsafe_split_with_sizes": _split,
    "unbind": lambda x, dim=0: list(jnp.moveaxis(x, dim, 0)),
    "diagonal": _diagonal,
    "diagonal_scatter": _diagonal_scatter,
    "diagonal_backward": _diagonal_backward,
    "unfold": _unfold,
    "unfold_backward": _unfold_backward,
    "as_strided": _as_strided,
    "as_strided_scatter": _as_strided_scatter,
}
_MOVES: dict[str, Lowering] = {
    "cat": lambda tensors, dim=0: jnp.concatenate(_filled(tensors), dim),
    "stack": lambda tensors, dim=0: jnp.stack(tensors, dim),
    "flip": lambda x, dims: jnp.flip(x, tuple(dims)),
    "roll": _roll,
    "repeat": lambda x, times: jnp.tile(x, times),
    "constant_pad_nd": _constant_pad,
    "tril": _triangle(jnp.tril),
    "triu": _triangle(jnp.triu),
}
_MAKING: dict[str, Lowering] = {
    "full": _full,
    "new_full": lambda _, shape, value, dtype=None: jnp.full(shape, value, dtype),
    "full_like": lambda x, value, dtype=None: jnp.full_like(x, value, dtype),
    "fill": jnp.full_like,
    **dict.fromkeys(("empty", "empty_permuted", "empty_strided", "zeros"), _zeros),
    "_efficientzerotensor": _zeros,
    **dict.fromkeys(("new_empty", "new_empty_strided", "new_zeros"), _new_zeros),
    **dict.fromkeys(("zeros_like", "empty_like"), lambda x, dtype=None: jnp.zeros_like(x, dtype)),
    "ones": lambda shape, dtype=None: jnp.ones(shape, dtype),
    "new_ones": lambda _, shape, dtype=None: jnp.ones(shape, dtype),
    "ones_like": lambda x, dtype=None: jnp.ones_like(x, dtype),
    "scalar_tensor": lambda value, dtype=None: jnp.asarray(value, dtype),
    "arange": _arange,
    "linspace": _linspace,
    "eye": _eye,
    "copy": _copy,
}


def _filled(tensors: Sequence[Any]) -> Sequence[Any]:
    """Without the empty vectors that PyTorch lets stand beside any shape."""
    return [x for x in tensors if x.shape != (0,)] or tensors


SHAPES = {**_VIEWS, **_MOVES, **_MAKING}

PRIMS: dict[str, Lowering] = {
    "transpose": jnp.transpose,
    "broadcast_in_dim": lambda x, shape, dims: lax.broadcast_in_dim(x, shape, tuple(dims)),
    "rev": lambda x, dims: jnp.flip(x, tuple(dims)),
    "iota": _iota,
    "copy_to": _copy,
    "copy_strided": _same,
    "collapse_view": lambda x, start, end: lax.collapse(x, start, end + 1),
    "split_dim": lambda x, dim, outer: x.reshape(
        *x.shape[:dim], outer, x.shape[dim] // outer, *x.shape[dim + 1 :]
    ),
    "slice": lambda x, start, stop, strides=None: lax.slice(x, start, stop, strides),
    "slice_in_dim": lambda x, start, stop, stride=1, axis=0: lax.slice_in_dim(
        x, start, stop, stride, axis
    ),
}
# Operators whose lowerings also take ``memory``, the tensor that PyTorch has for the first operand.
READS_MEMORY = (
    *("as_strided", "as_strided_scatter"),
    *("_linalg_det", "_linalg_slogdet", "_linalg_solve_ex"),
)
