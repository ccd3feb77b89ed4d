"""How large a microbatch may be: as asked for, or as memory allows."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gdtrain.data.batch import Batch
from gdtrain.data.tree import tensors_of
from gdtrain.errors import ConfigError, DeviceError
from gdtrain.training.placement.distributed import World

T = TypeVar("T")

# Without a limit: on the CPU, what a core's cache holds; on a device, a share of its free memory.
DEFAULT_CPU_BYTES = 4 << 20
DEFAULT_BYTES_AT_ONCE = 1 << 30  # and for what an evaluation needs at once
FREE_SHARE = 0.5
UNMEASURED_SIZE = 1024  # what an evaluation before any training starts from
# Backward keeps gradients of about the size of the activations beside them.
_BACKWARD_FACTOR = 2
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20}
_UNITS["GIB"] = 2**30


def parse_bytes(limit: int | str) -> int:
    """A number of bytes, or text such as ``512MB`` or ``2GiB``. Raises ConfigError otherwise."""
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return limit
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?i?B)", str(limit), flags=re.IGNORECASE)
    count = float(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not 1 <= count < 2**63:
        raise ConfigError.of(
            "memory_limit", f"must be a number of bytes such as 512MB or 2GiB, got {limit!r}"
        )
    return int(count)


class MicrobatchSize:
    """The size of microbatches: fixed, none (whole batches), or ``auto``.

    ``auto`` measures what a sample's activations take, once, and picks the largest size that
    keeps to ``memory_limit``; when the device runs out of memory all the same, the size is
    halved and the batch repeated from its start. Of several processes all have the size of the
    smallest, and halve it together.
    """

    def __init__(
        self, size: int | Literal["auto"] | None, memory_limit: int | str | None, world: World
    ) -> None:
        is_count = isinstance(size, int) and not isinstance(size, bool)
        if size is not None and size != "auto" and not (is_count and int(size) > 0):
            raise ConfigError.of("microbatch_size", f"must be > 0 or auto, got {size!r}")
        self.is_auto = size == "auto"
        self.limit = None if memory_limit is None else parse_bytes(memory_limit)
        self.size: int | None = None if size == "auto" or size is None else int(size)
        self.world = world
        self._look_size: int | None = None  # smaller, after a look has run out of memory

    def __bool__(self) -> bool:
        return self.is_auto or self.size is not None

    def settle(self, compute: Callable[[Batch], Any], batch: Batch) -> None:
        """Measure the size, if it is to be and has not been.

        compute, batch: the forward pass to be measured, and samples to measure it on. A process
        with fewer than two takes the others' size; if all have, the next batch is measured.
        """
        if not self.is_auto or self.size is not None:
            return
        own = self._measured(compute, batch) if len(batch) > 1 else 0
        sizes = [size for (size,) in self.world.gather([own]) if size]
        self.size = min(sizes, default=None)

    def retry(self, work: Callable[[], T], undo: Callable[[], object] | None = None) -> T:
        """Do ``work``, which reads ``size`` and can be repeated; smaller if memory runs out.

        undo: puts back what a failed attempt did. Raises DeviceError if not even one sample at a
        time fits.
        """
        if not self.is_auto:
            return work()
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    if undo is not None:
                        undo()
                    raise DeviceError(
                        "microbatch_size: the device is out of memory with one sample at a "
                        "time; use a smaller model, or a device with more memory"
                    ) from error
            # Outside the except clause, whose traceback would keep the failed pass alive.
            if undo is not None:
                undo()
            self.size = max(1, (self.size or UNMEASURED_SIZE) // 2)

    def look(self, work: Callable[[], T]) -> T:
        """:meth:`retry` for who only looks, and learns for later looks alone what memory allows."""
        own, known = self.size, self._look_size
        self.size = min((size for size in (own, known) if size is not None), default=None)
        try:
            return self.retry(work)
        finally:
            self.size, self._look_size = own, self.size

    def attempt(self, work: Callable[[], T]) -> T:
        """Do a piece of work that needs no other process; if memory runs out in one, in all.

        Between two such pieces processes talk to each other, and would wait for one that has
        given up.
        """
        if not self.is_auto or self.world.size == 1:
            return work()
        result: T | None = None
        failed = False
        try:
            result = work()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if self.world.any(failed):
            raise MemoryError("a process is out of memory")
        return result  # type: ignore[return-value]

    def limit_at_once(self, device: torch.device) -> int:
        """Bytes that the outputs and targets of a whole set may take, where they are needed."""
        if self.limit is not None:
            return self.limit
        if device.type == "cuda":
            return int(FREE_SHARE * free_bytes(device))
        return DEFAULT_BYTES_AT_ONCE

    def _measured(self, compute: Callable[[Batch], Any], batch: Batch) -> int:
        """What the limit allows; 1 if not even a few samples can be measured."""
        first = next(batch.split(1))  # of a batch that is read as it is used, this much is read
        try:
            return max(1, int(self._limit(first) / bytes_per_sample(compute, batch)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return 1

    def _limit(self, batch: Batch) -> int:
        if self.limit is not None:
            return self.limit
        for tensor in tensors_of(batch.inputs):
            if tensor.device.type == "cuda":
                return int(FREE_SHARE * free_bytes(tensor.device))
        return DEFAULT_CPU_BYTES


def free_bytes(device: torch.device) -> int:
    """What a CUDA device has left, and what torch keeps of it and does not use."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def bytes_per_sample(compute: Callable[[Batch], Any], batch: Batch) -> float:
    """Bytes that forward and backward pass take for a sample more; of a batch of two or more."""
    many = min(33, len(batch))
    of_one = saved_bytes(partial(compute, next(batch.split(1))))
    of_many = saved_bytes(partial(compute, next(batch.split(many))))
    return max(1.0, _BACKWARD_FACTOR * (of_many - of_one) / (many - 1))


def saved_bytes(forward: Callable[[], Any]) -> int:
    """Bytes of the distinct tensors that a forward pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # or its address could be given to another
        return tensor

    alive: list[Tensor] = []
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        forward()
    return sum(kept.values())


# What the CPU's allocator, CUDA, its libraries and mps say in errors of no type of their own.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the CPU's allocator, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY)
