"""Where training runs: choose the device and the precision, and bring samples there."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import is_
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.lazy_batch import through
from gdtrain.data.samples import Cast, CastSamples, Samples, TensorSamples, map_batch, version_of
from gdtrain.data.sources import ArrangedSamples
from gdtrain.errors import ConfigError, DeviceError

Precision = Literal["fp32", "bf16", "fp16", "fp64"]

# Share of the device's free memory that a data set may take for itself.
RESIDENT_SHARE = 0.5
# Rows that are compared with a copy of them at a time.
COMPARED_ROWS = 1 << 16
_AS_IT_IS = nullcontext()
_COMPUTED_IN: dict[str | None, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turn ``auto | cpu | cuda | cuda:1 | mps`` into a device; ``auto`` is cuda, mps, then cpu.

    ``cuda`` is the current device: under torchrun, each process has its own. Raises DeviceError if
    the device does not exist on this machine, or is one card that several processes would share.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(
            f"device: {device!r} is not a device; use auto, cpu, cuda, cuda:N or mps"
        ) from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise DeviceError("device: cuda is not available on this machine; use auto or cpu")
        if chosen.index is not None and chosen.index >= count:
            raise DeviceError(f"device: {chosen} does not exist; there are {count} CUDA devices")
        current = torch.cuda.current_device()
        if chosen.index not in (None, current) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise DeviceError(
                f"device: {chosen} is one card, and each process of torchrun has its own; use cuda"
            )
        return torch.device("cuda", current if chosen.index is None else chosen.index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device: mps is not available on this machine; use auto or cpu")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device: {device!r} is not supported; use auto, cpu, cuda or mps")
    return chosen


def parameter_dtype(precision: Precision | None, device: torch.device) -> torch.dtype | None:
    """The dtype that ``precision`` gives the parameters; None leaves them as they are.

    bf16 and fp16 keep float32 parameters and compute in bfloat16 or float16 by autocast.
    Raises ConfigError for an unknown precision, DeviceError for fp64 on mps.
    """
    if precision is None:
        return None
    if precision not in get_args(Precision):
        among = ", ".join(get_args(Precision))
        raise ConfigError.of("precision", f"must be one of {among}; got {precision!r}")
    if precision == "fp64" and device.type == "mps":
        raise DeviceError("precision: mps has no fp64; use fp32, or device: cpu")
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(precision: Precision | None, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which the forward pass and the loss are computed."""
    if precision not in _COMPUTED_IN:
        return _AS_IT_IS
    return torch.autocast(device.type, dtype=_COMPUTED_IN[precision])


def place(samples: Samples, device: torch.device, dtype: torch.dtype) -> Samples:
    """The same samples, read as tensors on ``device`` whose floating-point dtype is ``dtype``.

    Tensors in memory go to the device once if they take at most half of its free memory;
    anything else is copied batch by batch, ahead of its use.
    """
    if isinstance(samples, TensorSamples):
        samples = samples.map(Cast(dtype).tensor)
        # The CPU holds them already, and mps shares the machine's memory.
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
        if samples.nbytes <= RESIDENT_SHARE * free:
            return samples.map(lambda t: t.to(device))
    else:
        samples = CastSamples(samples, dtype)
    return samples if device.type == "cpu" else CopiedSamples(samples, device)


@dataclass(eq=False)
class Placement:
    """Brings samples to a device and a dtype: tensors in memory once, as long as they are the same.

    A copy that had to be made is made again when the user's tensor has been changed in place, or
    another one has taken its place. numpy tells nobody of changes: whether an array is still what
    was copied, :meth:`compare` finds out.
    """

    device: torch.device
    dtype: torch.dtype
    _placed: WeakKeyDictionary[TensorSamples, _Placed] = field(
        default_factory=WeakKeyDictionary, repr=False
    )

    def __call__(self, samples: Samples) -> Samples:
        """The samples as :func:`place` gives them."""
        if isinstance(samples, ArrangedSamples):
            return samples.of(self(samples.samples))
        if not isinstance(samples, TensorSamples):  # what it makes holds them, and is made quickly
            return place(samples, self.device, self.dtype)
        placed = self._placed.get(samples)
        if placed is None or not placed.is_of(samples.tensors):
            made = place(samples, self.device, self.dtype)
            placed = self._placed[samples] = _Placed(samples.tensors, made)
        return placed.samples

    def compare(self, samples: Samples) -> None:
        """Forget copies on the CPU that are no longer of the values that the user has now."""
        if isinstance(samples, ArrangedSamples):
            samples = samples.samples
        if not isinstance(samples, TensorSamples) or self.device.type != "cpu":
            return
        placed = self._placed.get(samples)
        if placed is None:
            return
        assert isinstance(placed.samples, TensorSamples)
        made, tensors = placed.samples.tensors, samples.tensors
        if not (placed.is_of(tensors) and all(map(_is_cast_of, made, tensors))):
            del self._placed[samples]

    def __reduce__(self) -> Any:
        return Placement, (self.device, self.dtype)  # copies place for themselves


class _Placed:
    """Samples as they were placed, and the tensors of which that was done."""

    def __init__(self, tensors: tuple[Tensor, ...], samples: Samples) -> None:
        self.samples = samples
        self._tensors = tensors
        kept = samples.tensors if isinstance(samples, TensorSamples) else ()
        shared = {id(tensor) for tensor in kept}  # which change with the user's
        self._versions = [None if id(t) in shared else version_of(t) for t in tensors]

    def is_of(self, tensors: tuple[Tensor, ...]) -> bool:
        if len(tensors) != len(self._tensors) or not all(map(is_, tensors, self._tensors)):
            return False
        return all(
            version is None or version == version_of(tensor)
            for version, tensor in zip(self._versions, tensors, strict=True)
        )


def _is_cast_of(made: Tensor, tensor: Tensor) -> bool:
    """Whether ``made`` has the bits of ``tensor`` in its dtype; compared in parts."""
    if made is tensor:
        return True
    rows = partial(torch.split, split_size_or_sections=COMPARED_ROWS)
    for part, other in zip(rows(made), rows(tensor), strict=True):
        both = part, other.to(part.dtype)
        bits = (one.contiguous().view(torch.uint8) for one in both)  # NaN is not equal to itself
        if not torch.equal(*both) and not torch.equal(*bits):
            return False
    return True


@dataclass(unsafe_hash=True)
class CopiedSamples(Samples):
    """Samples on the host whose batches are copied to the device one ahead of their use."""

    samples: Samples
    device: torch.device

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def targets(self) -> Tensor | None:
        return self.samples.targets

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        batches = self.samples.read(plan, start)
        return through(self._overlapped if self.device.type == "cuda" else self._plain, batches)

    def _plain(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield map_batch(batch, lambda t: t.to(self.device))

    def _overlapped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Copy from pinned memory on a stream of its own while the batch before it is used."""
        copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        ahead: tuple[Batch, torch.cuda.Event] | None = None
        for batch in batches:
            # Pinned memory is handed back to torch's caching allocator only after the copy:
            # it records the stream that read it.
            pinned = map_batch(batch, lambda t: t.pin_memory() if t.is_cpu else t)
            with torch.cuda.stream(copying):
                copied = map_batch(pinned, lambda t: t.to(self.device, non_blocking=True))
            if ahead is not None:
                yield self._ready(*ahead)
            ahead = copied, copying.record_event()
        if ahead is not None:
            yield self._ready(*ahead)

    def _ready(self, batch: Batch, done: torch.cuda.Event) -> Batch:
        """Make the computing stream wait for the copy, and the allocator know of both streams."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(done)

        def used(tensor: Tensor) -> Tensor:
            tensor.record_stream(computing)
            return tensor

        return map_batch(batch, used)
