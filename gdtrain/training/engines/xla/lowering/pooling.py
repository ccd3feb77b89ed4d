"""Lowerings to jax of pooling, in as many dimensions as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Lowering = Callable[..., Any]


class _Windows:
    """The windows of a pooling over the last ``space`` dimensions."""

    def __init__(
        self,
        space: int,
        shape: Sequence[int],
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> None:
        self.space, self.inner = space, tuple(shape[-space:])
        self.kernel = _each(kernel, space)
        self.stride = _each(stride, space) if stride not in ((), []) else self.kernel
        self.padding, self.dilation = _each(padding, space), _each(dilation, space)
        self.sizes = [
            _windows_along(*along, ceil_mode)
            for along in zip(
                *(self.inner, self.kernel, self.stride, self.padding, self.dilation), strict=True
            )
        ]

    def edges(self) -> list[tuple[int, int]]:
        """The padding before and after; negative where the last elements are in no window."""
        along = zip(
            *(self.inner, self.kernel, self.stride, self.padding, self.dilation, self.sizes),
            strict=True,
        )
        return [(p, (n - 1) * s + d * (k - 1) + 1 - size - p) for size, k, s, p, d, n in along]

    def cuts(self) -> Iterator[tuple[slice, ...]]:
        """Where each place of the kernel lies in the padded picture, for all windows."""
        for place in product(*map(range, self.kernel)):
            along = zip(place, self.dilation, self.sizes, self.stride, strict=True)
            yield tuple(slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, n, s in along)

    def pad(self, x: Any, value: Any) -> Any:
        """x as far as the windows reach."""
        widths = [(0, 0, 0)] * (x.ndim - self.space) + [(a, b, 0) for a, b in self.edges()]
        return lax.pad(x, jnp.asarray(value, x.dtype), widths)

    def unpad(self, x: Any) -> Any:
        """What :meth:`pad` was given, of what it gave; zeros where nothing is."""
        widths = [(0, 0, 0)] * (x.ndim - self.space) + [(-a, -b, 0) for a, b in self.edges()]
        return lax.pad(x, jnp.zeros((), x.dtype), widths)

    def numbers(self) -> Any:
        """The number of each place of the padded picture in the picture."""
        return self.pad(jnp.arange(prod(self.inner)).reshape(self.inner), 0)

    def counts(self, *, with_padding: bool) -> Any:
        """How many elements each window has, [sizes]."""
        each = []
        for size, k, s, p, n in zip(
            self.inner, self.kernel, self.stride, self.padding, self.sizes, strict=True
        ):
            starts = np.arange(n) * s - p
            stops = np.minimum(starts + k, size + p)
            if not with_padding:
                starts, stops = np.maximum(starts, 0), np.minimum(stops, size)
            each.append(stops - starts)
        return np.asarray(prod(np.ix_(*each)), np.float64)


def _windows_along(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = -(-room // stride) + 1 if ceil_mode else room // stride + 1
    # The last window must begin inside the picture or the padding before it.
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def _each(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values if len(values) == count else values * count


# ── the largest ─────────────────────────────────────────────────────────────────────────────


def _max_pool(space: int) -> Lowering:
    def lowered(x: Any, *settings: Any) -> tuple[Any, Any]:
        windows = _Windows(space, x.shape, *settings)
        padded, numbers = windows.pad(x, -jnp.inf), windows.numbers()
        stacked = jnp.stack([padded[..., *cut] for cut in windows.cuts()])
        places = jnp.stack([numbers[cut] for cut in windows.cuts()])
        best = jnp.argmax(stacked, axis=0)  # the first of equals, and NaN before any number
        grid = places.reshape(-1, *[1] * (x.ndim - space), *windows.sizes)
        chosen = jnp.take_along_axis(jnp.broadcast_to(grid, stacked.shape), best[None], axis=0)[0]
        return stacked.max(axis=0), chosen

    return lowered


def _max_pool_backward(space: int) -> Lowering:
    def lowered(gradient: Any, x: Any, *settings: Any) -> Any:
        *settings_of, chosen = settings
        windows = _Windows(space, x.shape, *settings_of)
        numbers = windows.numbers()
        result = windows.pad(jnp.zeros_like(x), 0)
        for cut in windows.cuts():
            share = jnp.where(chosen == numbers[cut], gradient, 0)
            result = result.at[..., *cut].add(share)
        return windows.unpad(result)

    return lowered


def _adaptive_bounds(size: int, count: int) -> list[tuple[int, int]]:
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _adaptive_places(size: int, count: int) -> tuple[Any, Any]:
    """What each window reads, [count, longest], and which of it is in the window."""
    bounds = _adaptive_bounds(size, count)
    longest = max((stop - start for start, stop in bounds), default=0)
    places = np.array([[start + i for i in range(longest)] for start, _ in bounds])
    stops = np.array([[stop] for _, stop in bounds])
    return np.minimum(places, size - 1), places < stops


def _adaptive_max(space: int) -> Lowering:
    def lowered(x: Any, counts: Sequence[int]) -> tuple[Any, Any]:
        lead, inner = x.shape[:-space], x.shape[-space:]
        along = [_adaptive_places(s, n) for s, n in zip(inner, counts, strict=True)]
        grids = np.ix_(*[places.reshape(-1) for places, _ in along])
        split = [length for places, _ in along for length in places.shape]
        order = [2 * i for i in range(space)] + [2 * i + 1 for i in range(space)]
        numbers = np.ravel_multi_index(np.broadcast_arrays(*grids), inner)
        inside = np.ones((), bool)
        for _, valid in along:
            inside = inside[..., None] & valid.reshape(-1)

        def by_window(values: Any, array: Any = np) -> Any:
            values = values.reshape(*values.shape[: values.ndim - space], *split)
            first = values.ndim - 2 * space
            values = array.transpose(values, [*range(first), *[first + axis for axis in order]])
            return values.reshape(*values.shape[: first + space], -1)

        values = by_window(x[..., *grids], jnp)
        values = jnp.where(by_window(inside), values, -jnp.inf)
        best = jnp.argmax(values, axis=-1)
        table = jnp.broadcast_to(by_window(numbers), values.shape)
        places = jnp.take_along_axis(table, best[..., None], axis=-1)[..., 0]
        return values.max(-1), places.reshape(*lead, *counts)

    return lowered


def _adaptive_max_backward(space: int) -> Lowering:
    def lowered(gradient: Any, x: Any, places: Any) -> Any:
        flat = prod(x.shape[-space:])
        rows = prod(x.shape[:-space])
        chosen, given = places.reshape(rows, -1), gradient.reshape(rows, -1)
        result = jnp.zeros((rows, flat), gradient.dtype)
        return result.at[jnp.arange(rows)[:, None], chosen].add(given).reshape(x.shape)

    return lowered


# ── of windows at random places ─────────────────────────────────────────────────────────────


def _fractional_max(space: int) -> Lowering:
    """Windows [kernel] that begin at ⌊α (i + u)⌋ - ⌊α u⌋, the last one at the end.

    u: [N, C, space], between 0 and 1. α lets so many windows fit (Graham 2014).
    """

    def lowered(x: Any, kernel: Any, counts: Any, draws: Any) -> tuple[Any, Any]:
        inner, lead = x.shape[-space:], x.shape[:-space]
        # PyTorch draws along the width first, in two dimensions.
        draws = draws[..., ::-1] if space == 2 else draws
        draws = draws.reshape(-1, space)[: prod(lead)].reshape(*lead, space)
        numbers = jnp.zeros((*lead, *[1] * (2 * space)), jnp.int64)
        for axis, (size, k, n) in enumerate(zip(inner, kernel, counts, strict=True)):
            along = _fractional_starts(draws[..., axis], size, k, n)[..., None] + jnp.arange(k)
            shape = [1] * (2 * space)
            shape[axis], shape[space + axis] = n, k
            numbers = numbers * size + along.reshape(*lead, *shape)
        windows = numbers.reshape(*lead, *counts, -1)
        values = jnp.take_along_axis(x.reshape(*lead, -1), windows.reshape(*lead, -1), axis=-1)
        values = values.reshape(windows.shape)
        best = jnp.argmax(values, axis=-1, keepdims=True)  # the first of equals
        return values.max(-1), jnp.take_along_axis(windows, best, axis=-1)[..., 0]

    return lowered


def _fractional_starts(draws: Any, size: int, kernel: int, count: int) -> Any:
    last = jnp.full((*draws.shape, 1), size - kernel, jnp.int64)
    if count == 1:
        return last
    alpha = jnp.asarray((size - kernel) / (count - 1), draws.dtype)
    moved = (jnp.arange(count - 1) + draws[..., None]) * alpha
    starts = jnp.trunc(moved) - jnp.trunc(draws * alpha)[..., None]
    return jnp.concatenate([starts.astype(jnp.int64), last], axis=-1)


def _fractional_max_backward(space: int) -> Lowering:
    scatter = _adaptive_max_backward(space)
    return lambda gradient, x, kernel, counts, places: scatter(gradient, x, places)


# ── the mean ────────────────────────────────────────────────────────────────────────────────


def _average(space: int) -> Lowering:
    def lowered(
        x: Any,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Any:
        windows = _Windows(space, x.shape, kernel, stride, padding, 1, ceil_mode)
        padded = windows.pad(x, 0)
        total = sum(padded[..., *cut] for cut in windows.cuts())
        counts = divisor or jnp.asarray(windows.counts(with_padding=count_include_pad), x.dtype)
        return total / counts

    return lowered


def _average_backward(space: int) -> Lowering:
    average = _average(space)

    def lowered(gradient: Any, x: Any, *settings: Any) -> Any:
        _, pull_back = jax.vjp(lambda x: average(x, *settings), x)
        return pull_back(gradient)[0]

    return lowered


def _shares(size: int, count: int, dtype: Any) -> Any:
    """What each element counts in the mean of each window, [count, size]."""
    shares = np.zeros((count, size))
    for row, (start, stop) in enumerate(_adaptive_bounds(size, count)):
        shares[row, start:stop] = 1 / (stop - start)
    return jnp.asarray(shares, dtype)


def along_each(x: Any, matrices: Sequence[Any]) -> Any:
    """Multiply the last dimensions by matrices [new, old], one each."""
    for axis, matrix in zip(range(x.ndim - len(matrices), x.ndim), matrices, strict=True):
        x = jnp.moveaxis(jnp.tensordot(x, matrix, ([axis], [1])), -1, axis)
    return x


def _adaptive_average(x: Any, counts: Sequence[int]) -> Any:
    inner = x.shape[-len(counts) :]
    return along_each(x, [_shares(s, n, x.dtype) for s, n in zip(inner, counts, strict=True)])


def _adaptive_average_backward(space: int) -> Lowering:
    def lowered(gradient: Any, x: Any) -> Any:
        pairs = zip(x.shape[-space:], gradient.shape[-space:], strict=True)
        return along_each(gradient, [_shares(s, n, x.dtype).T for s, n in pairs])

    return lowered


POOLING: dict[str, Lowering] = {
    **{f"max_pool{n}d_with_indices": _max_pool(n) for n in (2, 3)},
    **{f"max_pool{n}d_with_indices_backward": _max_pool_backward(n) for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive_max(n) for n in (2, 3)},
    **{f"adaptive_max_pool{n}d_backward": _adaptive_max_backward(n) for n in (2, 3)},
    **{f"fractional_max_pool{n}d": _fractional_max(n) for n in (2, 3)},
    **{f"fractional_max_pool{n}d_backward": _fractional_max_backward(n) for n in (2, 3)},
    **{f"avg_pool{n}d": _average(n) for n in (1, 2, 3)},
    **{f"avg_pool{n}d_backward": _average_backward(n) for n in (2, 3)},
    **{f"_adaptive_avg_pool{n}d": _adaptive_average for n in (2, 3)},
    **{f"_adaptive_avg_pool{n}d_backward": _adaptive_average_backward(n) for n in (2, 3)},
}
