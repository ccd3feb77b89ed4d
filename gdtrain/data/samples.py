"""What a loader reads from: samples that can read the batches of a plan; tensors in memory."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan, map_tensors
from gdtrain.data.lazy_batch import through
from gdtrain.errors import DataError

# One gather serves a run of batches of about this size: large enough that its fixed cost
# vanishes, small enough to stay in a core's cache until the batches are used.
GATHER_BYTES = 1 << 20
MAX_BATCHES_PER_GATHER = 1024
# Batches that are cut out of it at once: more tensors would not stay in a core's cache.
CUT_AT_ONCE = 128
DIGEST_SAMPLES = 4096
CHECKED_ROWS = 1 << 16
# By their bytes, types whose values are copied as they are.
_ELEMENTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


class Samples(ABC):
    """A finite, indexable set of samples that can read the batches of a plan."""

    _fingerprint: int | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        """The plan's batches from number ``start`` on, in order."""

    def together(self, plan: Plan, first: int, last: int) -> Batch:
        """The batches ``first`` … ``last - 1`` of a stream's plan as one, a sample a row."""
        raise NotImplementedError

    @property
    def targets(self) -> Tensor | None:
        """All targets [n, …] where they are in memory, else None."""
        return None

    def fingerprint(self, version: int = 2) -> int | None:
        """The :meth:`digest`, computed once; None for a stream.

        version: of the orders with which it is compared; a data set may have been told by another
        digest then.
        """
        if self._fingerprint is None:
            self._fingerprint = self.digest()
        return self._fingerprint

    def digest(self) -> int:
        """A number that tells this data set from another: of up to 4,096 samples spread over it."""
        step = max(1, len(self) // DIGEST_SAMPLES)
        rows = torch.arange(0, len(self), step)[:DIGEST_SAMPLES]
        digest = 0

        def add(tensor: Tensor) -> Tensor:
            nonlocal digest
            plain = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
            digest = zlib.crc32(plain.numpy().tobytes(), digest)
            return tensor

        for batch in self.read(Plan(0, len(rows), len(rows), rows)):
            map_tensors((batch.inputs, batch.targets), add)
        return digest


class TensorSamples(Samples):
    """Samples that are rows of tensors in memory.

    tensors: each [n, …]. The last one holds the targets, those before it the inputs; a single
    tensor is inputs without targets.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self._elements = [_as_elements(tensor) for tensor in self.tensors]

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    @property
    def targets(self) -> Tensor | None:
        return self.tensors[-1] if len(self.tensors) > 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def map(self, function: Callable[[Tensor], Tensor]) -> TensorSamples:
        """The samples with ``function`` applied to each tensor."""
        return TensorSamples([function(tensor) for tensor in self.tensors])

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        at_once = self._batches_per_gather(plan.batch_size)
        for first in range(start, len(plan), at_once):
            chosen, begin, sizes = plan.rows(first, min(first + at_once, len(plan)))
            places = torch.arange(begin, begin + sum(sizes)) if chosen is None else chosen
            yield from cut(self._take(chosen, begin, sum(sizes)), places, sizes)

    def _take(self, chosen: Tensor | None, begin: int, count: int) -> list[Tensor]:
        """``count`` rows of each tensor, in copies: a model may work in place on its inputs."""
        if chosen is None:
            return [tensor[begin : begin + count].clone() for tensor in self.tensors]
        taken = []
        for tensor, elements in zip(self.tensors, self._elements, strict=True):
            if elements is None:
                taken.append(tensor.index_select(0, chosen.to(tensor.device)))
            else:
                rows = elements.index_select(0, chosen).view(tensor.dtype)
                taken.append(rows.view(count, *tensor.shape[1:]))
        return taken

    def gather(self, chosen: Tensor, rows: Sequence[Tensor]) -> None:
        """Copy the chosen samples, [k] int64, to ``rows``, of each tensor [k, …], on a CPU."""
        for tensor, elements, made in zip(self.tensors, self._elements, rows, strict=True):
            if elements is None:
                torch.index_select(tensor, 0, chosen, out=made)
            else:
                torch.index_select(elements, 0, chosen, out=made.view(-1).view(elements.dtype))

    def _batches_per_gather(self, batch_size: int) -> int:
        bytes_per_batch = max(1, self.nbytes * batch_size // len(self))
        return max(1, min(MAX_BATCHES_PER_GATHER, GATHER_BYTES // bytes_per_batch))


def _as_elements(tensor: Tensor) -> Tensor | None:
    """A view [n] with an element for each row, if there is a type as wide as a row; else None.

    To gather single elements takes half the time of rows of a few bytes, the more so where each is
    fetched from memory.
    """
    width = tensor[:1].nbytes
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or width not in _ELEMENTS:
        return None
    if tensor.storage_offset() * tensor.itemsize % width:
        return None
    return tensor.view(-1).view(_ELEMENTS[width])


class TransformedSamples(Samples):
    """Samples whose batches are changed by ``function`` as they are read."""

    def __init__(self, samples: Samples, function: Callable[[Batch], Batch]) -> None:
        self.samples = samples
        self.function = function

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        return through(partial(map, self.function), self.samples.read(plan, start))

    def together(self, plan: Plan, first: int, last: int) -> Batch:
        return self.function(self.samples.together(plan, first, last))


class CastSamples(TransformedSamples):
    """Samples whose floating-point tensors are cast to another dtype as they are read."""

    def __init__(self, samples: Samples, dtype: torch.dtype) -> None:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        super().__init__(samples, lambda batch: map_batch(batch, cast))


def cut(rows: Sequence[Tensor], places: Tensor, sizes: list[int]) -> Iterator[Batch]:
    """Rows that were read at once, cut into batches.

    rows: the inputs and, last, the targets (a single tensor is inputs), each [k, …].
    places: [k] int64, the batches' indices. sizes: of the batches, k in all.
    """
    if len(sizes) <= CUT_AT_ONCE:
        return _cut(rows, places, sizes)
    return chain.from_iterable(_cut_in_parts(rows, places, sizes))


def _cut_in_parts(
    rows: Sequence[Tensor], places: Tensor, sizes: list[int]
) -> Iterator[Iterator[Batch]]:
    stop = 0
    for first in range(0, len(sizes), CUT_AT_ONCE):
        some = sizes[first : first + CUT_AT_ONCE]
        start, stop = stop, stop + sum(some)
        yield _cut([tensor[start:stop] for tensor in rows], places[start:stop], some)


def of_rows(rows: Sequence[Tensor], places: Tensor) -> Batch:
    """A batch of all rows, the inputs and, last, the targets; see :func:`cut`."""
    if len(rows) == 2:
        return Batch(rows[0], rows[1], places)
    return next(_cut(rows, places, [places.shape[0]]))


def _cut(rows: Sequence[Tensor], places: Tensor, sizes: list[int]) -> Iterator[Batch]:
    columns = [tensor.split_with_sizes(sizes) for tensor in rows]
    indices = places.split_with_sizes(sizes)
    if not columns:
        return (Batch(None, None, i) for i in indices)
    if len(columns) == 1:
        return (Batch(x, None, i) for x, i in zip(columns[0], indices, strict=True))
    if len(columns) == 2:
        return map(Batch, columns[0], columns[1], indices)
    return map(Batch, zip(*columns[:-1], strict=True), columns[-1], indices)


def map_batch(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with ``function`` applied to each tensor of its inputs and targets."""
    inputs, targets = map_tensors(batch.inputs, function), map_tensors(batch.targets, function)
    return Batch(inputs, targets, batch.indices)


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
    parts = torch.split(tensor, CHECKED_ROWS) if tensor.numel() else ()
    dtype = None if tensor.is_complex() else torch.float64
    if all(torch.isfinite(part.sum(dtype=dtype)) for part in parts):
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
    if tensor.dtype != torch.float64:
        return
    bad = (tensor.abs() > torch.finfo(torch.float32).max).nonzero()
    if len(bad):
        row, *column = bad[0].tolist()
        place = f"row {first_row + row}"
        place += f", column {', '.join(map(str, column))}" if column else ""
        raise DataError(
            f"{name}: {place} is {tensor[tuple(bad[0].tolist())].item():g}, which float32 does "
            "not hold; rescale it, or set precision: fp64"
        )
