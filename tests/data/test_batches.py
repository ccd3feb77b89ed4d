"""Batches of any structure: cut with their samples, counted as they are, or refused by name."""

from __future__ import annotations

import re
from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import Dataset, IterableDataset, default_collate

from gdtrain import Batch, BatchLoader, MiniBatchLoader, Trainer
from gdtrain.data.collate import Collated
from gdtrain.data.tree import copied, map_tensors, tensors_of
from gdtrain.errors import DataError

X = torch.arange(10.0).reshape(5, 2)
Y = torch.arange(5)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Rows:
    x: Tensor
    names: list[str]
    scale: float = 1.0
    total: int = field(init=False, default=5)


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor


class OwnList(list[Any]):
    pass


NAMES = ["a", "b", "c", "d", "e"]
# A tree of five samples, and what it is of the samples 1 and 2.
TREES: dict[str, tuple[Any, Any]] = {
    "tensor": (X, X[1:3]),
    "array": (X.numpy(), X[1:3].numpy()),
    "pair": ((X, Y), (X[1:3], Y[1:3])),
    "list of tensors": ([X, Y], [X[1:3], Y[1:3]]),
    "dict": ({"a": X, "b": {"c": Y}}, {"a": X[1:3], "b": {"c": Y[1:3]}}),
    "nested": (({"a": (X, [Y])}, Y), ({"a": (X[1:3], [Y[1:3]])}, Y[1:3])),
    "names": (NAMES, ["b", "c"]),
    "tuple of names": (tuple(NAMES), ("b", "c")),
    "columns of names": ([NAMES, NAMES], [["b", "c"], ["b", "c"]]),
    "none in a row": ([None] * 5, [None, None]),
    "objects in a row": ([int, str, float, list, dict], [str, float]),
    "named tuple": (Pair(X, "all"), Pair(X[1:3], "all")),
    "scalar tensor": ({"x": X, "k": torch.tensor(2.0)}, {"x": X[1:3], "k": torch.tensor(2.0)}),
    "scalar array": ({"x": X, "k": np.float64(2)}, {"x": X[1:3], "k": np.float64(2)}),
    "singles": (
        {"x": X, "k": 2, "t": "all", "n": None, "b": True, "d": torch.float32},
        {"x": X[1:3], "k": 2, "t": "all", "n": None, "b": True, "d": torch.float32},
    ),
    "dataclass": (Rows(X, NAMES, 2.0), Rows(X[1:3], ["b", "c"], 2.0)),
    "frozen dataclass": (Frozen(X), Frozen(X[1:3])),
    "own list": (OwnList([X, Y]), OwnList([X[1:3], Y[1:3]])),
    "user dict": (UserDict(a=X), UserDict(a=X[1:3])),
    "ordered dict": (OrderedDict(a=X), {"a": X[1:3]}),
    "no inputs": ((), ()),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Rows | Frozen):
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__
        )
    if isinstance(one, dict | UserDict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return type(one) is type(other) and all(map(same, one, other)) and len(one) == len(other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("kind", ["plain", "collated"])
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("place", ["inputs", "targets"])
def test_what_goes_with_its_samples_is_cut(name: str, place: str, kind: str) -> None:
    whole, part = TREES[name]
    given = {"inputs": X, "targets": Y} | {place: whole}
    if kind == "plain":
        batch = Batch(**given, indices=torch.arange(5))
    else:
        collated = Collated(lambda items: items)
        batch = collated.batch((given["inputs"], given["targets"]), torch.arange(5))
    assert len(batch) == 5
    rows = [
        batch.take(slice(1, 3)),
        batch.take(torch.tensor([1, 2])),
        batch.take(slice(1, 4)).take(slice(0, 2)),
    ]
    for taken in rows:
        assert len(taken) == 2
        assert taken.indices.tolist() == [1, 2]
        assert same(getattr(taken, place), part)
    parts = list(batch.split(2))
    assert [len(p) for p in parts] == [2, 2, 1]
    assert same(getattr(next(batch.split(5)), place), whole)


def test_samples_of_sparse_tensors_go_with_them() -> None:
    batch = Batch(X.to_sparse(), Y, torch.arange(5))
    parts = [part.inputs.to_dense() for part in batch.split(2)]
    assert torch.equal(torch.cat(parts), X)


REMEDY = "give tensors [B, …], lists of B items, dicts or dataclasses of these, and single numbers"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"x": X, "w": torch.ones(3)},
            "inputs['w'] (a Tensor): has shape [3] in a batch of 5 samples, and can't be cut into "
            f"samples; {REMEDY}",
        ),
        (
            (X, np.ones((2, 5))),
            "inputs[1] (a ndarray): has shape [2, 5] in a batch of 5 samples, and can't be cut "
            f"into samples; {REMEDY}",
        ),
        (
            {"x": X, "size": (224, 224)},
            "inputs['size'] (a tuple): has 2 items for 5 samples, and can't be cut into samples; "
            f"{REMEDY}",
        ),
        (
            {"x": X, "o": object()},
            f"inputs['o'] (a object): is not cut into samples; {REMEDY}",
        ),
        (
            pack_sequence([X[0], X[1]], enforce_sorted=False),
            f"inputs (a PackedSequence): is not cut into samples; {REMEDY}",
        ),
        ({1, 2}, f"inputs (a set): is not cut into samples; {REMEDY}"),
    ],
)
def test_what_is_of_no_samples_is_refused_by_its_name(tree: Any, message: str) -> None:
    batch = Batch(tree, Y, torch.arange(5))
    assert next(batch.split(5)) is batch  # whole, it may be anything
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        next(batch.split(2))


def boxes(count: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.full((i % 3, 4), float(i))} for i in range(count)]


def test_a_row_of_tensors_that_do_not_stack_is_cut_by_samples() -> None:
    collated = Collated(lambda items: items)
    images = tuple(torch.full((3, 4 + i, 5), float(i)) for i in range(5))
    batch = collated.batch((images, boxes(5)), torch.arange(5))
    assert len(batch) == 5
    parts = list(batch.split(2))
    assert [len(part.inputs) for part in parts] == [2, 2, 1]
    assert parts[1].inputs[1] is images[3]
    assert parts[1].targets[1] is batch.targets[3]
    # Three images of three channels may be either, but the batch before was one of images.
    batch = collated.batch((images[:3], boxes(3)), torch.arange(3))
    assert [len(part.inputs) for part in batch.split(2)] == [2, 1]


def test_several_inputs_stay_several_in_a_batch_of_as_many_samples() -> None:
    collated = Collated(lambda items: items)
    batch = collated.batch((X, -X, Y), torch.arange(5))
    assert [part.inputs[0].shape[0] for part in batch.split(2)] == [2, 2, 1]
    batch = collated.batch((X[:2], -X[:2], Y[:2]), torch.arange(2))
    (first, second) = batch.split(1)
    assert torch.equal(first.inputs[1], -X[:1])
    assert torch.equal(second.inputs[0], X[1:2])


def test_what_may_be_a_row_of_samples_or_of_tensors_is_refused() -> None:
    batch = Collated(lambda items: items).batch(((X[:2], -X[:2]), Y[:2]), torch.arange(2))
    message = (
        "inputs (a tuple): has 2 items in a batch of 2 samples, each with 2 rows, and may be a row "
        "of samples or of tensors of all of them; choose another batch size, or give a dict or a "
        "namedtuple"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        next(batch.split(1))
    # torch's default collate function makes no rows of samples of tensors.
    batch = BatchLoader(Items([((X[i], -X[i]), Y[i]) for i in range(2)])).samples
    (whole,) = batch.read(BatchLoader(Items([0, 1])).plan(0))
    assert [part.inputs[1].tolist() for part in whole.split(1)] == [[[-0.0, -1]], [[-2, -3]]]


@pytest.mark.parametrize("name", TREES)
def test_mapping_and_copying_keep_the_types(name: str) -> None:
    whole, _ = TREES[name]
    assert same(map_tensors(whole, lambda t: t), whole if name != "ordered dict" else dict(whole))
    twin = copied(whole)
    assert same(twin, whole if name != "ordered dict" else dict(whole))
    for mine, theirs in zip(tensors_of(twin), tensors_of(whole), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()


def test_a_packed_sequence_is_mapped_but_for_its_sizes() -> None:
    packed = pack_sequence([X[0], X[1, :1]])
    mapped = map_tensors(packed, lambda t: t.double())
    assert mapped.data.dtype == torch.float64
    assert mapped.batch_sizes.dtype == torch.int64
    assert type(mapped) is type(packed)


# ── collate functions that drop samples ─────────────────────────────────────────────────────────


class Items(Dataset[Any]):
    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


GAPS = Items([(X[i], Y[i]) if i != 2 and i < 4 else None for i in range(6)])


def without_gaps(items: list[Any]) -> Any:
    kept = [item for item in items if item is not None]
    return default_collate(kept) if kept else (X[:0], Y[:0])


def as_dict(items: list[Any]) -> Any:
    x, y = without_gaps(items)
    return {"x": x, "y": y, "scale": torch.tensor(2.0)}


def as_rows(items: list[Any]) -> Any:
    x, y = without_gaps(items)
    return Rows(x, [str(int(i)) for i in y])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [without_gaps, as_dict, as_rows])
def test_a_batch_has_as_many_samples_as_are_there(collate: Any, workers: int) -> None:
    loader = MiniBatchLoader(GAPS, 4, order="sequential", collate_fn=collate, num_workers=workers)
    first = next(iter(loader))
    assert len(first) == 3
    parts = list(first.split(2))
    assert [len(part) for part in parts] == [2, 1]
    (x,) = (t for t in tensors_of(parts[1].inputs) if t.shape == (1, 2))
    assert torch.equal(x, X[3:4])
    message = (
        "indices: the collate function gives another number of samples than it is given, so their "
        "places in the data set are not known"
    )
    for batch in (first, *parts, first.copy()):
        with pytest.raises(DataError, match=f"^{message}$"):
            _ = batch.indices
    assert first.describe(2) == "row 2 of the batch"


def test_a_batch_has_more_samples_where_the_collate_function_makes_more() -> None:
    def twice(items: list[Any]) -> Any:
        x, y = default_collate(items)
        return torch.cat([x, -x]), torch.cat([y, y])

    loader = MiniBatchLoader(Items([(X[i], Y[i]) for i in range(5)]), 2, collate_fn=twice)
    assert [len(batch) for batch in loader] == [4, 4, 2]


def test_a_batch_of_which_nothing_is_left_is_refused() -> None:
    loader = MiniBatchLoader(GAPS, 2, order="sequential", collate_fn=without_gaps)
    message = (
        "the collate function gives no sample for 2 samples (4, 5), and an update needs one; leave "
        "out what can't be used before, in the data set or its order"
    )
    batches = iter(loader)
    assert [len(next(batches)), len(next(batches))] == [2, 1]
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        next(batches)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([GAPS[i] for i in range(5)])


def test_a_stream_has_as_many_samples_as_are_there() -> None:
    loader = MiniBatchLoader(Stream(), 3, collate_fn=without_gaps)
    assert [len(batch) for batch in loader] == [2, 1]


def test_train_loss_is_the_mean_over_the_samples_that_are_there() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, 1.0)

    class Squares(Trainer):
        def compute_loss(self, batch: Any) -> Tensor:
            return (self.model(batch.inputs)[:, 0] - batch.targets).square().mean()

    loader = MiniBatchLoader(GAPS, 3, order=[0, 1, 2, 3], collate_fn=without_gaps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Squares(model, None, optimizer, loader, device="cpu")
    # Batches of the samples 0, 1 and of 3, whose errors are 1, 0 and 4.
    assert trainer.fit(1).train_loss == [pytest.approx((1 + 0 + 4) / 3)]
    assert trainer.progress.samples == 3


@pytest.mark.parametrize("size", [3, 6])
@pytest.mark.parametrize("microbatch", [None, 1, 2, 3])
def test_evaluation_is_over_the_samples_that_are_there(size: int, microbatch: int | None) -> None:
    model = nn.Linear(2, 1, dtype=torch.float64)
    loader = MiniBatchLoader(
        Items([(X[i].double(), X[i, :1].double()) if i in (0, 3) else None for i in range(5)]),
        size,
        order=[0, 1, 2, 3, 4, 1],
        collate_fn=lambda items: default_collate([item for item in items if item is not None]),
    )

    def largest(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().max()  # of all samples at once

    trainer = Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.0),
        loader,
        metrics={"largest": largest},
        microbatch_size=microbatch,
        device="cpu",
    )
    x = X[[0, 3]].double()
    error = (model(x) - x[:, :1]).detach()
    found = trainer.evaluate()
    assert found["loss"] == pytest.approx(float(error.square().mean()), rel=1e-12)
    assert found["largest"] == pytest.approx(float(error.abs().max()), rel=1e-12)
    assert trainer.fit(1).train_loss == [pytest.approx(float(error.square().mean()), rel=1e-12)]
