"""Data sets that draw their items: the hand-written loop's numbers, snapshots, resumes, ranks."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, default_collate

from gdtrain import BatchLoader, Callback, MiniBatchLoader, PhasedLoader, Trainer
from gdtrain.errors import CheckpointError

N, SIZE = 12, 5
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


class Drawn(Dataset[Any]):
    """Adds noise of all three global generators, and counts what is read."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        self.read += 1
        noise = torch.rand(3) + float(np.random.rand()) + random.random()
        return X[i] + noise, Y[i]


class Together(Drawn):
    """Gives a batch's items in one call."""

    def __getitems__(self, rows: list[int]) -> list[Any]:
        return [self[row] for row in rows]


def shaken(items: list[Any]) -> Any:
    x, y = default_collate(items)
    return x + 0.1 * torch.randn(x.shape), y


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make(data: Any, *callbacks: Callback, workers: int = 0, collate: Any = None) -> Trainer:
    model = net()
    loader = MiniBatchLoader(data, SIZE, num_workers=workers, collate_fn=collate)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Trainer(model, nn.MSELoss(), optimizer, loader, callbacks=callbacks, device="cpu")


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


class At(Callback):
    def __init__(self, step: int, what: Callable[[Trainer], Any]) -> None:
        super().__init__(every_n_steps=1)
        self.step, self.what = step, what

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            self.what(trainer)


@pytest.mark.parametrize("collate", [None, shaken])
@pytest.mark.parametrize("kind", [Drawn, Together])
def test_without_workers_items_are_drawn_as_in_the_hand_written_loop(
    kind: Any, collate: Any
) -> None:
    hand, data = net(), kind()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.01)
    trainer = make(kind(), collate=collate)
    seed_all(3)
    for epoch in range(2):
        for rows in trainer.loader.plan(epoch).indices.split(SIZE):  # type: ignore[union-attr]
            x, y = (collate or default_collate)([data[i] for i in rows.tolist()])
            optimizer.zero_grad()
            F.mse_loss(hand(x), y).backward()
            optimizer.step()
    seed_all(3)
    trainer.fit(2)
    assert_same(trainer.model, hand)


class DrawnStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        for i in range(N):
            yield X[i] + torch.rand(3), Y[i]


def test_items_of_a_stream_are_taken_when_the_hand_written_loop_takes_them() -> None:
    hand = net()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.01)
    trainer = make(DrawnStream())
    seed_all(3)
    items, batch = iter(DrawnStream()), True
    while batch:
        batch = [item for _, item in zip(range(SIZE), items, strict=False)]
        if batch:
            x, y = default_collate(batch)
            optimizer.zero_grad()
            F.mse_loss(hand(x), y).backward()
            optimizer.step()
    seed_all(3)
    trainer.fit(1)
    assert_same(trainer.model, hand)


# ── looks and snapshots ─────────────────────────────────────────────────────────────────────────


@pytest.mark.few(4)
@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("look", ["snapshot", "evaluate", "fingerprint", "other loader"])
def test_a_run_that_is_looked_at_has_the_bits_of_one_that_is_not(
    look: str, workers: int, step: int
) -> None:
    looks: dict[str, Any] = {
        "snapshot": lambda t: t.state_dict(),
        "evaluate": lambda t: t.evaluate(),
        "fingerprint": lambda t: t.loader.fingerprint(),
        "other loader": lambda t: t.evaluate(BatchLoader(Drawn())),
    }
    alone, data = make(Drawn(), workers=workers), Drawn()
    watched = make(data, At(step, looks[look]), workers=workers)
    for trainer in (alone, watched):
        seed_all(7)
        if trainer is watched and step == 0:
            looks[look](watched)
        trainer.fit(2)
    assert_same(watched.model, alone.model)
    if look in ("snapshot", "fingerprint") and workers == 0:
        assert data.read == 2 * N


@pytest.mark.few(5)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [None, shaken])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_run_goes_on_from_any_step_with_the_same_bits(
    step: int, collate: Any, workers: int
) -> None:
    held: list[Any] = []
    alone = make(
        Drawn(), At(step, lambda t: held.append(t.state_dict())), workers=workers, collate=collate
    )
    seed_all(1)
    alone.fit(2)
    restored = make(Drawn(), workers=workers, collate=collate)
    seed_all(2)
    restored.load_state_dict(held[0])
    restored.fit(2)
    assert_same(restored.model, alone.model)


def test_a_batch_that_workers_have_drawn_is_the_same_however_it_is_read() -> None:
    loader = MiniBatchLoader(Drawn(), 2, num_workers=2)
    plan = loader.plan(3)
    whole = [batch.inputs for batch in loader.samples.read(plan)]
    for start in (1, 4):
        rest = [batch.inputs for batch in loader.samples.read(plan, start)]
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[start:], strict=True))
    alone = MiniBatchLoader(Drawn(), 2, num_workers=1)
    again = [batch.inputs for batch in alone.samples.read(plan)]
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    share = [batch.inputs for batch in loader.samples.read(plan.share(1, 2))]
    assert not any((a == b).any() for a, b in zip(share, whole, strict=True))


class Told(Dataset[Any]):
    """Is told the epoch, and gives it as an item."""

    def __init__(self) -> None:
        self.epoch, self.told = -1, []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return torch.tensor([float(self.epoch)]), torch.zeros(1)


class ToldStream(Told, IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (self[i] for i in range(4))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [Told, ToldStream])
def test_a_data_set_is_told_the_epoch(kind: Any, workers: int) -> None:
    if kind is ToldStream:
        workers = 0
    seen: list[float] = []

    class Noting(Trainer):
        def compute_loss(self, batch: Any) -> Tensor:
            if torch.is_grad_enabled():
                seen.extend(batch.inputs.flatten().tolist())
            return super().compute_loss(batch)

        def loss_weight(self, batch: Any) -> int:
            return len(batch)

    model, data = nn.Linear(1, 1), kind()
    look = At(3, lambda t: t.evaluate()) if kind is Told else At(3, lambda t: t.state_dict())
    loader = MiniBatchLoader(data, 2, num_workers=workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Noting(model, nn.MSELoss(), optimizer, loader, callbacks=[look], device="cpu").fit(3)
    assert seen == [0.0] * 4 + [1.0] * 4 + [2.0] * 4  # also after a look in epoch 1
    if kind is ToldStream:
        assert data.told == [0, 1, 2]


# ── which data set it is ────────────────────────────────────────────────────────────────────────


class Longer(Drawn):
    def __len__(self) -> int:
        return N + 1


class Fixed(Dataset[Any]):
    """Items that are not drawn, as checkpoints of 0.1.0 could tell them apart."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return self.x[i], Y[i]


def test_another_data_set_is_refused_by_its_type_and_length() -> None:
    trainer = make(Drawn())
    trainer.fit(1)
    state = trainer.state_dict()
    make(Drawn()).load_state_dict(state)
    for other in (Longer(), Fixed(X)):
        with pytest.raises(CheckpointError, match="the data or loader is another"):
            make(other).load_state_dict(state)


def old_state(trainer: Trainer, data: Any) -> dict[str, Any]:
    """As gdtrain 0.1.0 made it: without a version of orders, with a digest of the items."""
    state = trainer.state_dict()
    marks = {key: value for key, value in state["data"].items() if key != "orders"}
    return state | {"data": marks | {"data": data}}


def test_a_state_of_version_0_1_0_is_told_by_its_items() -> None:
    trainer = make(Fixed(X))
    trainer.fit(1)
    # zlib.crc32 of the bytes of all inputs and then of all targets.
    digest = zlib.crc32(Y.numpy().tobytes(), zlib.crc32(X.numpy().tobytes()))
    state = old_state(trainer, digest)
    other = make(Fixed(X + 1))
    before = torch.get_rng_state()
    with pytest.raises(
        CheckpointError, match=f"data {digest} in the state, .* here .checksums of the values"
    ):
        other.load_state_dict(state)
    assert torch.equal(torch.get_rng_state(), before)
    restored = make(Fixed(X))
    restored.load_state_dict(state)
    assert restored.progress.step == 3
    drawn = make(Drawn())
    drawn.load_state_dict(old_state(drawn, 5))  # which could not be told


def test_phases_over_one_drawn_data_set_are_over_the_same() -> None:
    data = Drawn()
    PhasedLoader([(1, MiniBatchLoader(data, 2)), (None, BatchLoader(data))])
    assert data.read == 0


# ── several processes ───────────────────────────────────────────────────────────────────────────


def drawn_on_rank(rank: int, workers: int, size: int) -> tuple[list[float], list[Tensor]]:
    seed_all(5 + rank)
    seen: list[float] = []

    class Noting(Trainer):
        def train_step(self, batch: Any) -> Tensor:
            seen.extend(batch.inputs.flatten().tolist())
            return super().train_step(batch)

    model = net()
    loader = MiniBatchLoader(Drawn(), size, num_workers=workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Noting(model, nn.MSELoss(), optimizer, loader, device="cpu")
    trainer.fit(1)
    return seen, [p.detach() for p in model.parameters()]


@pytest.mark.few(1)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [SIZE, 1])  # of one sample, a rank has no share
def test_ranks_draw_for_themselves_and_end_with_the_same_weights(workers: int, size: int) -> None:
    (first, weights), (second, others) = on_ranks(drawn_on_rank, workers, size)
    assert len(first) + len(second) == 3 * N
    assert not set(first) & set(second)
    for p, q in zip(weights, others, strict=True):
        assert torch.equal(p, q)
