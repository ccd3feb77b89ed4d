"""Orders that are given index by index: checked, and made an int64 tensor."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.orders.permutation import Draws
from gdtrain.errors import ConfigError


def check_indices(values: Any, num_samples: int) -> Tensor | Draws:
    """Explicit indices as an int64 tensor [draws]; raises ConfigError if one can't be used."""
    if isinstance(values, Draws):
        if values.num_samples != num_samples or not len(values):
            raise ConfigError.of("order", f"{values!r} are no order of {num_samples} samples")
        return values
    if _is_row(values):  # as in each epoch of an order that is asked
        least, most = torch.aminmax(values)
        if least.item() >= 0 and most.item() < num_samples:
            return values.clone()
    try:
        array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError.of(
            "order", "explicit indices must be one row of whole numbers; these make no array"
        ) from error
    if isinstance(values, bool):
        text = f"must be the name of an order, such as 'reshuffle' or 'sequential'; got {values}"
        raise ConfigError.of("order", text)
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


def _is_row(values: Any) -> TypeGuard[Tensor]:
    """Whether they are one row of whole numbers, and some, as PyTorch has them."""
    return (
        type(values) is Tensor
        and values.dtype is torch.int64
        and values.ndim == 1
        and values.is_cpu
        and values.layout is torch.strided
        and values.numel() > 0
    )
