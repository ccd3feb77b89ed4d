"""From what a user has to samples: tensors and arrays as they are, a Dataset by DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from gdtrain.data.arrays import as_tensor, check_finite
from gdtrain.data.collate import collate
from gdtrain.data.dataset_samples import DatasetSamples
from gdtrain.data.feed import IterableFeed
from gdtrain.data.samples import Samples, TensorSamples
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
    elif isinstance(data, TensorDataset):
        samples = TensorDatasetSamples(data, allow_nonfinite)
    else:
        parts = data if isinstance(data, tuple | list) else (data,)
        samples = TensorSamples(_tensors(parts, allow_nonfinite))
    if not isinstance(samples, StreamSamples) and len(samples) == 0:
        raise DataError("the data set is empty; at least one sample is needed")
    return samples


class TensorDatasetSamples(TensorSamples):
    """Samples of a ``TensorDataset``, also when it is given other tensors later."""

    def __init__(self, dataset: TensorDataset, allow_nonfinite: bool) -> None:
        self.dataset, self.allow_nonfinite = dataset, allow_nonfinite
        self._given: tuple[Any, ...] = ()
        self._hold(self.tensors)

    def __reduce__(self) -> Any:
        return TensorDatasetSamples, (self.dataset, self.allow_nonfinite)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        given = self.dataset.tensors
        if len(given) != len(self._given) or not all(map(is_, given, self._given)):
            self._hold(_tensors(given, self.allow_nonfinite))
            self._given = tuple(given)
        return self._tensors


def _tensors(parts: Sequence[Any], allow_nonfinite: bool) -> list[Tensor]:
    """Inputs and targets as tensors [n, …], checked."""
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
    return tensors


def _part_names(count: int) -> list[str]:
    if count <= 2:
        return ["inputs", "targets"][:count]
    return [f"inputs[{i}]" for i in range(count - 1)] + ["targets"]
