"""Data larger than memory: samples in mapped files, read ahead of the compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.files.read_ahead import read_ahead
from gdtrain.data.files.shards import ShardedArray
from gdtrain.data.lazy_batch import LazyBatch
from gdtrain.data.orders.order import generator
from gdtrain.data.samples import Samples, crc32, cut
from gdtrain.data.tables.preparation import SPLIT_KEY
from gdtrain.errors import DataError

# What is read at once: a run of batches of about this size …
CHUNK_BYTES = 4 << 20
# … and from which size on a batch is not read whole, but as its microbatches are used.
LAZY_BYTES = 16 << 20

Chunk = tuple[list[Tensor], Tensor, list[int]]


class RowArray(Protocol):
    """Rows [n, …] that are read as they are asked for, as :class:`ShardedArray` does."""

    path: str
    marks: list[list[Any]]

    def __len__(self) -> int: ...

    @property
    def shape(self) -> list[int]: ...

    @property
    def row_bytes(self) -> int: ...

    @property
    def ends(self) -> np.ndarray[Any, Any]:
        """Where each group of rows ends that is read as one."""

    def take(self, rows: Tensor) -> Tensor: ...

    def digest(self, digest: int = 0) -> int: ...

    def advise(self, sequential: bool) -> None: ...


def mapped(*parts: str | Path | tuple[str | Path, str]) -> MappedSamples:
    """Samples in files, for any loader: inputs first, targets last, read as they are needed.

    Each part is an .npy, .safetensors or .pt file, or a folder of such shards, which form one
    array [n, …] in the order of their names; ``(path, name)`` selects a tensor of a file with
    several. Values are not checked in advance. Raises DataError for files that can't be read,
    shards that do not fit each other, or parts of different lengths.

    >>> import numpy as np
    >>> from gdtrain import BatchLoader, mapped
    >>> np.save("x.npy", np.ones((4, 2), np.float32))
    >>> np.save("y.npy", np.zeros((4, 1), np.float32))
    >>> BatchLoader(mapped("x.npy", "y.npy")).num_samples
    4
    """
    if not parts:
        raise DataError("no files given; give inputs and targets")
    arrays = [
        ShardedArray(*part) if isinstance(part, tuple) else ShardedArray(part) for part in parts
    ]
    return MappedSamples(arrays)


def held_out(num_samples: int, fraction: float, seed: int) -> Tensor:
    """Which rows validate, rising: one at random of each of round(fraction · n) equal strata.

    As many as :func:`gdtrain.data.tables.preparation.split` holds out, at least one unless the
    fraction is 0, spread evenly over the files; nothing of the length n is made. Raises DataError
    if that leaves none to train on.
    """
    if fraction == 0:
        return torch.arange(0, device="cpu")
    count = max(1, round(fraction * num_samples))
    if count >= num_samples:
        raise DataError(
            f"no samples to train on: validation_fraction {fraction:g} takes "
            f"{count} of {num_samples}; use a smaller fraction"
        )
    edges = torch.arange(count + 1, device="cpu") * num_samples // count
    draws = torch.randint(2**62, (count,), generator=generator(seed, SPLIT_KEY), device="cpu")
    return edges[:-1] + draws % edges.diff()


class MappedSamples(Samples):
    """Samples that are rows of mapped arrays; see :func:`mapped`.

    arrays: each [n, …]; inputs first, targets last, a single one is inputs without targets.
    only: the rows that count, [k] int64. without: rows that do not, [k] int64, rising.
    """

    def __init__(
        self,
        arrays: Sequence[RowArray],
        *,
        only: Tensor | None = None,
        without: Tensor | None = None,
    ) -> None:
        self.arrays = list(arrays)
        lengths = [len(array) for array in self.arrays]
        if len(set(lengths)) > 1:
            text = " and ".join(f"{a.path} {n}" for a, n in zip(arrays, lengths, strict=True))
            raise DataError(f"different numbers of samples: {text}; each sample needs one of each")
        self._only = only
        # The i-th row left out has rows[i] - i rows before it that stay.
        self._staying = None
        if without is not None:
            self._staying = without - torch.arange(len(without), device="cpu")
        self._without = without
        left_out = 0 if without is None else len(without)
        self._length = lengths[0] - left_out if only is None else len(only)

    def __len__(self) -> int:
        return self._length

    def state(self) -> Any:
        return self.marks()

    def marks(self) -> list[list[Any]]:
        return [mark for array in self.arrays for mark in array.marks]

    @property
    def groups(self) -> Any:
        ends = self.arrays[0].ends
        if self._only is not None:
            return np.searchsorted(self._only.numpy(), ends)
        left_out = 0 if self._without is None else np.searchsorted(self._without.numpy(), ends)
        return ends - left_out

    def digest(self) -> int:
        """Of all bytes of the arrays, and of which rows count."""
        digest = 0
        for rows in (self._only, self._staying):
            digest = digest if rows is None else crc32(rows, digest)
        for array in self.arrays:
            digest = array.digest(digest)
        return digest

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        for array in self.arrays:
            array.advise(sequential=plan.indices is None)
        share = -(-plan.batch_size // plan.world_size)
        if share * self._row_bytes > LAZY_BYTES:
            return map(partial(self._lazy, plan), range(start, len(plan)))
        return _cut(self._chunks(plan, start))

    def _chunks(self, plan: Plan, start: int) -> Iterator[Chunk]:
        at_once = max(1, CHUNK_BYTES // (plan.batch_size * self._row_bytes))
        for first in range(start, len(plan), at_once):
            chosen, begin, sizes = plan.rows(first, min(first + at_once, len(plan)))
            places = chosen
            if places is None:
                places = torch.arange(begin, begin + sum(sizes), device="cpu")
            yield self._take(self.arrays, places), places, sizes

    def _lazy(self, plan: Plan, number: int) -> Batch:
        begin, end = plan.bounds(number)
        if begin == end:  # of a short last batch, a rank may have no share
            return next(_cut(self._chunks(plan, number)))

        def chunks(start: int, size: int, arrays: list[RowArray]) -> Iterator[Chunk]:
            at_once = size * max(1, CHUNK_BYTES // (size * self._row_bytes))
            for first in range(begin + start, end, at_once):
                places = plan.take(first, min(first + at_once, end))
                full, ragged = divmod(len(places), size)
                yield self._take(arrays, places), places, [size] * full + [ragged] * (ragged > 0)

        def read(start: int, size: int, only_targets: bool) -> Iterator[Batch]:
            if not only_targets:
                return _cut(chunks(start, size, self.arrays))
            labels = _cut(chunks(start, size, self.arrays[1:][-1:]))
            return (Batch(None, batch.inputs, batch.indices) for batch in labels)

        return LazyBatch(read, end - begin, lambda low, high: plan.take(begin + low, begin + high))

    def _take(self, arrays: Sequence[RowArray], places: Tensor) -> list[Tensor]:
        rows = places
        if self._only is not None:
            rows = self._only[places]
        elif self._staying is not None:
            rows = places + torch.searchsorted(self._staying, places, right=True)
        return [array.take(rows) for array in arrays]

    @property
    def _row_bytes(self) -> int:
        return sum(array.row_bytes for array in self.arrays)


def _cut(chunks: Iterator[Chunk]) -> Iterator[Batch]:
    for rows, places, sizes in read_ahead(chunks):
        yield from cut(rows, places, sizes)
