"""Placed data: copies that follow the user's tensors, are freed with their loader, and no more."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, RandomSampler, TensorDataset

from gdtrain import (
    BatchLoader,
    BatchSizes,
    Callback,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    Trainer,
    Weighted,
    mapped,
)
from gdtrain.config.build import build
from gdtrain.config.load import parse_config
from gdtrain.data.samples import CastSamples, TensorSamples
from gdtrain.errors import DataError
from gdtrain.training.placement.device import Placement

N = 9
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
CPU = torch.device("cpu")


class Rows(Dataset[Any]):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.x, self.y = X.to(dtype), Y.to(dtype)

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


class Stream(Rows, IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (self[i] for i in range(N))


def make(loader: Any, *callbacks: Callback) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, nn.MSELoss(), optimizer, loader, callbacks=callbacks, device="cpu")


# ── freed ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "data",
    [
        lambda: Rows(),
        lambda: Rows(torch.float64),
        lambda: (X.clone(), Y.clone()),
        lambda: (X.double(), Y.double()),
        lambda: TensorDataset(X.double(), Y),
    ],
)
def test_a_loader_that_was_evaluated_is_freed(data: Any) -> None:
    trainer = make(BatchLoader((X, Y)))
    loader = MiniBatchLoader(data(), 4)
    trainer.evaluate(loader)
    samples = weakref.ref(loader.samples)
    del loader
    gc.collect()
    assert samples() is None


def test_tensors_are_placed_once_and_others_alike() -> None:
    placement = Placement(CPU, torch.float32)
    tensors = TensorSamples([X.double(), Y])
    assert placement(tensors) is placement(tensors)
    rows = MiniBatchLoader(Rows(), 4).samples
    assert placement(rows) == placement(rows)
    assert hash(placement(rows)) == hash(placement(rows))
    assert placement(rows) != placement(MiniBatchLoader(Rows(), 4).samples)
    assert placement(rows) != CastSamples(rows, torch.float64)


# ── following the user's data ───────────────────────────────────────────────────────────────────


class Change(Callback):
    """Changes the data at the end of each epoch."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self.change()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
@pytest.mark.parametrize("size", [4, N])
@pytest.mark.parametrize("how", ["in place", "bound again"])
def test_data_changed_in_mid_run_is_trained_on_as_it_is(
    how: str, size: int, order: str, dtype: torch.dtype
) -> None:
    x = (10 * X).to(dtype)
    dataset = TensorDataset(x, Y.clone())

    def change() -> None:
        if how == "in place":
            dataset.tensors[0].add_(1)
            dataset.tensors[1].mul_(2)
        else:
            dataset.tensors = (dataset.tensors[0] + 1, dataset.tensors[1] * 2)

    class Floats(Trainer):
        def forward(self, inputs: Any) -> Any:
            return self.model(inputs.float())

    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    loader = MiniBatchLoader(dataset, size, order=order)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    Floats(model, nn.MSELoss(), optimizer, loader, callbacks=[Change(change)], device="cpu").fit(3)

    torch.manual_seed(0)
    hand = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.001)
    x, y = (10 * X).to(dtype), Y.clone()
    for epoch in range(3):
        plan = loader.plan(epoch)
        for number in range(len(plan)):
            rows = plan.batch_indices(number)
            optimizer.zero_grad()
            nn.functional.mse_loss(hand(x[rows].float()), y[rows]).backward()
            optimizer.step()
        x, y = x + 1, y * 2
    assert torch.equal(model.weight, hand.weight)


def test_evaluation_and_fingerprint_follow_the_data() -> None:
    x = X.double()
    trainer = make(BatchLoader((x, Y)))
    model, before = trainer.model, trainer.loader.fingerprint()  # type: ignore[union-attr]
    for _ in range(2):
        expected = float(nn.functional.mse_loss(model(x.float()), Y).detach())
        assert trainer.evaluate()["loss"] == pytest.approx(expected)
        x += 1
    assert trainer.loader.fingerprint() != before  # type: ignore[union-attr]
    x.sub_(2)
    assert trainer.loader.fingerprint()["samples"] == N  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
def test_arrays_changed_between_calls_are_read_as_they_are(order: str, dtype: Any) -> None:
    x, y = X.numpy().astype(dtype), Y.numpy().astype(dtype)
    trainer = make(MiniBatchLoader((x, y), 4, order=order))
    hand, made = make(None).model, 0
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for epochs in (2, 3, 5):
        trainer.fit(epochs)
        for epoch in range(made, epochs):
            for number in range(3):
                rows = trainer.loader.plan(epoch).batch_indices(number).numpy()  # type: ignore[union-attr]
                optimizer.zero_grad()
                inputs, targets = (torch.from_numpy(part[rows]).float() for part in (x, y))
                nn.functional.mse_loss(hand(inputs), targets).backward()
                optimizer.step()
        assert torch.equal(trainer.model.weight, hand.weight)
        made, x[:2], y[3] = epochs, x[:2] + 1, 0.5
        expected = nn.functional.mse_loss(hand(torch.tensor(x).float()), torch.tensor(y).float())
        assert trainer.evaluate()["loss"] == pytest.approx(float(expected.detach()))


def test_an_array_with_nan_is_not_copied_again() -> None:
    x = X.double().numpy()
    x[0, 0] = np.nan
    trainer = make(BatchLoader((x, Y), allow_nonfinite=True))
    samples = trainer.loader.samples  # type: ignore[union-attr]
    placed = trainer.placed(samples)
    trainer.placed.compare(samples)
    assert trainer.placed(samples) is placed


def test_tensors_of_inference_mode_are_data_too() -> None:
    with torch.inference_mode():
        x = X.double() * 1
    trainer = make(MiniBatchLoader((x, Y), 4))
    trainer.fit(2)
    hand = make(MiniBatchLoader((X, Y), 4))
    hand.fit(2)
    assert torch.equal(trainer.model.weight, hand.model.weight)


# ── copies of loaders ───────────────────────────────────────────────────────────────────────────


def order(epoch: int) -> Tensor:
    return torch.arange(N - epoch % 2).flip(0)


LOADERS = {
    "tensors": lambda path: MiniBatchLoader((X, Y), 4, seed=2),
    "arrays": lambda path: SampleLoader((X.double().numpy(), Y.numpy())),
    "tensor dataset": lambda path: MiniBatchLoader(TensorDataset(X.double(), Y), 4),
    "dataset": lambda path: MiniBatchLoader(Rows(), 4, num_workers=1),
    "float64 dataset": lambda path: BatchLoader(Rows(torch.float64)),
    "sizes": lambda path: MiniBatchLoader((X, Y), BatchSizes([(1, 2), (None, 3)])),
    "phases": lambda path: PhasedLoader([(1, SampleLoader((X, Y))), (None, BatchLoader((X, Y)))]),
    "weighted": lambda path: MiniBatchLoader((X, Y), 4, order=Weighted(range(N))),
    "callable": lambda path: MiniBatchLoader((X, Y), 4, order=order),
    "sampler": lambda path: MiniBatchLoader((X, Y), 4, order=RandomSampler(range(N))),
    "stream": lambda path: MiniBatchLoader(Stream(), 4),
    "mapped": lambda path: MiniBatchLoader(mapped(path / "x.npy", path / "y.npy"), 4),
}
WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def weights(trainer: Trainer) -> Tensor:
    torch.manual_seed(3)
    trainer.fit(2)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.few(10)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_of_a_loader_is_one_like_it(kind: str, way: str, used: bool, tmp_path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "y.npy", Y.numpy())
    loader = LOADERS[kind](tmp_path)
    expected = weights(make(LOADERS[kind](tmp_path)))
    if used:
        make(loader).fit(2)
    twin = WAYS[way](loader)
    assert torch.equal(weights(make(twin)), expected)
    assert twin.fingerprint() == LOADERS[kind](tmp_path).fingerprint()


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_loader_in_mid_stream_begins_anew(way: str) -> None:
    loader = MiniBatchLoader(Stream(), 4)
    next(iter(loader))
    twin = WAYS[way](loader)
    assert torch.equal(torch.cat([batch.inputs for batch in twin]), X)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
def test_a_copy_of_a_loader_follows_the_data_of_the_copy(order: str, way: str) -> None:
    loader = WAYS[way](MiniBatchLoader(TensorDataset(X.clone(), Y), 4, order=order))
    loader.samples.dataset.tensors[0].add_(1)
    for batch in loader:
        assert torch.equal(batch.inputs, X[batch.indices] + 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_of_records_is_not_copied(way: str, tmp_path) -> None:
    (tmp_path / "s.csv").write_text("x,y\n1,2\n3,4\n")
    run = build(
        parse_config(
            {
                "data": {
                    "source": "stream",
                    "format": "csv",
                    "path": str(tmp_path / "s.csv"),
                    "target": "y",
                },
                "model": "linear",
                "loss": "mse",
                "loader": {"name": "minibatch", "batch_size": 2},
                "optimizer": {"lr": 0.1},
                "epochs": 1,
            }
        )
    )
    with pytest.raises(DataError, match="is read by one reader, which can't be copied"):
        WAYS[way](run.loader)
