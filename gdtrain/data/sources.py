"""From what a user has to samples: tensors and arrays as they are, a Dataset by DataLoader."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.collate import as_batch, collate
from gdtrain.data.feed import IterableFeed
from gdtrain.data.order import mix
from gdtrain.data.samples import Samples, TensorSamples, as_tensor, check_finite
from gdtrain.data.settings import whole_number
from gdtrain.data.stream import StreamSamples
from gdtrain.errors import ConfigError, DataError


def as_samples(
    data: Any,
    *,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
) -> Samples:
    """Turn what a user has into samples.

    data: a tensor or array, a tuple of them (inputs first, targets last), a Dataset, or Samples.
    An ``IterableDataset`` is a stream. A ``TensorDataset`` is taken as its tensors.
    Raises DataError for empty data, different lengths, or values that are not finite, and
    ConfigError for a setting that would have no effect.
    """
    if isinstance(data, IterableDataset):
        if num_workers:
            said = "has no effect on an IterableDataset, which is read as it is trained on; omit it"
            raise ConfigError.of("num_workers", said)
        return StreamSamples(IterableFeed(data, collate_fn or collate))
    samples: Samples
    if isinstance(data, Dataset) and type(data) is not TensorDataset:
        if not hasattr(data, "__len__"):
            raise DataError(f"the dataset {type(data).__name__} has no __len__; give it one")
        samples = DatasetSamples(data, num_workers, collate_fn, seed)
    elif num_workers or collate_fn is not None:
        key = "num_workers" if num_workers else "collate_fn"
        raise ConfigError.of(key, "has no effect on tensors, which are sliced, not loaded; omit it")
    elif isinstance(data, Samples):
        samples = data
    else:
        parts = data.tensors if isinstance(data, TensorDataset) else data
        samples = _tensor_samples(
            parts if isinstance(parts, tuple | list) else (parts,), allow_nonfinite
        )
    if not isinstance(samples, StreamSamples) and len(samples) == 0:
        raise DataError("the data set is empty; at least one sample is needed")
    return samples


def _tensor_samples(parts: Sequence[Any], allow_nonfinite: bool) -> TensorSamples:
    if not parts:
        raise DataError("no tensors given; give inputs and targets")
    names = _part_names(len(parts))
    tensors = [as_tensor(part, name) for part, name in zip(parts, names, strict=True)]
    lengths = [tensor.shape[0] for tensor in tensors]
    if len(set(lengths)) > 1:
        said = " and ".join(f"{name} {n}" for name, n in zip(names, lengths, strict=True))
        raise DataError(f"different numbers of samples: {said}; each sample needs one of each")
    if not allow_nonfinite:
        for tensor, name in zip(tensors, names, strict=True):
            check_finite(tensor, name)
    return TensorSamples(tensors)


def _part_names(count: int) -> list[str]:
    if count <= 2:
        return ["inputs", "targets"][:count]
    return [f"inputs[{i}]" for i in range(count - 1)] + ["targets"]


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
        self.dataset = dataset
        self.num_workers = whole_number("num_workers", num_workers, minimum=0)
        self.collate_fn = collate if collate_fn is None else collate_fn
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
        with warnings.catch_warnings():
            # JAX, where an engine has it, warns at each fork of what its threads may hold; but
            # workers never call it.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            items = iter(collated)
        for item, rows in zip(items, indices, strict=True):
            yield Batch(*as_batch(item), rows)
