"""Arrays and tensors that a user has, as rows that can be trained on: made tensors, and checked."""

from __future__ import annotations

import cmath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.errors import DataError

CHECKED_ROWS = 1 << 16


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a tensor [n, …] that shares its memory where that is possible."""
    tensor = value.detach() if isinstance(value, Tensor) else _from_array(value, name)
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else "sparse"
        raise DataError(f"{name}: a {kind} tensor can't be cut into rows; give a dense one")
    if tensor.ndim == 0:
        raise DataError(f"{name}: a single number has no rows; give a tensor of shape [n, …]")
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch gathers none of them
        tensor = tensor.to(torch.int64)
        if bool((tensor < 0).any()):
            raise DataError(f"{name}: a value is over 2^63 - 1, the largest int64; rescale it")
    return tensor


def _from_array(value: Any, name: str) -> Tensor:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: make no array; give rows of equal length") from error
    if array.dtype.kind not in "biufc":
        raise DataError(f"{name}: an array of {array.dtype} is not numeric; encode it first")
    if np.ma.is_masked(value):
        raise DataError(f"{name}: holds masked values; fill them in or remove the rows")
    if array.dtype.char in "gG":
        raise DataError(f"{name}: torch has no {array.dtype}; convert the array to float64")
    # torch shares memory only with native, writable, forward-strided arrays.
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    writable = native if native.flags.writeable else native.copy()
    # ascontiguousarray would make a row of a single number.
    return torch.from_numpy(writable if writable.ndim == 0 else np.ascontiguousarray(writable))


def check_finite(tensor: Tensor, name: str, first_row: int = 0) -> None:
    """Raise DataError, naming row and column, if a value is NaN or infinite.

    first_row: the number of the tensor's first row in the data set.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    # A sum is finite if every value is, barring overflow, and needs no second array; but one in
    # float64 makes float64 of what it sums up, so that is done in parts.
    parts = (tensor,) if len(tensor) <= CHECKED_ROWS else torch.split(tensor, CHECKED_ROWS)
    dtype = None if tensor.is_complex() else torch.float64
    if all(cmath.isfinite(part.sum(dtype=dtype).item()) for part in parts):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    if bad.shape[0] == 0:
        return
    row, *column = bad[0].tolist()
    place = f"row {first_row + row}" + (f", column {', '.join(map(str, column))}" if column else "")
    value = tensor[tuple(bad[0].tolist())].item()
    more = f" (and {bad.shape[0] - 1} more)" if bad.shape[0] > 1 else ""
    raise DataError(
        f"{name}: {place} is {value}{more}; remove the row or fill in a number before training"
    )


def check_range(tensor: Tensor, name: str, first_row: int = 0) -> None:
    """Raise DataError, naming row and column, if a finite value is over what float32 holds.

    first_row: the number of the tensor's first row in the data set.
    """
    if tensor.dtype != torch.float64 or not tensor.numel():
        return
    low, high = tensor.aminmax()  # which needs no second array
    most = torch.finfo(torch.float32).max
    if -low <= most and high <= most:
        return
    bad = (tensor.abs() > most).nonzero()
    if len(bad):  # NaN is none
        row, *column = bad[0].tolist()
        place = f"row {first_row + row}"
        place += f", column {', '.join(map(str, column))}" if column else ""
        raise DataError(
            f"{name}: {place} is {tensor[tuple(bad[0].tolist())].item():g}, which float32 does "
            "not hold; rescale it, or set precision: fp64"
        )
