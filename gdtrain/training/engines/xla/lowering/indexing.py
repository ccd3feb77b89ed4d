"""Lowerings to jax of operators that read or write where indices say.

PyTorch raises an error for an index out of range. A program can't: what it reads there is NaN,
so that the loss is not finite, and the update is not made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdtrain.training.engines.engine import EngineError

Lowering = Callable[..., Any]


def _read(x: Any, place: Any) -> Any:
    return x.at[place].get(mode="fill")  # NaN, or the smallest whole number


def _index(x: Any, indices: Sequence[Any]) -> Any:
    return _read(x, tuple(slice(None) if i is None else i for i in indices))


def _index_put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    if any(i is not None and i.dtype == bool for i in indices):
        chosen, values = _masked(x, indices, values)
        return jnp.where(chosen, x + values if accumulate else values, x)
    place = x.at[tuple(slice(None) if i is None else i for i in indices)]
    return place.add(values) if accumulate else place.set(values)


def _masked(x: Any, indices: Sequence[Any], values: Any) -> tuple[Any, Any]:
    """A mask among the indices as one that fits x, and what is to be put where it is True.

    Raises EngineError for a value for each True, whose number only a run can tell.
    """
    given = [(number, index) for number, index in enumerate(indices) if index is not None]
    first, mask = given[0]
    after = x.ndim - first - mask.ndim  # dimensions behind those of the mask
    along = values.ndim - after - 1  # the values' dimension along the Trues, if there is one
    if len(given) > 1 or (along >= 0 and values.shape[along] != 1):
        raise EngineError(
            "what is put by a mask has a value for each True, or the mask stands beside other "
            "indices: how many there are is known only at run time; use torch.where"
        )
    if along >= 0:
        shape = values.shape
        values = values.reshape(*shape[:along], *[1] * mask.ndim, *shape[along + 1 :])
    return mask.reshape(*mask.shape, *[1] * after), values


def _take(x: Any, index: Any) -> Any:
    return _read(jnp.ravel(x), index)


def _put(x: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    place = jnp.ravel(x).at[index.reshape(-1)]
    source = source.reshape(-1)
    return (place.add(source) if accumulate else place.set(source)).reshape(x.shape)


def _along(dim: int, index: Any) -> Any:
    """The places that an index names along a dimension, as jax wants them."""
    grid = list(jnp.indices(index.shape, sparse=True))
    grid[dim] = index
    return tuple(grid)


def _gather(x: Any, dim: int, index: Any, **_: Any) -> Any:
    if not x.ndim:
        return jnp.broadcast_to(x, index.shape)
    if not index.ndim:
        return _gather(x, dim, index[None])[0]
    return _read(x, _along(dim, index))


def _rows(x: Any, dim: int, index: Any) -> Any:
    """The place of whole rows along a dimension."""
    return (*[slice(None)] * (dim % x.ndim), index)


def _index_select(x: Any, dim: int, index: Any) -> Any:
    return _read(x, _rows(x, dim, jnp.atleast_1d(index))) if x.ndim else x


def _index_add(x: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Any:
    if not x.ndim:
        return x + alpha * source.sum()
    return x.at[_rows(x, dim, jnp.atleast_1d(index))].add(alpha * source)


def _index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    if not x.ndim:
        return source.reshape(())
    return x.at[_rows(x, dim, jnp.atleast_1d(index))].set(source)


def _index_fill(x: Any, dim: int, index: Any, value: Any) -> Any:
    if not x.ndim:
        return jnp.full_like(x, value)
    return x.at[_rows(x, dim, jnp.atleast_1d(index))].set(value)


def _scattered(write: Callable[[Any, Any], Any]) -> Lowering:
    """Write ``values`` to the places that an index names along a dimension."""

    def lowered(x: Any, dim: int, index: Any, values: Any, reduce: str | None = None) -> Any:
        how = {None: write, "add": _WRITES["sum"], "multiply": _WRITES["prod"]}[reduce]
        if not x.ndim:
            return lowered(x[None], 0, jnp.atleast_1d(index), values, reduce)[0]
        index = jnp.atleast_1d(index)
        values = jnp.asarray(values, x.dtype)
        if values.ndim:
            values = values[tuple(slice(size) for size in index.shape)]
        return how(x.at[_along(dim, index)], values)

    return lowered


_WRITES: dict[str, Callable[[Any, Any], Any]] = {
    "set": lambda place, values: place.set(values),
    "sum": lambda place, values: place.add(values),
    "prod": lambda place, values: place.multiply(values),
    "amax": lambda place, values: place.max(values),
    "amin": lambda place, values: place.min(values),
}
_WRITES["mean"] = _WRITES["sum"]


def _neutral(reduce: str, dtype: Any) -> Any:
    """What changes nothing when it is reduced with another number."""
    if reduce in ("sum", "mean", "prod"):
        return int(reduce == "prod")
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.inf if reduce == "amin" else -jnp.inf
    if dtype == jnp.bool_:
        return reduce == "amin"
    limits = np.iinfo(dtype)
    return limits.max if reduce == "amin" else limits.min


def _reduced(x: Any, place: Any, source: Any, reduce: str, include_self: bool) -> Any:
    written = jnp.zeros(x.shape, jnp.int64).at[place].add(1)
    base = x if include_self else jnp.where(written > 0, _neutral(reduce, x.dtype), x)
    result = _WRITES[reduce](base.at[place], source)
    if reduce != "mean":
        return result
    counts = jnp.maximum(written + int(include_self), 1)
    whole = jnp.issubdtype(x.dtype, jnp.integer)
    mean = jnp.floor_divide(result, counts) if whole else result / counts
    return jnp.where(written > 0, mean, x)


def _scatter_reduce(
    x: Any, dim: int, index: Any, source: Any, reduce: str, include_self: bool = True
) -> Any:
    if not x.ndim:
        index, source = jnp.atleast_1d(index), jnp.atleast_1d(source)
        return _scatter_reduce(x[None], 0, index, source, reduce, include_self)[0]
    source = source[tuple(slice(size) for size in index.shape)]
    return _reduced(x, _along(dim, index), source, reduce, include_self)


def _index_reduce(
    x: Any, dim: int, index: Any, source: Any, reduce: str, include_self: bool = True
) -> Any:
    if not x.ndim:
        index, source = jnp.atleast_1d(index), jnp.atleast_1d(source)
        return _index_reduce(x[None], 0, index, source, reduce, include_self)[0]
    return _reduced(x, _rows(x, dim, index), source, reduce, include_self)


def _repeat_interleave(repeats: Any, output_size: int) -> Any:
    """Each number as often as is said; one past the last where that makes another size."""
    numbers = jnp.repeat(jnp.arange(len(repeats)), repeats, total_repeat_length=output_size)
    return jnp.where(repeats.sum() == output_size, numbers, len(repeats))


def _nonzero_static(x: Any, size: int, fill_value: int = -1) -> Any:
    return jnp.stack(jnp.nonzero(x, size=size, fill_value=fill_value), axis=1)


# ── where a mask says ───────────────────────────────────────────────────────────────────────


def _masked_scatter(x: Any, mask: Any, source: Any) -> Any:
    """The source's elements, one after the other, where the mask says."""
    x, mask = jnp.broadcast_arrays(x, mask)
    numbers = jnp.cumsum(mask.reshape(-1)) - 1
    taken = _read(jnp.ravel(source), numbers).reshape(x.shape)
    return jnp.where(mask, taken, x)


def _masked_scatter_backward(gradient: Any, mask: Any, sizes: Sequence[int]) -> Any:
    gradient, mask = jnp.broadcast_arrays(gradient, mask)
    flat = mask.reshape(-1)
    count = 1
    for size in sizes:
        count *= size
    places = jnp.where(flat, jnp.cumsum(flat) - 1, count)
    result = jnp.zeros(count, gradient.dtype).at[places].set(gradient.reshape(-1), mode="drop")
    return result.reshape(tuple(sizes))


# ── tables of vectors ───────────────────────────────────────────────────────────────────────


def _embedding(weight: Any, index: Any, *_: Any) -> Any:
    return _read(weight, index)


def _embedding_renorm(weight: Any, index: Any, most: float, order: float) -> Any:
    """Scale the rows that are named to a norm of at most ``most``."""
    norms = jnp.linalg.norm(weight, order, axis=1, keepdims=True)
    named = jnp.zeros((len(weight), 1), bool).at[index.reshape(-1)].set(True)
    return jnp.where(named & (norms > most), weight * (most / (norms + 1e-7)), weight)


class _Bags:
    """Which bag each index belongs to, and what of it counts."""

    def __init__(self, index: Any, offsets: Any, bags: int, padding: int) -> None:
        self.count = bags
        self.of = jnp.searchsorted(offsets, jnp.arange(len(index)), side="right") - 1
        self.counted = (index != padding) & (self.of < bags)
        self.sizes = self.sum(self.counted.astype(jnp.int64))

    def sum(self, rows: Any) -> Any:
        """The sum of each bag's rows."""
        return jax.ops.segment_sum(rows, self.of, self.count)


def _embedding_bag(
    weight: Any,
    index: Any,
    offsets: Any,
    scale: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Any = None,
    include_last: bool = False,
    padding: int = -1,
) -> tuple[Any, Any, Any, Any]:
    """mode: 0 sum, 1 mean, 2 max. Also gives the bag of each index, sizes, and the max's rows."""
    bags = _Bags(index, offsets, len(offsets) - int(include_last), padding)
    rows = _read(weight, index)
    shape = bags.count, weight.shape[1]
    if mode == 2:
        values = jnp.where(bags.counted[:, None], rows, -jnp.inf)
        best = jax.ops.segment_max(values, bags.of, bags.count)
        is_best = bags.counted[:, None] & (values == best[bags.of])
        numbers = jnp.where(is_best, jnp.arange(len(index))[:, None], len(index))
        first = jax.ops.segment_min(numbers, bags.of, bags.count)
        full = bags.sizes[:, None] > 0
        places = jnp.where(full, index.at[first].get(mode="clip"), -1)
        return jnp.where(full, best, 0), bags.of, bags.sizes, places
    rows = jnp.where(bags.counted[:, None], rows, 0)
    total = bags.sum(rows if weights is None else rows * weights[:, None])
    if mode == 1:
        total = total / jnp.maximum(bags.sizes, 1)[:, None]
    return total, bags.of, bags.sizes, jnp.zeros(shape, jnp.int64)


def _embedding_bag_backward(
    gradient: Any,
    index: Any,
    offsets: Any,
    of: Any,
    sizes: Any,
    places: Any,
    rows: int,
    scale: bool,
    mode: int,
    sparse: bool,
    weights: Any,
    padding: int = -1,
) -> Any:
    result = jnp.zeros((rows, gradient.shape[1]), gradient.dtype)
    if mode == 2:
        columns = jnp.arange(gradient.shape[1])
        target = jnp.where(places < 0, rows, places)
        return result.at[target, columns].add(gradient, mode="drop")
    share = gradient[of]
    if mode == 1:
        share = share / jnp.maximum(sizes, 1)[of][:, None]
    if weights is not None:
        share = share * weights[:, None]
    if scale:
        share = share / jnp.bincount(index, length=rows)[index][:, None]
    return result.at[index].add(jnp.where((index != padding)[:, None], share, 0))


def _embedding_bag_weights_backward(
    gradient: Any, weight: Any, index: Any, offsets: Any, of: Any, mode: int, padding: int = -1
) -> Any:
    return jnp.where(index != padding, (gradient[of] * weight[index]).sum(1), 0)


INDEXING: dict[str, Lowering] = {
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), _index_put),
    "take": _take,
    "put": _put,
    "gather": _gather,
    "index_select": _index_select,
    "index_add": _index_add,
    "index_copy": _index_copy,
    "index_fill": _index_fill,
    "scatter": _scattered(_WRITES["set"]),
    "scatter_add": _scattered(_WRITES["sum"]),
    "scatter_reduce": _scatter_reduce,
    "index_reduce": _index_reduce,
    "masked_scatter": _masked_scatter,
    "masked_scatter_backward": _masked_scatter_backward,
    "masked_fill": lambda x, mask, value: jnp.where(mask, value, x),
    "repeat_interleave.Tensor": _repeat_interleave,
    "nonzero_static": _nonzero_static,
    "embedding": _embedding,
    "embedding_renorm": _embedding_renorm,
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_backward": _embedding_bag_backward,
    "_embedding_bag_per_sample_weights_backward": _embedding_bag_weights_backward,
}
