"""What a loader reads from: samples that can read the batches of a plan; tensors in memory."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan, ViewBatch
from gdtrain.data.lazy_batch import through
from gdtrain.data.tree import map_tensors

# One gather serves a run of batches of about this size: large enough that its fixed cost
# vanishes, small enough to stay in a core's cache until the batches are used.
GATHER_BYTES = 1 << 20
VIEW_BYTES = 1 << 16  # of a batch; below that, one copy of many costs less than views cost later
MAX_BATCHES_PER_GATHER = 1024
# Batches that are cut out of it at once: more tensors would not stay in a core's cache.
CUT_AT_ONCE = 128
DIGEST_SAMPLES = 4096
DIGEST_BYTES = 64 << 20  # of a tensor, hashed at once
# By their bytes, types whose values are copied as they are; and those of two floats of a type.
_ELEMENTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
_PAIRS = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class Samples(ABC):
    """A finite, indexable set of samples that can read the batches of a plan."""

    _fingerprint: tuple[Any, int] | None = None

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

    @property
    def has_own_collate(self) -> bool:
        """Whether a collate function of the user's makes the batches."""
        return False

    @property
    def groups(self) -> Any:
        """Where each group of consecutive samples ends that is read as one, [groups] int64 or None.

        An array of rising numbers, the last of which is that of all samples.
        """
        return None

    def fingerprint(self, version: int = 2) -> int | None:
        """The :meth:`digest`, computed once for the same values; None for a stream.

        version: of the orders with which it is compared. States of version 1, those of 0.1.0, tell
        a data set by its :meth:`sampled_digest`.
        """
        if version == 1:
            return self.sampled_digest()
        state = self.state()
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, self.digest()
        return self._fingerprint[1]

    def marks(self) -> list[list[Any]] | None:
        """Name, size and time of change of each file that is read in training; None in memory.

        While they are what they were, the files are taken to hold what they held.
        """
        return None

    def trust(self, digest: int) -> None:
        """Take ``digest`` for that of the values as they are: the files bear the same marks."""
        self._fingerprint = self.state(), digest

    def state(self) -> Any:
        """What is other where values have changed since, as far as that can be seen."""
        return None

    def digest(self) -> int:
        """A number that tells this data set from another: of all that its samples hold."""
        size = min(len(self), DIGEST_SAMPLES)
        return self._digest_of(Plan(0, len(self), size, None))

    def sampled_digest(self) -> int:
        """The same of up to 4,096 samples spread over it: what 0.1.0 has told data sets by."""
        step = max(1, len(self) // DIGEST_SAMPLES)
        rows = torch.arange(0, len(self), step, device="cpu")[:DIGEST_SAMPLES]
        return self._digest_of(Plan(0, len(rows), len(rows), rows))

    def _digest_of(self, plan: Plan) -> int:
        digest = 0

        def add(tensor: Tensor) -> Tensor:
            nonlocal digest
            digest = crc32(tensor, digest)
            return tensor

        for batch in self.read(plan):
            map_tensors((batch.inputs, batch.targets), add)
        return digest


class TensorSamples(Samples):
    """Samples that are rows of tensors in memory.

    tensors: each [n, …], as they are now. The last one holds the targets, those before it the
    inputs; a single tensor is inputs without targets.

    Small batches of consecutive samples are copied together, so that a model that works in place
    leaves the data alone. Those of 64 KiB and more are views of the data, and say so.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self._viewed: list[Tensor | None] | None = None

    @property
    def _elements(self) -> list[Tensor | None]:
        """What rows are gathered from, see :func:`_as_elements`; made when it is needed first."""
        if self._viewed is None:
            self._viewed = [_as_elements(tensor) for tensor in self.tensors]
        return self._viewed

    def __reduce__(self) -> Any:
        return type(self), (self.tensors,)  # what are views of them stays so in a copy

    def state(self) -> Any:
        return [(id(tensor), version_of(tensor)) for tensor in self.tensors]

    def digest(self) -> int:
        digest = 0
        for tensor in self.tensors:
            digest = crc32(tensor, digest)
        return digest

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
        bytes_per_batch = max(1, self.nbytes * plan.batch_size // max(1, len(self)))
        kind = ViewBatch if plan.indices is None and bytes_per_batch >= VIEW_BYTES else Batch
        at_once = max(1, min(MAX_BATCHES_PER_GATHER, GATHER_BYTES // bytes_per_batch))
        if kind is ViewBatch:  # nothing is gathered; shares of several batches do not lie together
            at_once = MAX_BATCHES_PER_GATHER if plan.world_size == 1 else 1
        stop = len(plan)
        while start < stop:
            versions = [(t, t._version) for t in self.tensors if not t.is_inference()]
            for batch in self._gathered(plan, start, min(start + at_once, stop), kind):
                yield batch
                start += 1
                # Written to meanwhile: what was gathered ahead is of other values.
                if [tensor for tensor, version in versions if tensor._version != version]:
                    break

    def _gathered(self, plan: Plan, first: int, last: int, kind: type[Batch]) -> Iterator[Batch]:
        """The batches ``first`` … ``last - 1``, whose rows are read at once."""
        chosen, begin, sizes = plan.rows(first, last)
        if chosen is not None:
            return cut(self.chosen(chosen), chosen, sizes)
        end = begin + sum(sizes)
        rows = [tensor[begin:end] for tensor in self.tensors]
        if kind is Batch:
            rows = [part.clone() for part in rows]
        return cut(rows, torch.arange(begin, end, device="cpu"), sizes, kind)

    def chosen(self, chosen: Tensor) -> list[Tensor]:
        """Copies of the chosen rows, [k] int64, of each tensor."""
        taken, size = [], chosen.shape[0]
        for tensor, elements in zip(self.tensors, self._elements, strict=True):
            if elements is None:
                taken.append(tensor.index_select(0, chosen.to(tensor.device)))
            else:
                rows = elements.index_select(0, chosen)
                if elements.dtype is _PAIRS.get(tensor.dtype) and tensor.shape[1:] == (2,):
                    taken.append(torch.view_as_real(rows))
                    continue
                if elements.dtype is not tensor.dtype:
                    rows = rows.view(tensor.dtype)
                taken.append(rows.view(size, *tensor.shape[1:]) if tensor.ndim > 1 else rows)
        return taken

    def gather(self, chosen: Tensor, rows: Sequence[Tensor]) -> None:
        """Copy the chosen samples, [k] int64, to ``rows``, of each tensor [k, …], on a CPU."""
        for tensor, elements, made in zip(self.tensors, self._elements, rows, strict=True):
            if elements is None:
                torch.index_select(tensor, 0, chosen, out=made)
            else:
                torch.index_select(elements, 0, chosen, out=made.view(-1).view(elements.dtype))


def _as_elements(tensor: Tensor) -> Tensor | None:
    """A view [n] with an element for each row, if there is a type as wide as a row; else None.

    To gather single elements takes half the time of rows of a few bytes, the more so where each is
    fetched from memory.
    """
    width = tensor[:1].nbytes
    if tensor.is_conj() or tensor.is_neg():  # no bytes of their own
        return None
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or width not in _ELEMENTS:
        return None
    if tensor.storage_offset() * tensor.itemsize % width:
        return None
    if tensor.dtype in _PAIRS and width == tensor.itemsize:
        return tensor.view(-1)
    of_pairs = tensor.dtype in _PAIRS and width == 2 * tensor.itemsize
    return tensor.view(-1).view(_PAIRS[tensor.dtype] if of_pairs else _ELEMENTS[width])


def crc32(tensor: Tensor, digest: int = 0) -> int:
    """The CRC-32 of a tensor's bytes, added to ``digest``; on a device, without a copy of all."""
    rows = max(1, DIGEST_BYTES * len(tensor) // max(1, tensor.nbytes)) if tensor.ndim else 1
    for part in torch.split(tensor, rows) if tensor.ndim else (tensor,):
        plain = part.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if plain.numel():
            digest = zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().data, digest)
    return digest


def version_of(tensor: Tensor) -> int | None:
    """How often the tensor's values have been changed in place; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


@dataclass(unsafe_hash=True)
class TransformedSamples(Samples):
    """Samples whose batches are changed by ``function`` as they are read.

    Two are the same if they change the same samples in the same way.
    """

    samples: Samples
    function: Callable[[Batch], Batch]

    def __len__(self) -> int:
        return len(self.samples)

    def state(self) -> Any:
        return self.samples.state()

    def marks(self) -> list[list[Any]] | None:
        return self.samples.marks()

    @property
    def groups(self) -> Any:
        return self.samples.groups

    def digest(self) -> int:
        """Of all that is read, and of some of what is made of it."""
        return zlib.crc32(f"{self.samples.fingerprint()}".encode(), self.sampled_digest())

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        return through(partial(map, self.function), self.samples.read(plan, start))

    def together(self, plan: Plan, first: int, last: int) -> Batch:
        return self.function(self.samples.together(plan, first, last))


class CastSamples(TransformedSamples):
    """Samples whose floating-point tensors are cast to another dtype as they are read."""

    def __init__(self, samples: Samples, dtype: torch.dtype) -> None:
        super().__init__(samples, Cast(dtype))


@dataclass(frozen=True)
class Cast:
    """Brings floating-point tensors, of a batch or alone, to a dtype."""

    dtype: torch.dtype

    def __call__(self, batch: Batch) -> Batch:
        return map_batch(batch, self.tensor)

    def tensor(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def copies(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, copied where they are views: a model may work on them in place."""
    for batch in batches:
        yield batch.copy() if batch.is_view else batch


def cut(
    rows: Sequence[Tensor], places: Tensor, sizes: list[int], kind: type[Batch] = Batch
) -> Iterator[Batch]:
    """Rows that were read at once, cut into batches.

    rows: the inputs and, last, the targets (a single tensor is inputs), each [k, …].
    places: [k] int64, the batches' indices. sizes: of the batches, k in all.
    """
    if len(sizes) > CUT_AT_ONCE:
        return chain.from_iterable(_cut_in_parts(rows, places, sizes, kind))
    columns = [tensor.split_with_sizes(sizes) for tensor in rows]
    indices = places.split_with_sizes(sizes)
    if not columns:
        return (kind(None, None, i) for i in indices)
    if len(columns) == 1:
        return (kind(x, None, i) for x, i in zip(columns[0], indices, strict=True))
    if len(columns) == 2:
        return map(kind, columns[0], columns[1], indices)
    return map(kind, zip(*columns[:-1], strict=True), columns[-1], indices)


def _cut_in_parts(
    rows: Sequence[Tensor], places: Tensor, sizes: list[int], kind: type[Batch]
) -> Iterator[Iterator[Batch]]:
    stop = 0
    for first in range(0, len(sizes), CUT_AT_ONCE):
        some = sizes[first : first + CUT_AT_ONCE]
        start, stop = stop, stop + sum(some)
        yield cut([tensor[start:stop] for tensor in rows], places[start:stop], some, kind)


def of_rows(rows: Sequence[Tensor], places: Tensor, kind: type[Batch] = Batch) -> Batch:
    """A batch of all rows, the inputs and, last, the targets; see :func:`cut`."""
    if len(rows) == 2:
        return kind(rows[0], rows[1], places)
    return next(cut(rows, places, [places.shape[0]], kind))


def map_batch(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with ``function`` applied to each tensor of its inputs and targets."""
    inputs, targets = map_tensors(batch.inputs, function), map_tensors(batch.targets, function)
    return batch.with_trees(inputs, targets)
