"""Torch map-style Datasets through DataLoader, with and without workers."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader
from gdtrain.data.samples import CastSamples
from gdtrain.data.sources import DatasetSamples
from gdtrain.data.tree import map_tensors
from gdtrain.errors import ConfigError, DataError

X = torch.arange(14.0).reshape(7, 2)
Y = torch.arange(7)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Rows(Dataset[Any]):
    """Seven samples of a chosen kind."""

    def __init__(self, kind: str = "pair") -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 0 if self.kind == "empty" else 7

    def __getitem__(self, i: int) -> Any:
        x, y = X[i], Y[i]
        return {
            "pair": (x, y),
            "numbers": (float(i), i),
            "list": [x, y],
            "three": (x, -x, y),
            "one": (x,),
            "bare": x,
            "dict": {"a": x, "b": y},
            "named": (Pair(x, -x), y),
            "ragged": (X[0].repeat(i), y),
            "object": (object(), y),
        }[self.kind]


class Lengthless(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return X[i]


def collate_sum(samples: list[Any]) -> Any:
    return torch.stack([x.sum() for x, _ in samples]), torch.stack([y for _, y in samples])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("order", ["reshuffle", "sequential", [6, 6, 0, 1]])
def test_a_dataset_gives_the_batches_of_its_tensors(order: Any, num_workers: int) -> None:
    loaded = MiniBatchLoader(Rows(), 3, order=order, seed=2, num_workers=num_workers)
    sliced = MiniBatchLoader((X, Y), 3, order=order, seed=2)
    assert len(loaded) == len(sliced)
    for ours, theirs in zip(loaded, sliced, strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.targets, theirs.targets)
        assert torch.equal(ours.indices, theirs.indices)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_from_the_middle_is_the_tail_of_reading_from_the_start(num_workers: int) -> None:
    loader = SampleLoader(Rows(), num_workers=num_workers)
    plan = loader.plan(3)
    tail = [batch.targets.item() for batch in loader.samples.read(plan, 4)]
    assert tail == plan.take(4, 7).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_neither_consumes_nor_consults_global_random_state(num_workers: int) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    read = [batch.indices.tolist() for batch in MiniBatchLoader(Rows(), 3, num_workers=num_workers)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert read == [batch.indices.tolist() for batch in MiniBatchLoader(Rows(), 3)]


class Noisy(Dataset[Any]):
    """Augments with the random state that DataLoader gives its workers."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Tensor:
        return torch.rand(2)


def test_workers_random_state_comes_from_seed_and_epoch_alone() -> None:
    def noise(epoch: int, seed: int) -> list[Any]:
        torch.manual_seed(torch.initial_seed() + 1)  # must not matter
        loader = BatchLoader(Noisy(), num_workers=2, seed=seed)
        loader.set_epoch(epoch)
        return [batch.inputs.tolist() for batch in loader]

    assert noise(0, 0) == noise(0, 0)
    assert noise(0, 0) != noise(1, 0)
    assert noise(0, 0) != noise(0, 1)


def test_the_last_part_of_an_item_is_its_target() -> None:
    (batch,) = BatchLoader(Rows("three"))
    assert torch.equal(batch.inputs[0], X)
    assert torch.equal(batch.inputs[1], -X)
    assert torch.equal(batch.targets, Y)


def test_numbers_become_tensors() -> None:
    (batch,) = BatchLoader(Rows("numbers"))
    assert batch.inputs.tolist() == batch.targets.tolist() == list(range(7))


@pytest.mark.parametrize("kind", ["one", "bare"])
def test_an_item_of_one_part_has_no_target(kind: str) -> None:
    (batch,) = BatchLoader(Rows(kind))
    assert torch.equal(batch.inputs, X)
    assert batch.targets is None


def test_a_dict_is_inputs_without_targets() -> None:
    (batch,) = BatchLoader(Rows("dict"))
    assert torch.equal(batch.inputs["a"], X)
    assert torch.equal(batch.inputs["b"], Y)
    assert batch.targets is None


def test_named_tuples_keep_their_names_through_split_and_cast() -> None:
    samples = CastSamples(DatasetSamples(Rows("named")), torch.float64)
    (batch,) = samples.read(BatchLoader(Rows("named")).plan(0))
    micro = next(batch.split(2))
    assert torch.equal(micro.inputs.left, X[:2].double())
    assert torch.equal(micro.inputs.right, -X[:2].double())
    assert micro.targets.dtype == torch.int64


def test_a_mapping_that_is_no_dict_is_mapped_too() -> None:
    from collections import UserDict

    mapped = map_tensors(UserDict(a=Y, b=3), lambda t: t + 1)
    assert torch.equal(mapped["a"], Y + 1)
    assert mapped["b"] == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_collate_function_is_used(num_workers: int) -> None:
    (batch,) = BatchLoader(Rows(), num_workers=num_workers, collate_fn=collate_sum)
    assert torch.equal(batch.inputs, X.sum(dim=1))
    assert torch.equal(batch.targets, Y)


def test_a_subset_keeps_its_own_numbering() -> None:
    for batch in MiniBatchLoader(Subset(TensorDataset(X, Y), [5, 3, 1]), 2):
        assert torch.equal(batch.targets, torch.tensor([5, 3, 1])[batch.indices])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("ragged", "stack expects each tensor to be equal size, but got [0] at entry 0 and "),
        ("object", "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or "),
    ],
)
def test_samples_that_do_not_make_a_batch_are_refused(
    kind: str, reason: str, num_workers: int
) -> None:
    told = "the dataset's samples do not make a batch: "
    right = "; give samples of one shape, or a collate_fn"
    whole = f"^{re.escape(told + reason)}[^\n]*{re.escape(right)}$"
    with pytest.raises(DataError, match=whole):
        list(BatchLoader(Rows(kind), num_workers=num_workers))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Rows("empty"), "the data set is empty; at least one sample is needed"),
        (Lengthless(), "the dataset Lengthless has no __len__; give it one"),
    ],
)
def test_datasets_without_samples_or_length_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        BatchLoader(dataset)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (-1, "must be >= 0, got -1"),
        (1.0, "must be a whole number, got 1.0"),
        ("2", "must be a whole number, got '2'"),
        (None, "must be a whole number, got None"),
    ],
)
def test_num_workers_must_be_a_whole_number(wrong: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^num_workers: {re.escape(said)}$"):
        BatchLoader(Rows(), num_workers=wrong)


def test_workers_start_without_a_warning_where_jax_is_running() -> None:
    jax = pytest.importorskip("jax")
    jax.local_devices(backend="cpu")  # from here on it warns of forks
    alone, helped = (MiniBatchLoader(Rows(), 3, num_workers=number) for number in (0, 2))
    pairs = list(zip(alone, helped, strict=True))
    assert len(pairs) == 3
    assert all(torch.equal(one.inputs, other.inputs) for one, other in pairs)
