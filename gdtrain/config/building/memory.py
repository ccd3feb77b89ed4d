"""Whether what a configuration asks for fits in memory, found before it is allocated or then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gdtrain.errors import ConfigError
from gdtrain.training.gradients.microbatches import is_out_of_memory

# What a container may use, where it is in one: by the second and the first version of cgroups.
_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
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

    extent: how large it is, in words. Raises ConfigError if the machine has less memory.
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
    needed, there = copies * sum(tensor.nbytes for tensor in tensors), machine_bytes()
    if there is not None and needed > there:
        raise ConfigError.of(
            "",
            f"needs {_said(needed)} of memory for {extent}, and there are {_said(there)}; "
            f"{_REMEDIES['model']}",
        )
    return build()


def machine_bytes() -> int | None:
    """The memory of this machine, or of the container that the process is in, if it is known."""
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CONTAINER:
        try:
            limits.append(int(Path(name).read_text("ascii")))
        except (OSError, ValueError):  # none, or the word max
            continue
    return min(limits, default=None)


def _said(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
