"""What a loader reads from: tensors in memory, sliced or gathered, or a map-style Dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from gdtrain.data.batch import Batch, Plan, map_tensors
from gdtrain.data.order import mix
from gdtrain.errors import ConfigError, DataError

# One gather serves a run of batches of about this size: large enough that its fixed cost
# vanishes, small enough to stay in a core's cache until the batches are used.
GATHER_BYTES = 1 << 20
MAX_BATCHES_PER_GATHER = 1024


class Samples(ABC):
    """A finite, indexable set of samples that can read the batches of a plan."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        """The plan's batches from number ``start`` on, in order."""

    @property
    def targets(self) -> Tensor | None:
        """All targets [n, …] where they are in memory, else None."""
        return None


class TensorSamples(Samples):
    """Samples that are rows of tensors in memory.

    tensors: each [n, …]. The last one holds the targets, those before it the inputs; a single
    tensor is inputs without targets.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

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
        size = plan.batch_size
        device = self.tensors[0].device
        chosen = None if plan.indices is None else plan.indices.to(device)
        batches_per_gather = self._batches_per_gather(size)
        for first in range(start, len(plan), batches_per_gather):
            begin = first * size
            end = min(begin + batches_per_gather * size, plan.num_samples)
            rows = slice(begin, end)
            columns = [
                torch.split(t[rows] if chosen is None else t.index_select(0, chosen[rows]), size)
                for t in self.tensors
            ]
            indices = torch.split(plan.take(begin, end), size)
            if len(columns) == 1:
                yield from (Batch(x, None, i) for x, i in zip(columns[0], indices, strict=True))
            elif len(columns) == 2:
                yield from map(Batch, columns[0], columns[1], indices)
            else:
                inputs = zip(*columns[:-1], strict=True)
                yield from map(Batch, inputs, columns[-1], indices)

    def _batches_per_gather(self, batch_size: int) -> int:
        bytes_per_batch = max(1, self.nbytes * batch_size // len(self))
        return max(1, min(MAX_BATCHES_PER_GATHER, GATHER_BYTES // bytes_per_batch))


class DatasetSamples(Samples):
    """Samples of a map-style torch ``Dataset``, read and collated by torch's ``DataLoader``.

    Items may be ``(x, y)``, ``(x1, x2, …, y)`` or anything else that the collate function
    turns into a batch; what is not a tuple or list counts as inputs without targets.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int = 0,
    ) -> None:
        if num_workers < 0:
            raise ConfigError.of("num_workers", f"must be >= 0, got {num_workers}")
        self.dataset = dataset
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        indices = [plan.batch_indices(number) for number in range(start, len(plan))]
        # A generator of its own: DataLoader would draw the workers' seed from the global RNG,
        # and the model's dropout would then depend on how its data is read.
        worker_seeds = torch.Generator().manual_seed(mix(self.seed, plan.epoch))
        collated = DataLoader(
            self.dataset,
            batch_sampler=[rows.tolist() for rows in indices],
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            generator=worker_seeds,
        )
        for item, rows in zip(collated, indices, strict=True):
            if isinstance(item, tuple | list) and len(item) > 1:
                inputs = item[0] if len(item) == 2 else tuple(item[:-1])
                yield Batch(inputs, item[-1], rows)
            else:
                yield Batch(item[0] if isinstance(item, tuple | list) else item, None, rows)


class CastSamples(Samples):
    """Samples whose floating-point tensors are cast to another dtype as they are read."""

    def __init__(self, samples: Samples, dtype: torch.dtype) -> None:
        self.samples = samples
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

        for batch in self.samples.read(plan, start):
            inputs, targets = map_tensors(batch.inputs, cast), map_tensors(batch.targets, cast)
            yield Batch(inputs, targets, batch.indices)


def as_samples(
    data: Any,
    *,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
) -> Samples:
    """Turn what a user has into samples.

    data: a tensor or array, a tuple of them (inputs first, targets last), a map-style Dataset,
    or Samples. A ``TensorDataset`` is taken as its tensors.
    Raises DataError for empty data, different lengths, or values that are not finite, and
    ConfigError for a setting that would have no effect.
    """
    if isinstance(data, IterableDataset):
        raise DataError("an IterableDataset has no length and no order; give a map-style Dataset")
    if isinstance(data, Dataset) and type(data) is not TensorDataset:
        if not hasattr(data, "__len__"):
            raise DataError(f"the dataset {type(data).__name__} has no __len__; give it one")
        samples: Samples = DatasetSamples(data, num_workers, collate_fn, seed)
        if len(samples) == 0:
            raise DataError("the data set is empty; at least one sample is needed")
        return samples
    if num_workers or collate_fn is not None:
        key = "num_workers" if num_workers else "collate_fn"
        raise ConfigError.of(key, "has no effect on tensors, which are sliced, not loaded; omit it")
    if isinstance(data, Samples):
        return data
    parts = data.tensors if isinstance(data, TensorDataset) else data
    return _tensor_samples(parts if isinstance(parts, tuple | list) else (parts,), allow_nonfinite)


def _tensor_samples(parts: Sequence[Any], allow_nonfinite: bool) -> TensorSamples:
    if not parts:
        raise DataError("no tensors given; give inputs and targets")
    names = _part_names(len(parts))
    tensors = [as_tensor(part, name) for part, name in zip(parts, names, strict=True)]
    lengths = [tensor.shape[0] for tensor in tensors]
    if len(set(lengths)) > 1:
        said = " and ".join(f"{name} {n}" for name, n in zip(names, lengths, strict=True))
        raise DataError(f"different numbers of samples: {said}; each sample needs one of each")
    if lengths[0] == 0:
        raise DataError("the data set is empty; at least one sample is needed")
    if not allow_nonfinite:
        for tensor, name in zip(tensors, names, strict=True):
            check_finite(tensor, name)
    return TensorSamples(tensors)


def _part_names(count: int) -> list[str]:
    if count <= 2:
        return ["inputs", "targets"][:count]
    return [f"inputs[{i}]" for i in range(count - 1)] + ["targets"]


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a tensor [n, …] that shares its memory where that is possible."""
    if isinstance(value, Tensor):
        tensor = value
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            raise DataError(f"{name}: an array of {array.dtype} is not numeric; encode it first")
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        # torch shares memory only with native, writable, forward-strided arrays.
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        writable = native if native.flags.writeable else native.copy()
        tensor = torch.from_numpy(np.ascontiguousarray(writable))
        if array.ndim == 0:
            tensor = tensor.reshape(())
    if tensor.ndim == 0:
        raise DataError(f"{name}: a single number has no rows; give a tensor of shape [n, …]")
    return tensor


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise DataError, naming row and column, if a value is NaN or infinite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    # The sum is finite if every value is, barring overflow; it needs no second array.
    if torch.isfinite(tensor.sum(dtype=None if tensor.is_complex() else torch.float64)):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    if bad.shape[0] == 0:
        return
    row, *column = bad[0].tolist()
    place = f"row {row}" + (f", column {', '.join(map(str, column))}" if column else "")
    value = tensor[tuple(bad[0].tolist())].item()
    more = f" (and {bad.shape[0] - 1} more)" if bad.shape[0] > 1 else ""
    raise DataError(
        f"{name}: {place} is {value}{more}; remove the row or fill in a number before training"
    )
