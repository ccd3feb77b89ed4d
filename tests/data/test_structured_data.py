"""Tensors and arrays in tuples and dicts: batches keep the structure that the data have."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.errors import DataError

N = 7
A = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
B = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
Y = A.sum(1, keepdim=True) - B[:, :1]


class Two(NamedTuple):
    a: Any
    b: Any


@dataclass
class Named:
    a: Any
    b: Any


def values(tree: Any) -> list[Any]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Named):
        return [tree.a, tree.b]
    items = tree.values() if isinstance(tree, dict) else tree
    return [leaf for item in items for leaf in values(item)]


DATA = {
    "dict": (({"a": A, "b": B}, Y), dict),
    "tuple": (((A, B), Y), tuple),
    "flat tuple": ((A, B, Y), tuple),
    "nested": (({"a": A, "more": {"b": B}}, Y), dict),
    "named tuple": ((Two(A, B), Y), Two),
    "dataclass": ((Named(A, B), Y), Named),
    "arrays": (({"a": A.numpy(), "b": B.double().numpy()}, Y.numpy()), dict),
}


@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
@pytest.mark.parametrize("name", DATA)
def test_inputs_keep_their_structure(name: str, order: str) -> None:
    data, kind = DATA[name]
    for batch in MiniBatchLoader(data, 3, order=order):
        assert type(batch.inputs) is kind
        a, b = values(batch.inputs)
        assert torch.equal(a, A[batch.indices])
        assert torch.equal(b.float(), B[batch.indices])
        assert torch.equal(batch.targets, Y[batch.indices])
        assert [len(part) for part in batch.split(2)] == ([2, 1] if len(batch) == 3 else [1])


def test_targets_keep_their_structure() -> None:
    for batch in MiniBatchLoader((A, {"y": Y, "both": (B, Y)}), 3):
        assert torch.equal(batch.inputs, A[batch.indices])
        assert batch.targets.keys() == {"y", "both"}
        assert torch.equal(batch.targets["both"][0], B[batch.indices])


def test_labels_of_all_samples_are_known_before_the_first_update() -> None:
    loader = SampleLoader(
        ({"a": A, "b": B}, torch.tensor([0, 1, 0, 1, 0, 1, 2])), order="sequential"
    )
    assert torch.equal(loader.samples.targets, torch.tensor([0, 1, 0, 1, 0, 1, 2]))
    assert BatchLoader((A, {"y": Y})).samples.targets is None


def test_a_dict_alone_is_inputs_without_targets() -> None:
    for data in ({"a": A, "b": B}, ({"a": A, "b": B},)):
        (batch,) = BatchLoader(data)
        assert batch.targets is None
        assert torch.equal(batch.inputs["b"], B)


def test_rows_of_numbers_are_arrays_as_before() -> None:
    (batch,) = BatchLoader((((1.0, 2.0), (3.0, 4.0)), (0, 1)))
    assert batch.inputs.tolist() == [[1, 2], [3, 4]]
    assert batch.targets.tolist() == [0, 1]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(2, 1), nn.Linear(3, 1)

    def forward(self, inputs: Any, b: Any = None) -> Tensor:
        a, b = values(inputs if b is None else (inputs, b))
        return self.first(a) + self.second(b)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("form", [BatchLoader, SampleLoader])
def test_a_run_has_the_bits_of_the_plain_loop(form: Any, name: str) -> None:
    data, _ = DATA[name]
    model, hand, loader = Net(), Net(), form(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, validation=form(data), device="cpu")
    history = trainer.fit(2)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(2):
        plan = loader.plan(epoch)
        for number in range(len(plan)):
            rows = plan.batch_indices(number)
            optimizer.zero_grad()
            nn.functional.mse_loss(hand((A[rows], B[rows])), Y[rows]).backward()
            optimizer.step()
    for p, q in zip(model.parameters(), hand.parameters(), strict=True):
        assert torch.equal(p, q)
    expected = float(nn.functional.mse_loss(hand((A, B)), Y).detach())
    assert history.val_loss[-1] == pytest.approx(expected, rel=1e-6)


def test_a_run_on_a_dict_in_microbatches_and_from_a_snapshot() -> None:
    def make() -> Trainer:
        model = Net()
        loader = MiniBatchLoader(({"a": A, "b": B}, Y), 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return Trainer(model, nn.MSELoss(), optimizer, loader, microbatch_size=3, device="cpu")

    alone, half = make(), make()
    alone.fit(4)
    half.fit(2)
    restored = make()
    restored.load_state_dict(half.state_dict())
    restored.fit(4)
    for p, q in zip(restored.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_work_in_place_leaves_the_data() -> None:
    a = torch.randn(400, 1000, generator=torch.Generator().manual_seed(2))  # 1.6 MB: a view
    kept = a.clone()

    class InPlace(Net):
        def forward(self, inputs: Any, b: Any = None) -> Tensor:
            return self.first(inputs["a"].mul_(2)[:, :2])

    model = InPlace()
    loader = BatchLoader(({"a": a}, torch.zeros(400, 1)))
    (batch,) = loader.samples.read(loader.plan(0))
    assert batch.is_view
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu").evaluate()
    assert torch.equal(a, kept)


def test_data_follow_changes_and_are_copied() -> None:
    a = A.double()
    loader = MiniBatchLoader(({"a": a, "b": B}, Y), 3)
    before = loader.fingerprint()
    a += 1
    assert loader.fingerprint() != before
    for twin in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert twin.fingerprint() == loader.fingerprint()
        assert torch.equal(next(iter(twin)).inputs["a"], a[twin.plan(0).batch_indices(0)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ({"a": A, "b": B[:5]}, Y),
            "different numbers of samples: inputs['a'] 7 and inputs['b'] 5 and targets 7; each "
            "sample needs one of each",
        ),
        (
            ((A, np.array(["a"] * N)), Y),
            "inputs[1]: an array of <U1 is not numeric; encode it first",
        ),
        (
            ({"a": A / 0}, Y),
            "inputs['a']: row 0, column 0 is inf (and 13 more); remove the row or fill in a number "
            "before training",
        ),
        (({}, {}), "no tensors given; give inputs and targets"),
    ],
)
def test_what_cant_be_used_is_named_by_its_place(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        BatchLoader(data)
