"""Blocks over the ends of epochs under the compiled engine: as the eager loop, to rounding."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from gdtrain import BatchLoader, BatchSizes, Callback, MiniBatchLoader, StepLosses, Trainer
from gdtrain.errors import NonFiniteError

pytest.importorskip("jax")

X = torch.randn(21, 2, generator=torch.Generator().manual_seed(0))
Y = X.sin().sum(dim=1, keepdim=True)
Make = Callable[[], object]


def make(
    engine: str, loader, schedule: str | None = None, **options
) -> tuple[Trainer, list[float]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if schedule is not None:
        scheduler = ExponentialLR(optimizer, 0.98 if schedule == "epoch" else 0.999)
        options |= {"scheduler": scheduler, "scheduler_per": schedule}
    losses = StepLosses()
    options["callbacks"] = [losses, *options.pop("callbacks", [])]
    loss = options.pop("loss", nn.MSELoss())
    trainer = Trainer(model, loss, optimizer, loader, device="cpu", engine=engine, **options)
    trainer.block_length._steps = 64  # whatever the clock says
    return trainer, losses.losses


def assert_alike(one: Trainer, other: Trainer) -> None:
    """The same history but for rounding and seconds, and the same weights."""
    assert len(one.history) == len(other.history)
    for mine, theirs in zip(one.history.epochs, other.history.epochs, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-10, nan_ok=True)
        for key in ("epoch", "step", "samples", "lr"):
            assert mine[key] == theirs[key]
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


LOADERS = {
    "everything": lambda: BatchLoader((X, Y)),
    "everything, reshuffled": lambda: BatchLoader((X, Y), order="reshuffle", seed=3),
    "a batch left over": lambda: MiniBatchLoader((X, Y), 8, seed=3),
    "a batch left over, in sequence": lambda: MiniBatchLoader((X, Y), 8, order="sequential"),
    "without the batch left over": lambda: MiniBatchLoader((X, Y), 8, seed=3, drop_last=True),
    "one batch and no more": lambda: MiniBatchLoader(
        (X, Y), 15, order="sequential", drop_last=True
    ),
    "even, in sequence": lambda: MiniBatchLoader((X, Y), 7, order="sequential"),
    "drawn with replacement": lambda: MiniBatchLoader((X, Y), 7, order="replacement", seed=4),
    "growing": lambda: MiniBatchLoader((X, Y), BatchSizes([(5, 8), (12, 7), (None, 21)])),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("schedule", [None, "epoch", "step"])
def test_weights_losses_and_history_are_those_of_eager(name: str, schedule: str | None) -> None:
    eager, expected = make("eager", LOADERS[name](), schedule)
    scan, losses = make("scan", LOADERS[name](), schedule)
    eager.fit(25)
    for epochs in (2, 11, 25):
        scan.fit(epochs)
    assert_alike(scan, eager)
    assert losses == pytest.approx(expected, rel=1e-10)


@pytest.mark.few(1)
@pytest.mark.parametrize("schedule", ["step", "epoch", None])
@pytest.mark.parametrize("start", [5, 0, 23])
def test_a_run_resumed_within_an_epoch_goes_on_over_its_end(schedule, start: int) -> None:
    class StopAt(Callback):
        def on_safe_point(self, trainer):
            if trainer.step == start:
                trainer.stop("here")

    whole, _ = make("scan", LOADERS["a batch left over"](), schedule)
    whole.fit(20)
    first, _ = make(
        "scan",
        LOADERS["a batch left over"](),
        schedule,
        callbacks=[StopAt(every_n_steps=start or 1)],
    )
    if start:
        first.fit(20)
    assert first.step == start
    second, _ = make("scan", LOADERS["a batch left over"](), schedule, callbacks=[StopAt()])
    second.load_state_dict(first.state_dict())
    second.fit(20)
    for p, q in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert second.history.train_loss == whole.history.train_loss


def assert_same_bits_after_a_stop(engine: str, draw: random.Random) -> None:
    """A run that is stopped after any of its updates and taken up ends as one left alone."""
    name, schedule = draw.choice(list(LOADERS)), draw.choice([None, "epoch", "step"])
    whole, expected = make(engine, LOADERS[name](), schedule)
    whole.fit(12)
    stop = draw.randrange(1, whole.step)

    class StopAt(Callback):
        def on_safe_point(self, trainer):
            if trainer.step == stop:
                trainer.stop("here")

    looks = draw.choice([stop, 1]) if stop < 40 else stop
    first, before = make(engine, LOADERS[name](), schedule, callbacks=[StopAt(every_n_steps=looks)])
    first.fit(12)
    assert first.step == stop
    second, after = make(engine, LOADERS[name](), schedule, callbacks=[StopAt()])
    second.load_state_dict(first.state_dict())
    second.fit(12)
    case = f"{engine}, {name}, schedule {schedule}, stopped after {stop}"
    for p, q in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q), case
    assert [*before, *after] == expected, case
    for column in ("train_loss", "lr", "step", "samples"):
        assert second.history[column] == whole.history[column], case


@pytest.mark.parametrize("engine", ["eager", "scan"])
def test_stopped_anywhere_a_run_ends_with_the_same_bits(engine: str) -> None:
    draw = random.Random(7)
    for _ in range(3):
        assert_same_bits_after_a_stop(engine, draw)


@pytest.mark.long
def test_stopped_anywhere_two_hundred_times(first_seed: int, scaled: Callable[[int], int]) -> None:
    draw = random.Random(first_seed)
    for number in range(scaled(200)):
        assert_same_bits_after_a_stop(("scan", "eager")[number % 2], draw)


@pytest.mark.few(1)
@pytest.mark.parametrize("schedule", [None, "epoch", "step"])
@pytest.mark.parametrize("batch_size", [7, 8, 21])
def test_a_bad_update_in_a_later_epoch_ends_both_engines_alike(schedule, batch_size: int) -> None:
    messages, trainers = [], []
    for engine in ("eager", "scan"):
        loader = MiniBatchLoader((X, Y), batch_size, order="sequential")
        trainer, losses = make(engine, loader, schedule)
        trainer.lr = 1e3 if schedule is None else 300.0
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit(4000)
        messages.append(str(caught.value).split(", on")[0])
        trainers.append(trainer)
        assert len(losses) == trainer.step
    assert messages[0] == messages[1]
    eager, scan = trainers
    assert eager.progress.epoch > 0
    assert scan.progress.state_dict().keys() == eager.progress.state_dict().keys()
    for key in ("epoch", "step", "step_in_epoch", "samples", "epoch_samples"):
        assert getattr(scan.progress, key) == getattr(eager.progress, key)
    assert scan.lr == eager.lr
    assert scan.history.step == eager.history.step


def test_labels_that_are_ignored_count_for_nothing_in_each_epoch() -> None:
    labels = torch.arange(21) % 3
    labels[::4] = -100
    trainers = []
    for engine in ("eager", "scan"):
        torch.manual_seed(1)
        model = nn.Linear(2, 3).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = MiniBatchLoader((X, labels), 8, seed=3)
        trainer = Trainer(
            model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu", engine=engine
        )
        trainer.block_length._steps = 32
        trainer.fit(30)
        trainers.append(trainer)
    assert_alike(trainers[1], trainers[0])


def test_a_run_that_nobody_watches_takes_a_few_calls() -> None:
    trainer, _ = make("scan", LOADERS["a batch left over"]())
    blocks = []

    class Counting(Callback):
        def on_safe_point(self, trainer):
            blocks.append(len(trainer.progress.losses))

    trainer.callbacks.append(Counting())
    trainer.fit(100)
    assert sum(blocks) == 300
    assert blocks[:2] == [64, 128]
