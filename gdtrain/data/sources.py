"""From what a user has to samples: tensors and arrays as they are, a Dataset by DataLoader."""

from __future__ import annotations

import pickle
import random
import re
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.collate import OWN, Collated, CollateFn, collate, stack
from gdtrain.data.orders.order import generator, mix
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
    transform: see :class:`~gdtrain.data.sources.DatasetSamples`; tensors are then read
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


# ── a torch Dataset, whose samples workers read by torch's DataLoader ───────────────────

Wanted = tuple[int, list[int]]  # a batch's seed for a worker, and its samples
Transform = Callable[[Any, torch.Generator], Any]  # of a sample, with numbers of its own to draw


_SECONDS_TO_END = 5
"""For a worker to be seen to have ended when its connection has: the machine may be busy."""


class DatasetSamples(Samples):
    """Samples of a map-style torch ``Dataset``.

    Items may be ``(x, y)``, ``(x1, x2, …, y)`` or anything else that the collate function
    turns into a batch; what is not a tuple or list counts as inputs without targets. A dataset
    that has ``set_epoch``, or is a subset of one, is told the epoch before its items are read.

    transform: ``(item, generator) -> item``, for each item as it is read. The torch.Generator is
    seeded from (seed, epoch, index), so what is drawn from it is a pure function of these.

    Items and the collate function may draw random numbers. Without workers they draw from the
    global generators, as in a hand-written loop. In a worker, the global generators of Python,
    numpy and torch are seeded for each batch from seed, epoch, its number and the rank: so a
    batch is the same wherever reading began, and however often it is read. What a worker raises
    is raised here, with the worker's traceback as its cause; what can't be pickled as a
    RuntimeError with its text.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        num_workers: int = 0,
        collate_fn: CollateFn | None = None,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        self.dataset = dataset
        self.num_workers = whole_number("num_workers", num_workers, minimum=0)
        self.collate_fn = collate if collate_fn is None else collate_fn
        self.seed = seed
        self.transform = transform
        self._collated = Collated(self.collate_fn)
        self._told: int | None = None  # the epoch that the dataset was told last

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def has_own_collate(self) -> bool:
        return self.collate_fn not in OWN

    def reading(self) -> tuple[Any, ...]:
        """What decides, beside the dataset, which batches are made of it."""
        return self.transform, self.collate_fn, self.num_workers, self.seed

    def fingerprint(self, version: int = 2) -> int | None:
        """The :meth:`digest`; of version 1, up to which items were read, None if they are drawn."""
        if version > 1:
            return self.digest()
        with _generators_kept():
            first, second = self.sampled_digest(), self.sampled_digest()
        return first if first == second else None

    def digest(self) -> int:
        """Of the dataset's length and type: to read its items is left to training."""
        kind = type(self.dataset)
        return zlib.crc32(f"{len(self)} {kind.__module__}.{kind.__qualname__}".encode())

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        self._tell(plan.epoch)
        items = _Items(self.dataset, self.transform, (self.seed, plan.epoch))
        if self.num_workers:
            yield from self._by_workers(items, plan, start)
            return
        for number in range(start, len(plan)):
            self._tell(plan.epoch)  # a look may have told it another one meanwhile
            places = plan.batch_indices(number)
            some = places if len(places) else _stand_in(plan, number)
            batch = self._collated.batch(self.collate_fn(items.at(some.tolist())), some)
            yield batch if some is places else batch.take(slice(0, 0))

    def _by_workers(self, items: _Items, plan: Plan, start: int) -> Iterator[Batch]:
        """As :meth:`read`, by a DataLoader."""
        loader = DataLoader(
            items,
            batch_sampler=_Batches(plan, start, self.seed),  # type: ignore[arg-type]
            num_workers=self.num_workers,
            collate_fn=_Collate(self.collate_fn),
            # A generator of its own: DataLoader would draw the workers' seed from the global one,
            # and the model's dropout would then depend on how its data is read.
            generator=torch.Generator().manual_seed(mix(self.seed, plan.epoch)),
        )
        with warnings.catch_warnings():
            # JAX, where an engine has it, warns at each fork of what its threads may hold; but
            # workers never call it.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            collated = iter(loader)
        try:
            for number in range(start, len(plan)):
                self._tell(plan.epoch)
                yield self._batch(_next(collated), plan, number)
        finally:
            # Now, for a traceback may hold the iterator for long; and while it lives, torch raises
            # the death of a worker again wherever the process is told that a child has ended.
            with suppress(RuntimeError):  # of a worker that had died
                collated._shutdown_workers()  # type: ignore[attr-defined]

    def _batch(self, item: Any, plan: Plan, number: int) -> Batch:
        places = plan.batch_indices(number)
        if len(places):
            return self._collated.batch(item, places)
        return self._collated.batch(item, _stand_in(plan, number)).take(slice(0, 0))

    def _tell(self, epoch: int) -> None:
        if epoch != self._told:
            tell_epoch(self.dataset, epoch)
        self._told = epoch


class TransformedItems(DatasetSamples):
    """Rows of tensors in memory that a transform changes one by one, told apart by their values."""

    dataset: TensorItems

    def state(self) -> Any:
        return self.dataset.rows.state()

    def fingerprint(self, version: int = 2) -> int | None:
        return self.dataset.rows.fingerprint(version)

    def digest(self) -> int:
        return self.dataset.rows.digest()


def tell_epoch(dataset: Any, epoch: int) -> None:
    """Tell a dataset the epoch if it has ``set_epoch``; else those of which it is made."""
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    elif isinstance(dataset, Subset):
        tell_epoch(dataset.dataset, epoch)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            tell_epoch(part, epoch)


class WorkerError(Exception):
    """The traceback of what a worker has raised; the cause of what is raised here."""


class _Batches:
    """What DataLoader is to fetch: the samples of each batch of a plan, from one on."""

    def __init__(self, plan: Plan, start: int, seed: int) -> None:
        self.plan, self.start, self.seed = plan, start, seed

    def __len__(self) -> int:
        return len(self.plan) - self.start

    def __iter__(self) -> Iterator[Wanted]:
        plan = self.plan
        for number in range(self.start, len(plan)):
            rows = plan.batch_indices(number)
            if not len(rows):
                rows = _stand_in(plan, number)
            yield mix(self.seed, plan.epoch, number, plan.rank), rows.tolist()


def _next(collated: Iterator[Any]) -> Any:
    """The next collated batch. Raises what a worker has raised, DataError for one that has died."""
    try:
        item = next(collated)
    except (OSError, EOFError, RuntimeError) as error:
        died = death_of_worker(error)
        if died is not None or not isinstance(error, RuntimeError):
            died = _found_dead(getattr(collated, "_workers", ())) or died
        if died is not None:
            raise died from error
        raise
    if isinstance(item, _Raised):
        raise item.error from WorkerError(item.text)
    return item


def death_of_worker(error: BaseException) -> DataError | None:
    """What torch says of a worker that has died, wherever Python was when it noticed."""
    told = re.match(r"DataLoader worker \(pid\S* [^)]*\) (.*)", str(error))
    if not isinstance(error, RuntimeError) or told is None:
        return None
    how = told[1].partition(". ")[0].rstrip(".")
    return _dead(how.removeprefix("is "))


def _found_dead(workers: Sequence[Any]) -> DataError | None:
    """The connection to a worker ends a moment before the worker itself is seen to have."""
    codes: list[int | None] = []
    for _ in range(2):
        try:
            ended = wait([worker.sentinel for worker in workers], timeout=_SECONDS_TO_END)
            for worker in workers:
                if worker.sentinel in ended:
                    worker.join()  # files are closed before the system has an exit code
            codes = [worker.exitcode for worker in workers]
            break
        except RuntimeError as told:  # torch's news of the same, which may come at any moment
            if (died := death_of_worker(told)) is not None:
                return died
    # Ended by its own process, by SIGTERM, its code is 0.
    return next((_dead(f"exit code {code}") for code in codes if code is not None), None)


def _dead(how: str) -> DataError:
    return DataError(
        f"a DataLoader worker has died ({how}) while it read items; where memory ran out, give "
        "fewer num_workers or smaller batches"
    )


def _stand_in(plan: Plan, number: int) -> Tensor:
    """A sample to see what batches are made of, where a rank has none of this one."""
    start = plan.first_draw(number)
    return plan.take(start, start + 1)


class _Items(Dataset[Any]):
    """The items of a dataset, a batch at a time."""

    def __init__(self, dataset: Any, transform: Transform | None, seeds: tuple[int, int]) -> None:
        self.dataset, self.transform, self.seeds = dataset, transform, seeds

    def __getitems__(self, wanted: Wanted) -> list[Any] | _Raised:
        seed, rows = wanted
        random.seed(seed)
        np.random.seed([seed % 2**32, seed >> 32])
        torch.default_generator.manual_seed(seed)
        try:
            return self.at(rows)
        except Exception as error:
            return _Raised.of(error)

    def at(self, rows: list[int]) -> list[Any]:
        """Those of a batch."""
        items: list[Any]
        if getattr(self.dataset, "__getitems__", None):
            items = self.dataset.__getitems__(rows)
        else:
            items = [self.dataset[row] for row in rows]
        if self.transform is None:
            return items
        pairs = zip(items, rows, strict=True)
        return [self.transform(item, generator(*self.seeds, row)) for item, row in pairs]


class _Collate:
    """A collate function, or what its items or itself have raised in a worker."""

    def __init__(self, function: CollateFn) -> None:
        self.function = function

    def __call__(self, items: list[Any] | _Raised) -> Any:
        if isinstance(items, _Raised):
            return items
        try:
            return self.function(items)
        except Exception as error:
            return _Raised.of(error)


class _Raised:
    """What a worker has raised, on its way to the trainer."""

    def __init__(self, error: Exception, text: str) -> None:
        self.error, self.text = error, text

    @classmethod
    def of(cls, error: Exception) -> _Raised:
        """To be called while the error is handled."""
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it can't go to another process, and DataLoader would wait for it
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, text)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put the global generators of Python, numpy and torch back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
