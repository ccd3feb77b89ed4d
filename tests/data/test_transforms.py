"""Transforms of single samples: pure functions of seed, epoch and index, wherever they are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from gdtrain import BatchLoader, Callback, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.data.orders.order import generator
from gdtrain.errors import ConfigError, DataError

X = torch.arange(14.0).view(7, 2)
Y = X.sum(1, keepdim=True)


def jitter(sample: Any, numbers: torch.Generator) -> Any:
    x, y = sample
    return x + torch.randn(2, generator=numbers), y


def expected(seed: int, epoch: int, index: int) -> Tensor:
    return X[index] + torch.randn(2, generator=generator(seed, epoch, index))


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        return X[row], Y[row]


@pytest.mark.few(2)
@pytest.mark.parametrize("data", [(X, Y), (X.numpy(), Y.numpy()), Pairs()])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(data: Any, workers: int) -> None:
    for size in (2, 5):
        loader = MiniBatchLoader(data, size, seed=3, transform=jitter, num_workers=workers)
        for epoch in (0, 4):
            loader.set_epoch(epoch)
            for batch in loader:
                rows = [expected(3, epoch, i) for i in batch.indices.tolist()]
                assert torch.equal(batch.inputs, torch.stack(rows))
                assert torch.equal(batch.targets, Y[batch.indices])


def test_the_data_and_the_global_generators_stay() -> None:
    before, state = X.clone(), torch.get_rng_state()

    def spoil(sample: Any, numbers: torch.Generator) -> Any:
        x, y = sample
        return x.add_(1), y

    list(SampleLoader((X, Y), transform=spoil))
    assert torch.equal(X, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (X, lambda s: s.shape == (2,)),
        ({"a": X, "b": Y}, lambda s: s["a"].shape == (2,) and s["b"].shape == (1,)),
        (({"a": X}, Y), lambda s: isinstance(s, tuple) and s[0]["a"].shape == (2,)),
        (((X, X), Y), lambda s: isinstance(s[0], tuple)),
        ((X, X, Y), lambda s: len(s) == 3),
        ((X, (Y, Y)), lambda s: isinstance(s[1], tuple)),
    ],
    ids=["single", "dict", "dict and targets", "nested", "flat", "targets"],
)
def test_samples_and_batches_have_the_structure_of_the_data(data: Any, seen: Any) -> None:
    def look(sample: Any, _: torch.Generator) -> Any:
        assert seen(sample)
        return sample

    plain = MiniBatchLoader(data, 3)
    for mine, theirs in zip(MiniBatchLoader(data, 3, transform=look), plain, strict=True):
        assert type(mine.inputs) is type(theirs.inputs)
        assert type(mine.targets) is type(theirs.targets)
        assert torch.equal(mine.indices, theirs.indices)


class StopsAt(Callback):
    every_n_steps = 4

    def on_safe_point(self, trainer: Any) -> None:
        trainer.stop("here")


def make(*callbacks: Callback) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    loader = MiniBatchLoader((X, Y), 3, transform=jitter)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=callbacks)


def test_a_run_has_the_bits_of_the_plain_loop_and_goes_on_in_mid_epoch() -> None:
    torch.manual_seed(0)
    hand = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.001)
    for epoch in range(3):
        for rows in torch.randperm(7, generator=generator(0, epoch)).split(3):
            optimizer.zero_grad()
            x = torch.stack([expected(0, epoch, i) for i in rows.tolist()])
            nn.functional.mse_loss(hand(x), Y[rows]).backward()
            optimizer.step()
    first, second = make(StopsAt()), make()
    first.fit(3)
    second.load_state_dict(first.state_dict())
    second.fit(3)
    assert torch.equal(second.model.weight, hand.weight)


def test_a_state_of_other_data_is_refused() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    loader = MiniBatchLoader((X + 1, Y), 3, transform=jitter)
    changed = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")
    with pytest.raises(ValueError, match="the data or loader is another: data"):
        changed.load_state_dict(make().state_dict())


class Numbers(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    ("data", "transform", "message"),
    [
        ((X, Y), "crop", r"transform: must be a function \(sample, generator\) -> sample, got 'cr"),
        (Numbers(), jitter, "transform: has no effect on an IterableDataset; change its samples"),
    ],
)
def test_what_is_no_transform_is_refused(data: Any, transform: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SampleLoader(data, transform=transform)


def test_samples_of_different_structures_are_refused() -> None:
    def uneven(sample: Any, numbers: torch.Generator) -> Any:
        x, y = sample
        return (x, y) if y < 10 else (x, x, y)

    with pytest.raises(DataError, match=r"one is made of .*, another of .*; give all"):
        list(BatchLoader((X, Y), transform=uneven))


class Told(Pairs):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.mark.parametrize(
    "around",
    [
        lambda d: d,
        lambda d: Subset(d, [0, 2]),
        lambda d: ConcatDataset([Pairs(), d]),
        lambda d: Subset(ConcatDataset([d, Pairs()]), [0, 8]),
    ],
    ids=["itself", "subset", "concatenated", "both"],
)
def test_a_dataset_is_told_the_epoch_within_others_too(around: Any) -> None:
    told = Told()
    loader = MiniBatchLoader(around(told), 2)
    for _ in range(3):
        list(loader)
    assert told.epochs == [0, 1, 2]
