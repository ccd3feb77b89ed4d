"""From what a user has to samples: tensors and arrays as they are, a Dataset by DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from gdtrain.data.batch import Batch
from gdtrain.data.collate import collate, stack
from gdtrain.data.dataset_samples import DatasetSamples, Transform
from gdtrain.data.samples import Samples, TensorSamples, TransformedSamples
from gdtrain.data.streams.feed import IterableFeed
from gdtrain.data.streams.stream import StreamSamples
from gdtrain.data.tables.preparation import as_tensor, check_finite
from gdtrain.data.tree import children, is_inner, rebuilt
from gdtrain.errors import ConfigError, DataError


def no_loader(name: str, loader: DataLoader[Any]) -> str:
    """What is wrong with a torch DataLoader."""
    return (
        f"{name}: a torch DataLoader has no order by seed and epoch; give its data set to a "
        f"loader, as in MiniBatchLoader(dataset, {loader.batch_size or 32})"
    )


def as_samples(
    data: Any,
    *,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
    transform: Transform | None = None,
) -> Samples:
    """Turn what a user has into samples.

    data: a tensor or array, a tuple of them (inputs first, targets last), a Dataset, or Samples.
    An ``IterableDataset`` is a stream. A ``TensorDataset`` is taken as its tensors. In a tuple or
    dict of tensors or arrays, inputs and targets have it too, and a dict alone is inputs. A list
    whose items are all tuples or dicts is one of samples, as for a DataLoader; any is, where a
    collate_fn is given.
    transform: see :class:`~gdtrain.data.dataset_samples.DatasetSamples`; tensors are then read
    one by one, as ``(x, y)``, ``(x1, x2, y)``, ``x`` alone or in the structure that they have.
    Raises DataError for empty data, different lengths, or values that are not finite, and
    ConfigError for a setting that would have no effect.
    """
    is_asked = num_workers or collate_fn is not None or transform is not None
    if isinstance(data, Samples) and not is_asked:
        samples = data
    else:
        samples = _samples_of(data, num_workers, collate_fn, seed, allow_nonfinite, transform)
    if not isinstance(samples, StreamSamples) and len(samples) == 0:
        raise DataError("the data set is empty; at least one sample is needed")
    return samples


def _samples_of(
    data: Any,
    num_workers: int,
    collate_fn: Callable[[list[Any]], Any] | None,
    seed: int,
    allow_nonfinite: bool,
    transform: Transform | None,
) -> Samples:
    if transform is not None and not callable(transform):
        text = f"must be a function (sample, generator) -> sample, got {transform!r}"
        raise ConfigError.of("transform", text)
    if isinstance(data, DataLoader):
        raise DataError(no_loader("data", data))
    if isinstance(data, Iterator):
        text = "an iterator gives its samples once; give them as a list, such as list(data)"
        raise DataError(f"data: {text}, or as tensors")
    if isinstance(data, tuple | list) and len(data) == 2 and data[1] is None:
        data = data[0]  # no targets
    if isinstance(data, list) and (collate_fn is not None or _are_samples(data)):
        data = ListedSamples(data)
    if isinstance(data, IterableDataset):
        for key, value, text in (
            ("transform", transform, "; change its samples where they are made"),
            ("num_workers", num_workers, ", which is read as it is trained on; omit it"),
        ):
            if value:
                raise ConfigError.of(key, f"has no effect on an IterableDataset{text}")
        return StreamSamples(IterableFeed(data, collate_fn or collate))
    if isinstance(data, Dataset) and type(data) is not TensorDataset:
        if not hasattr(data, "__len__"):
            raise DataError(f"the dataset {type(data).__name__} has no __len__; give it one")
        return DatasetSamples(data, num_workers, collate_fn, seed, transform)
    if transform is not None:
        items = _items_of(as_samples(data, allow_nonfinite=allow_nonfinite), data)
        return TransformedItems(items, num_workers, collate_fn or stack, seed, transform)
    if num_workers or collate_fn is not None:
        key = "num_workers" if num_workers else "collate_fn"
        raise ConfigError.of(key, "has no effect on tensors, which are sliced, not loaded; omit it")
    if isinstance(data, TensorDataset):
        return TensorDatasetSamples(data, allow_nonfinite)
    is_list = isinstance(data, tuple | list) and not hasattr(data, "_fields")
    parts = data if is_list else (data,)
    if any(map(_is_tree, parts)):
        return _arranged_samples(parts, allow_nonfinite)
    return TensorSamples(_tensors(parts, allow_nonfinite))


def _items_of(rows: Samples, data: Any) -> TensorItems:
    """Rows one by one, for a transform. Raises ConfigError for data that are no tensors."""
    if isinstance(rows, ArrangedSamples):
        return TensorItems(rows.samples, rows.function)
    if isinstance(rows, TensorSamples):
        return TensorItems(rows)
    text = f"can't be applied to {type(data).__name__}; give tensors or a Dataset"
    raise ConfigError.of("transform", text)


class ListedSamples(Dataset[Any]):
    """A list of samples, each of whatever parts."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


def _are_samples(data: list[Any]) -> bool:
    return bool(data) and all(
        isinstance(item, tuple | dict) or (is_inner(item) and not isinstance(item, list))
        for item in data
    )


class TensorDatasetSamples(TensorSamples):
    """Samples of a ``TensorDataset``, also when it is given other tensors later."""

    def __init__(self, dataset: TensorDataset, allow_nonfinite: bool) -> None:
        self.dataset, self.allow_nonfinite = dataset, allow_nonfinite
        self._take(dataset.tensors)

    def __reduce__(self) -> Any:
        return TensorDatasetSamples, (self.dataset, self.allow_nonfinite)

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        given = self.dataset.tensors
        if len(given) != len(self._given) or not all(map(is_, given, self._given)):
            self._take(given)
        return self._checked

    def _take(self, given: Sequence[Tensor]) -> None:
        self._checked = tuple(_tensors(given, self.allow_nonfinite))
        self._given, self._viewed = tuple(given), None


@dataclass(frozen=True)
class _Arranged:
    """Puts a batch's tensors where they stand in the user's tuples and dicts.

    inputs, targets: trees like these, with the tensors' numbers as leaves.
    """

    inputs: Any
    targets: Any

    def __call__(self, batch: Batch) -> Batch:
        several = isinstance(batch.inputs, tuple)
        tensors = [*(batch.inputs if several else [batch.inputs]), batch.targets]
        return batch.with_trees(_filled(self.inputs, tensors), _filled(self.targets, tensors))


def _filled(tree: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(tree, int):
        return tensors[tree]
    return tree if tree is None else rebuilt(tree, [_filled(c, tensors) for _, c in children(tree)])


class ArrangedSamples(TransformedSamples):
    """Rows of tensors in memory, in the user's tuples and dicts."""

    samples: TensorSamples
    function: _Arranged

    def of(self, samples: Samples) -> ArrangedSamples:
        """Other rows, such as these on a device, in the same tuples and dicts."""
        return ArrangedSamples(samples, self.function)

    @property
    def targets(self) -> Tensor | None:
        return self.samples.targets if isinstance(self.function.targets, int) else None


def rows_in_memory(samples: Samples) -> TensorSamples | None:
    """The tensors in memory that samples are rows of; None of others."""
    if isinstance(samples, ArrangedSamples):
        return samples.samples
    return samples if isinstance(samples, TensorSamples) else None


class TensorItems(Dataset[Any]):
    """Rows of tensors in memory one by one, in the user's tuples and dicts."""

    def __init__(self, rows: TensorSamples, arranged: _Arranged | None = None) -> None:
        self.rows, self.arranged = rows, arranged

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        parts = [tensor[row].clone() for tensor in self.rows.tensors]  # a transform may write
        if self.arranged is None:
            return parts[0] if len(parts) == 1 else tuple(parts)
        inputs = _filled(self.arranged.inputs, parts)
        if self.arranged.targets is None:
            return inputs
        return inputs, _filled(self.arranged.targets, parts)


class TransformedItems(DatasetSamples):
    """Rows of tensors in memory that a transform changes one by one, told apart by their values."""

    dataset: TensorItems

    def state(self) -> Any:
        return self.dataset.rows.state()

    def fingerprint(self, version: int = 2) -> int | None:
        return self.dataset.rows.fingerprint(version)

    def digest(self) -> int:
        return self.dataset.rows.digest()


def _arranged_samples(parts: Sequence[Any], allow_nonfinite: bool) -> ArrangedSamples:
    """Samples whose inputs or targets are tuples or dicts of tensors."""
    pair = (parts[0] if len(parts) <= 2 else tuple(parts[:-1]), *parts[1:][-1:])
    leaves: list[Any] = []
    names: list[str] = []

    def numbered(tree: Any, name: str) -> Any:
        if not _is_tree(tree):
            leaves.append(tree)
            names.append(name)
            return len(leaves) - 1
        return rebuilt(tree, [numbered(c, f"{name}[{key!r}]") for key, c in children(tree)])

    inputs, *targets = map(numbered, pair, ["inputs", "targets"])
    arranged = _Arranged(inputs, targets[0] if targets else None)
    return ArrangedSamples(TensorSamples(_tensors(leaves, allow_nonfinite, names)), arranged)


def _is_tree(part: Any) -> bool:
    """Whether it is a dict, dataclass or tuple of tensors, and not an array, row by row."""
    if not isinstance(part, tuple) or hasattr(part, "_fields"):
        return is_inner(part) and not isinstance(part, list)
    return any(isinstance(item, Tensor | np.ndarray) or _is_tree(item) for item in part)


def _tensors(
    parts: Sequence[Any], allow_nonfinite: bool, names: Sequence[str] | None = None
) -> list[Tensor]:
    """Inputs and targets as tensors [n, …], checked. names: of the parts, for messages."""
    if not parts:
        raise DataError("no tensors given; give inputs and targets")
    if names is None:
        names = ["inputs", "targets"][: len(parts)]
        if len(parts) > 2:
            names = [*(f"inputs[{i}]" for i in range(len(parts) - 1)), "targets"]
    tensors = [as_tensor(part, name) for part, name in zip(parts, names, strict=True)]
    lengths = [tensor.shape[0] for tensor in tensors]
    if len(set(lengths)) > 1:
        message = " and ".join(f"{name} {n}" for name, n in zip(names, lengths, strict=True))
        raise DataError(f"different numbers of samples: {message}; each sample needs one of each")
    if not allow_nonfinite:
        for tensor, name in zip(tensors, names, strict=True):
            check_finite(tensor, name)
    return tensors
