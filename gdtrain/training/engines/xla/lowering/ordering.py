"""Lowerings to jax of operators that compare elements: largest, smallest, sorted, ranked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

Lowering = Callable[..., Any]


def _sort(
    x: Any, dim: int = -1, descending: bool = False, stable: bool | None = None
) -> tuple[Any, Any]:
    """Values and places; NaN counts as the largest. Stable, which PyTorch need not be."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int64)
    places = jnp.argsort(x, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, places, axis=dim), places


def _topk(
    x: Any, k: int, dim: int = -1, largest: bool = True, is_sorted: bool = True
) -> tuple[Any, Any]:
    if not x.ndim:
        return x, jnp.zeros((), jnp.int64)
    if largest and jnp.issubdtype(x.dtype, jnp.floating):
        values, places = lax.top_k(jnp.moveaxis(x, dim, -1), k)
        return jnp.moveaxis(values, -1, dim), jnp.moveaxis(places, -1, dim)
    values, places = _sort(x, dim, largest)
    return tuple(lax.slice_in_dim(of, 0, k, axis=dim % x.ndim) for of in (values, places))  # type: ignore[return-value]


def _picked(x: Any, places: Any, dim: int, keepdim: bool) -> tuple[Any, Any]:
    """The elements at places, which have one element along a dimension."""
    values = jnp.take_along_axis(x, places, axis=dim)
    if keepdim:
        return values, places
    return jnp.squeeze(values, dim), jnp.squeeze(places, dim)


def _by_dimension(find: Lowering) -> Lowering:
    """What looks for one element along a dimension; ``find`` gives its place, kept."""

    def lowered(x: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        keepdim = options.pop("keepdim", False)
        if not x.ndim:
            return x, jnp.zeros((), jnp.int64)
        return _with_keepdim(find, x, arguments, options, keepdim)

    return lowered


def _with_keepdim(
    find: Lowering, x: Any, arguments: Any, options: Any, keepdim: bool
) -> tuple[Any, Any]:
    if arguments and isinstance(arguments[-1], bool):
        *arguments, keepdim = arguments
    places, dim = find(x, *arguments, **options)
    return _picked(x, places, dim, keepdim)


def _kth(x: Any, k: int, dim: int = -1) -> tuple[Any, int]:
    _, places = _sort(x, dim)
    return lax.slice_in_dim(places, k - 1, k, axis=dim % x.ndim), dim


def _median(x: Any, dim: int = -1) -> tuple[Any, int]:
    """The lower of the middle ones; the first NaN if there is one."""
    middle, _ = _kth(x, (x.shape[dim] + 1) // 2, dim)
    is_nan = jnp.isnan(x)
    first = jnp.argmax(is_nan, axis=dim, keepdims=True)
    return jnp.where(is_nan.any(axis=dim, keepdims=True), first, middle), dim


def _nanmedian(x: Any, dim: int = -1) -> tuple[Any, int]:
    _, places = _sort(x, dim)
    count = jnp.sum(~jnp.isnan(x), axis=dim, keepdims=True)
    return jnp.take_along_axis(places, jnp.maximum(count - 1, 0) // 2, axis=dim), dim


def _mode(x: Any, dim: int = -1) -> tuple[Any, int]:
    """The smallest of the most frequent values; the last place that has it."""
    rows = jnp.moveaxis(x, dim, -1)
    counts = (rows[..., :, None] == rows[..., None, :]).sum(-1)
    most = counts == counts.max(-1, keepdims=True)
    value = jnp.where(most, rows, rows.max(-1, keepdims=True)).min(-1, keepdims=True)
    places = jnp.where(rows == value, jnp.arange(rows.shape[-1]), -1).max(-1, keepdims=True)
    return jnp.moveaxis(places, -1, dim), dim


def _extreme(find: Lowering, of_all: Lowering, of_two: Lowering) -> Lowering:
    """max and min, by what they are given: all, another tensor, or a dimension."""
    along = _by_dimension(lambda x, dim: (find(x, axis=dim, keepdims=True), dim))

    def lowered(x: Any, *arguments: Any, **options: Any) -> Any:
        if not arguments and not options:
            return of_all(x)
        if arguments and hasattr(arguments[0], "dtype"):
            return of_two(x, arguments[0])
        return along(x, *arguments, **options)

    return lowered


def _arg(find: Lowering) -> Lowering:
    def lowered(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        return find(x, axis=dim, keepdims=keepdim) if x.ndim else jnp.zeros((), jnp.int64)

    return lowered


def _of_all(find: Lowering) -> Lowering:
    """A place found in all elements; the value there."""

    def lowered(x: Any) -> Any:
        flat = jnp.ravel(x)
        return flat[find(flat, 0)[0][0]]

    return lowered


def _aminmax(x: Any, dim: int | None = None, keepdim: bool = False) -> tuple[Any, Any]:
    axis = dim if x.ndim else None
    return x.min(axis=axis, keepdims=keepdim), x.max(axis=axis, keepdims=keepdim)


def _searchsorted(
    edges: Any, x: Any, right: bool = False, side: Any = None, sorter: Any = None, **_: Any
) -> Any:
    """How many of the sorted edges are below x, or not above it."""
    if sorter is not None:
        edges = jnp.take_along_axis(edges, sorter, axis=-1)
    kind = side or ("right" if right else "left")
    if edges.ndim == 1:
        return jnp.searchsorted(edges, x, side=kind)
    flat = edges.reshape(-1, edges.shape[-1]), x.reshape(-1, x.shape[-1])
    rows = [jnp.searchsorted(a, b, side=kind) for a, b in zip(*flat, strict=True)]
    return jnp.stack(rows).reshape(x.shape)


def _histc(x: Any, bins: int = 100, low: float = 0, high: float = 0) -> Any:
    """How many elements are in each bin between low and high, or from the least to the most."""
    flat = x.reshape(-1)
    bounds = (flat.min(), flat.max()) if low == high else (low, high)
    is_one = jnp.asarray(bounds[0] == bounds[1])
    least, most = (jnp.asarray(bound, x.dtype) for bound in bounds)
    least, most = jnp.where(is_one, least - 1, least), jnp.where(is_one, most + 1, most)
    is_counted = (flat >= least) & (flat <= most)
    places = jnp.floor((flat - least) * bins / (most - least)).astype(jnp.int64)
    places = jnp.where(is_counted, jnp.minimum(places, bins - 1), bins)
    return jnp.zeros(bins, x.dtype).at[places].add(1, mode="drop")


ORDERING: dict[str, Lowering] = {
    "sort": _sort,
    "topk": _topk,
    "kthvalue": _by_dimension(_kth),
    "median.dim": _by_dimension(_median),
    "nanmedian.dim": _by_dimension(_nanmedian),
    "median": _of_all(_median),
    "nanmedian": _of_all(_nanmedian),
    "mode": _by_dimension(_mode),
    "max": _extreme(jnp.argmax, jnp.max, jnp.maximum),
    "min": _extreme(jnp.argmin, jnp.min, jnp.minimum),
    "argmax": _arg(jnp.argmax),
    "argmin": _arg(jnp.argmin),
    "aminmax": _aminmax,
    "histc": _histc,
    "searchsorted": _searchsorted,
    "bucketize": lambda x, edges, right=False, **_: _searchsorted(edges, x, right),
}
