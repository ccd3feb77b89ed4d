"""Whether what a configuration asks for fits in memory, found before it is allocated or then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gdtrain.data.free_memory import free_memory
from gdtrain.errors import ConfigError
from gdtrain.training.gradients.microbatches import is_out_of_memory

# What torch says of sizes whose product is no number of bytes, or that are no int64 themselves.
_NO_SIZE = (
    "size calculation overflowed",
    "Overflow when unpacking long",
    "multiplication overflow",
)
_REMEDIES = {
    "data": "use fewer samples, or source: mapped, which is read as it is needed",
    "model": "use fewer or smaller layers",
    "": "use a smaller model, or set microbatch_size: auto to compute batches in slices",
}


def out_of_memory(error: BaseException, key: str) -> str | None:
    """What to say if ``error`` is of too little memory for the section ``key``, else None."""
    if not (is_out_of_memory(error) or any(message in str(error) for message in _NO_SIZE)):
        return None
    what = "needs" if key else "training needs"
    return f"{what} more memory than there is; {_REMEDIES.get(key, _REMEDIES[''])}"


def built_if_it_fits(build: Callable[[], nn.Module], copies: int, extent: str) -> nn.Module:
    """``build()``, after a look at what ``copies`` of its parameters take, without allocating.

    extent: how large it is, in words. Raises ConfigError if less memory is free.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, TypeError) as error:
        if out_of_memory(error, "model") is None:
            raise
        message = f"needs more memory than there is for {extent}; {_REMEDIES['model']}"
        raise ConfigError.of("", message) from error
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    needed, there = copies * sum(tensor.nbytes for tensor in tensors), free_memory()
    if there is not None and needed > there:
        raise ConfigError.of(
            "",
            f"needs {_said(needed)} of memory for {extent}, and {_said(there)} are free; "
            f"{_REMEDIES['model']}",
        )
    return build()


def _said(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
