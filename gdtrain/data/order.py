"""Which sample comes when: orders as pure functions of (number of samples, seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.bijection import Draws, Permutation, Replacement
from gdtrain.data.names import OrderName
from gdtrain.errors import ConfigError

Order = OrderName | Sequence[int] | Tensor | Draws | np.ndarray[Any, Any] | Callable[[int], Any]

# Up to so many samples an order is a tensor, drawn at once; beyond, it is computed as it is read.
MAX_KEPT = 1 << 20

_MASK = (1 << 64) - 1


def mix(seed: int, *keys: int) -> int:
    """Hash a seed and any number of integer keys into 64 well-mixed bits.

    Each key is absorbed by one round of SplitMix64 (Steele, Lea and Flood, 2014), so that
    neighbouring seeds and epochs give unrelated generators.
    """
    state = int(seed) & _MASK
    for key in keys:
        state = (state + (int(key) & _MASK) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def generator(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator that depends on (seed, keys) alone, never on global RNG state."""
    return torch.Generator().manual_seed(mix(seed, *keys))


def check_order(order: Order, num_samples: int) -> Order:
    """Return ``order`` in its canonical form: a name, a callable, or indices as int64 (or Draws).

    Raises ConfigError for an unknown name or indices that are not in 0 … num_samples - 1.
    """
    if isinstance(order, str):
        if order not in get_args(OrderName):
            names = ", ".join(get_args(OrderName))
            raise ConfigError.of(
                "order",
                f"must be one of {names}, a sequence of indices or a callable; got {order!r}",
            )
        return order
    if callable(order):
        return order
    return _check_indices(order, num_samples)


def epoch_indices(order: Order, num_samples: int, seed: int, epoch: int) -> Tensor | Draws | None:
    """The sample indices of one epoch, in order.

    order: what :func:`check_order` returned.
    Returns int64 indices [number of draws], or None for 0 … num_samples - 1 in sequence, which
    lets a reader slice instead of gather. What is random is a tensor up to ``MAX_KEPT`` samples
    (2^20), and :class:`~gdtrain.data.bijection.Draws` beyond, which keep no index in memory.

    * ``reshuffle``: a uniformly random permutation, a new one each epoch;
    * ``shuffle_once``: the permutation of epoch 0, every epoch;
    * ``replacement``: num_samples independent uniform draws (classical SGD; Robbins and
      Monro, 1951);
    * a sequence is taken as it is, a callable is asked for its indices of this epoch.
    """
    if isinstance(order, str):
        if order == "sequential":
            return None
        if order == "replacement":
            if num_samples > MAX_KEPT:
                return Replacement(num_samples, mix(seed, epoch))
            return torch.randint(num_samples, (num_samples,), generator=generator(seed, epoch))
        key = 0 if order == "shuffle_once" else epoch
        if num_samples > MAX_KEPT:
            return Permutation(num_samples, mix(seed, key))
        return torch.randperm(num_samples, generator=generator(seed, key))
    if callable(order):
        return _check_indices(order(epoch), num_samples)
    assert isinstance(order, Tensor | Draws)
    return order


def _check_indices(values: Any, num_samples: int) -> Tensor | Draws:
    """Explicit indices as an int64 tensor [draws]; raises ConfigError if one can't be used."""
    if isinstance(values, Draws):
        if values.num_samples != num_samples or not len(values):
            raise ConfigError.of("order", f"{values!r} are no order of {num_samples} samples")
        return values
    try:
        array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError.of(
            "order", "explicit indices must be one row of whole numbers; these make no array"
        ) from error
    if array.ndim != 1 or array.size == 0:
        raise ConfigError.of(
            "order",
            f"explicit indices must be one non-empty row, got shape {list(array.shape)}",
        )
    if array.dtype.kind not in "iu":
        raise ConfigError.of("order", f"explicit indices must be whole numbers, got {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_samples:
        raise ConfigError.of(
            "order",
            f"explicit indices must be in 0 … {num_samples - 1}, got {low if low < 0 else high}",
        )
    # A copy in any case, so that the caller's later changes to the array change no plan.
    return torch.from_numpy(array.astype(np.int64, order="C"))
