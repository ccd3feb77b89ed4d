"""Orders that the user's own code gives: asked once an epoch, whatever looks, stops or resumes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.ranks import on_ranks
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from gdtrain import (
    BatchLoader,
    Callback,
    FullLoss,
    GradientNorm,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    Trainer,
    lr_range,
)
from gdtrain.analysis.comparison.peak_memory import step_memory
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.checkpoint.format import read_state, write_state
from gdtrain.errors import CheckpointError, ConfigError, NonFiniteError

N, SIZE = 10, 3
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


class Drawn:
    """An order that draws from a generator of its own, and notes the epochs it is asked for."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.asked: list[int] = []

    def __call__(self, epoch: int) -> Tensor:
        self.asked.append(epoch)
        return torch.randperm(N, generator=self.generator)[: N - epoch % 2]


def drawn_by_hand(epochs: int) -> list[list[int]]:
    order = Drawn()
    return [order(epoch).tolist() for epoch in range(epochs)]


class Noting(Trainer):
    """Notes the samples of each update."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[int] = []

    def train_step(self, batch: Any) -> Tensor:
        self.seen += batch.indices.tolist()
        return super().train_step(batch)


class At(Callback):
    """Does something at the safe point after an update."""

    def __init__(self, step: int, what: Any) -> None:
        super().__init__(every_n_steps=1)
        self.step, self.what = step, what

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            self.what(trainer)


def make(order: Any, *callbacks: Callback, size: int | None = SIZE, **options: Any) -> Noting:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = (
        BatchLoader((X, Y), order=order)
        if size is None
        else MiniBatchLoader((X, Y), size, order=order)
    )
    return Noting(
        model, nn.MSELoss(), optimizer, loader, callbacks=callbacks, device="cpu", **options
    )


def flat(rows: list[list[int]]) -> list[int]:
    return [index for row in rows for index in row]


# ── asked once ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [None, 1, SIZE])
def test_a_callable_is_asked_once_an_epoch_and_trained_on(size: int | None) -> None:
    order = Drawn()
    trainer = make(order, size=size)
    trainer.fit(4)
    assert order.asked == [0, 1, 2, 3]
    assert trainer.seen == flat(drawn_by_hand(4))


LOOKS = {
    "evaluate": lambda t: t.evaluate(),
    "predict": lambda t: t.predict(X),
    "snapshot": lambda t: t.state_dict(),
    "sizes": lambda t: (
        t.loader.outline(t.progress.epoch),
        t.loader.largest_batch(9),
        t.loader.smallest_batch(9),
        t.loader.updates(9),
        t.loader.extent,
        t.loader.fingerprint(),
    ),
    "length": lambda t: len(t.loader),
    "range test": lambda t: lr_range(t, updates=9),
    "memory": step_memory,
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("step", [0, 2, 4])  # before the first epoch, in it, and at its end
def test_looks_ask_nothing(look: str, step: int) -> None:
    order = Drawn()
    trainer = make(order, At(step, LOOKS[look]))
    if step == 0:
        LOOKS[look](trainer)
        assert order.asked == ([0] if look == "length" else [])
    trainer.seen.clear()
    trainer.fit(3)
    assert order.asked == [0, 1, 2]
    if look not in ("range test", "memory"):  # which make updates, and undo them
        assert trainer.seen == flat(drawn_by_hand(3))


@pytest.mark.parametrize("look", ["range test", "memory"])
@pytest.mark.parametrize("size", [None, 4])
def test_looks_read_orders_of_more_draws_than_samples(look: str, size: int | None) -> None:
    sampler = WeightedRandomSampler(torch.ones(N), 3 * N, generator=generator())
    before = sampler.generator.get_state()
    trainer = make(sampler, size=size)
    LOOKS[look](trainer)
    assert torch.equal(sampler.generator.get_state(), before)
    outline = trainer.loader.outline(0)  # type: ignore[union-attr]
    found = torch.cat([b.indices for b in trainer.loader.samples.read(outline)])  # type: ignore[union-attr]
    assert len(found) == 3 * N
    assert int(found.max()) < N


@pytest.mark.parametrize("monitor", [FullLoss, GradientNorm])
def test_monitors_ask_nothing(monitor: Any) -> None:
    order = Drawn()
    trainer = make(order, monitor(every_n_steps=1), validation=BatchLoader((X, Y), order=order))
    trainer.fit(3)
    assert order.asked == [0, 1, 2]
    assert trainer.seen == flat(drawn_by_hand(3))


def test_the_choice_of_a_compiled_engine_asks_nothing() -> None:
    pytest.importorskip("jax")
    order = Drawn()
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    trainer = Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.01),
        MiniBatchLoader((X, Y), SIZE, order=order),
        engine="scan",
        device="cpu",
    )
    trainer.fit(3)
    assert order.asked == [0, 1, 2]
    hand = nn.Linear(2, 1)
    torch.manual_seed(0)
    hand.reset_parameters()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.01)
    for row in drawn_by_hand(3):
        for rows in torch.tensor(row).split(SIZE):
            optimizer.zero_grad()
            nn.functional.mse_loss(hand(X[rows]), Y[rows]).backward()
            optimizer.step()
    assert torch.allclose(model.weight, hand.weight, rtol=1e-5)


def test_a_diagnosis_asks_nothing() -> None:
    order = Drawn()
    trainer = make(order, At(2, lambda t: t.model.weight.data.fill_(torch.nan)))
    with pytest.raises(NonFiniteError):
        trainer.fit(3)
    assert order.asked == [0]


def test_lengths_do_not_move_an_order_on() -> None:
    order = Drawn()
    loader = MiniBatchLoader((X, Y), SIZE, order=order)
    found = []
    for _ in range(3):
        assert len(loader) == len(loader)
        found.append(torch.cat([batch.indices for batch in loader]).tolist())
    assert found == drawn_by_hand(3)


# ── stops, errors, resumes ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7])
def test_a_stopped_epoch_goes_on_with_its_indices(step: int) -> None:
    order = Drawn()
    trainer = make(order, At(step, lambda t: t.stop("here")))
    trainer.fit(3)
    assert trainer.progress.step == step
    trainer.fit(3)
    assert order.asked == [0, 1, 2]
    assert trainer.seen == flat(drawn_by_hand(3))


def test_an_epoch_after_an_error_goes_on_with_its_indices() -> None:
    def fail(trainer: Trainer) -> None:
        raise RuntimeError("once")

    order = Drawn()
    trainer = make(order, At(2, fail))
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(2)
    trainer.callbacks.clear()
    trainer.fit(2)
    assert order.asked == [0, 1]
    assert trainer.seen == flat(drawn_by_hand(2))


def test_an_order_that_failed_is_asked_again() -> None:
    failed: list[int] = []

    def order(epoch: int) -> Tensor:
        if epoch == 1 and not failed:
            failed.append(epoch)
            raise RuntimeError("once")
        return torch.arange(N)

    trainer = make(order)
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(3)
    assert trainer.progress.epoch == 1
    trainer.fit(3)
    assert trainer.seen == [*range(N)] * 3


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_snapshot_has_the_indices_and_the_generator_of_its_epoch(step: int, tmp_path) -> None:
    held: list[Any] = []
    alone = make(Drawn(), At(step, lambda t: held.append(t.state_dict())))
    alone.fit(4)
    directory = tmp_path / "state"
    directory.mkdir()
    write_state(directory, held[0])
    order = Drawn()
    restored = make(order)
    restored.load_state_dict(read_state(directory, tensor_check(restored)))
    restored.fit(4)
    done = min(step * SIZE, N) if step < 5 else N + (step - 4) * SIZE
    assert restored.seen == flat(drawn_by_hand(4))[done:]
    assert torch.equal(restored.model.weight, alone.model.weight)
    assert order.asked == list(range(1 if step <= 4 else 2, 4))  # the generator had gone on


def test_a_snapshot_from_before_the_epoch_asks_again() -> None:
    order = Drawn()
    trainer = make(order)
    start = trainer.state_dict()
    trainer.fit(1)
    trainer.load_state_dict(start)
    trainer.fit(1)
    assert order.asked == [0, 0]
    assert trainer.seen == drawn_by_hand(1)[0] * 2


def test_an_order_of_ones_own_state_is_asked_for_it() -> None:
    class Counting:
        """Rotates the samples at each call."""

        calls = 0

        def __call__(self, epoch: int) -> list[int]:
            self.calls += 1
            return [(i + self.calls) % N for i in range(N)]

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.calls}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.calls = state["calls"]

    trainer = make(Counting())
    trainer.fit(2)
    restored = make(Counting())
    restored.load_state_dict(trainer.state_dict())
    restored.fit(3)
    assert restored.seen == [(i + 3) % N for i in range(N)]


def test_a_snapshot_without_an_order_is_one_of_an_older_version() -> None:
    held: list[Any] = []
    trainer = make(lambda epoch: range(N), At(2, lambda t: held.append(t.state_dict())))
    trainer.fit(1)
    old = copy.deepcopy(held[0])
    del old["order"]
    restored = make(lambda epoch: range(N))
    restored.load_state_dict(old)
    restored.fit(1)
    assert restored.seen == [*range(6, N)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "order: it is of another epoch than the progress"),
        ({"indices": torch.tensor([N])}, "explicit indices must be in 0 … 9, got 10"),
        ({"indices": torch.tensor([0.5])}, "explicit indices must be whole numbers"),
        ({"indices": torch.arange(3)}, "progress: step_in_epoch is 2, of 1"),
        ({"source": 5}, "order: source is not a mapping"),
        ({"source": {"generator": torch.zeros(3)}}, "the state of the order does not fit it"),
        ({"more": 1}, "order: it is not what one has given"),
    ],
)
def test_a_state_that_no_order_gave_is_refused(change: dict[str, Any], message: str) -> None:
    held: list[Any] = []
    make(Drawn(), At(2, lambda t: held.append(t.state_dict()))).fit(1)
    fresh = make(Drawn())
    before = fresh.model.weight.clone()
    held[0]["order"] |= change
    with pytest.raises(CheckpointError, match=re.escape(message)):
        fresh.load_state_dict(held[0])
    assert torch.equal(fresh.model.weight, before)
    assert fresh.progress.step == 0


# ── samplers ────────────────────────────────────────────────────────────────────────────────────


class OwnSampler:
    """An iterable of indices that is no torch Sampler, and counts its iterations."""

    iterations = 0

    def __iter__(self) -> Iterator[int]:
        self.iterations += 1
        return iter([(7 * i + self.iterations) % N for i in range(N)])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


SAMPLERS = {
    "random": lambda: RandomSampler(range(N), generator=generator()),
    "replacement": lambda: RandomSampler(
        range(N), replacement=True, num_samples=7, generator=generator()
    ),
    "subset": lambda: SubsetRandomSampler([1, 4, 5, 8], generator=generator()),
    "weighted": lambda: WeightedRandomSampler(
        torch.arange(N).double(), 2 * N, generator=generator()
    ),
    "sequential": lambda: SequentialSampler(range(N)),
    "own": OwnSampler,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_iterated_once_an_epoch(name: str) -> None:
    by_hand = SAMPLERS[name]()
    expected = [list(by_hand) for _ in range(3)]
    trainer = make(SAMPLERS[name]())
    assert len(trainer.loader) == -(-len(expected[0]) // SIZE)  # type: ignore[arg-type]
    trainer.fit(3)
    assert trainer.seen == flat(expected)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "own"])
@pytest.mark.parametrize("step", [2, 4])
def test_a_run_with_a_sampler_resumes(name: str, step: int) -> None:
    held: list[Any] = []
    alone = make(SAMPLERS[name](), At(step, lambda t: held.append(t.state_dict())))
    alone.fit(3)
    restored = make(SAMPLERS[name]())
    restored.load_state_dict(held[0])
    restored.fit(3)
    assert torch.equal(restored.model.weight, alone.model.weight)
    assert restored.seen == alone.seen[-len(restored.seen) :]


def test_a_sampler_of_the_global_generator_draws_as_by_hand() -> None:
    trainer = make(RandomSampler(range(N)))
    torch.manual_seed(5)
    trainer.fit(2)
    torch.manual_seed(5)
    by_hand = RandomSampler(range(N))
    assert trainer.seen == [*by_hand, *by_hand]


class Epochwise(Sampler[int]):
    """Is told the epoch, as DistributedSampler is."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([self.epoch])


def test_a_sampler_is_told_the_epoch() -> None:
    trainer = make(Epochwise())
    trainer.fit(3)
    assert trainer.seen == [0, 1, 2]


@pytest.mark.parametrize(
    "order",
    [
        lambda epoch: iter([epoch, 1]),
        lambda epoch: (i for i in (epoch, 1)),
        lambda epoch: SubsetRandomSampler([epoch]),
    ],
)
def test_a_callable_may_give_an_iterable(order: Any) -> None:
    loader = SampleLoader((X, Y), order=order)
    loader.set_epoch(4)
    assert next(batch.indices.item() for batch in loader) == 4


def test_phases_have_orders_of_their_own() -> None:
    order = Drawn()
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    loader = PhasedLoader(
        [(1, MiniBatchLoader((X, Y), 4)), (None, SampleLoader((X, Y), order=order))]
    )
    trainer = Noting(
        model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.01), loader, device="cpu"
    )
    trainer.fit(3)
    assert order.asked == [1, 2]


class OfBatches(Sampler[Any]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1], [2, 3]])


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            lambda: BatchSampler(SequentialSampler(range(N)), 2, False),
            "order: a BatchSampler gives batches; give its sampler, and the loader its batch_size",
        ),
        (
            OfBatches,
            "order: a OfBatches gives batches; give one of single samples, and the loader "
            "batch_size",
        ),
        (
            Endless,
            "order: a Endless gave over 1,010,000 indices of 10 samples, and no end is seen; give "
            "one that ends",
        ),
        (
            lambda: DistributedSampler(range(N), num_replicas=2, rank=0),  # type: ignore[arg-type]
            "order: a DistributedSampler gives one process's share, and batches are shared "
            "anyway; leave it out",
        ),
        (
            lambda: RandomSampler,
            "order: RandomSampler is a class; give one that is made, as in RandomSampler(…)",
        ),
        (
            lambda: iter([1, 2]),
            "order: a list_iterator can be read once; give a list, or epoch -> indices",
        ),
        (lambda: SubsetRandomSampler([1, N]), "order: explicit indices must be in 0 … 9, got 10"),
    ],
)
def test_what_is_no_order_is_refused_before_training(order: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        MiniBatchLoader((X, Y), SIZE, order=order()).plan(0)


# ── several processes ───────────────────────────────────────────────────────────────────────────


def trained_on_rank(rank: int, kind: str) -> tuple[list[int], Tensor]:
    torch.manual_seed(5 + rank)  # each rank draws for itself …
    sampler = RandomSampler(range(N))
    order: Any = sampler if kind == "sampler" else lambda epoch: torch.randperm(N)[: 9 - rank]
    trainer = make(order)
    trainer.fit(2)
    return trainer.seen, trainer.model.weight.detach()


@pytest.mark.parametrize("kind", ["sampler", "callable"])
def test_all_ranks_train_on_the_order_of_the_first(kind: str) -> None:
    (first, weight), (second, other) = on_ranks(trained_on_rank, kind)
    assert torch.equal(weight, other)  # … and the first one's draws count
    if kind == "sampler":
        assert sorted(first + second) == sorted([*range(N)] * 2)
    assert len(first) + len(second) == 2 * (N if kind == "sampler" else 9)
