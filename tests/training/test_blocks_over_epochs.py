"""Blocks that reach over the ends of epochs: nothing but their number shows it."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from gdtrain import (
    BatchLoader,
    BatchSizes,
    Callback,
    EarlyStopping,
    MiniBatchLoader,
    StepLosses,
    Trainer,
    Validation,
)
from gdtrain.data.orders.order import generator
from gdtrain.errors import NonFiniteError
from gdtrain.output.metrics_log import MetricsLog

X = torch.randn(21, 2, generator=torch.Generator().manual_seed(0))
Y = X.sin().sum(dim=1, keepdim=True)


@pytest.fixture(autouse=True)
def _grow_whatever_the_clock_says(monkeypatch) -> None:
    monkeypatch.setattr("gdtrain.training.blocks.BLOCK_SECONDS", float("inf"))


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def make_trainer(loader=None, kind=Trainer, scheduled=False, lr=0.02, **options) -> Trainer:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if scheduled:
        options["scheduler"] = ExponentialLR(optimizer, 0.98)
    loader = loader or MiniBatchLoader((X, Y), 8, seed=3)
    options = {"device": "cpu", "engine": "eager"} | options
    return kind(model, nn.MSELoss(), optimizer, loader, **options)


def by_hand(epochs: int, batch_size=8, shuffled=True, scheduled=False) -> tuple[nn.Module, list]:
    """The loop in plain PyTorch: the model and, of each update, loss and learning rate."""
    model, steps = make_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = ExponentialLR(optimizer, 0.98)
    for epoch in range(epochs):
        order = torch.arange(21)
        if shuffled:
            order = torch.randperm(21, generator=generator(3, epoch))
        for chosen in order.split(batch_size):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(X[chosen]), Y[chosen])
            loss.backward()
            optimizer.step()
            steps.append((loss.item(), optimizer.param_groups[0]["lr"]))
        if scheduled:
            schedule.step()
    return model, steps


def weights(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


class Points(Callback):
    """Counts the updates of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[int] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        self.blocks.append(len(trainer.progress.losses))


class Records(Callback):
    """Keeps the records of epochs that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[dict]] = []

    def on_records(self, records: list[dict]) -> None:
        self.told.append([dict(record) for record in records])

    @property
    def epochs(self) -> list[int]:
        return [record["epoch"] for records in self.told for record in records]


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("loader", "batch_size", "shuffled"),
    [
        (BatchLoader((X, Y)), 21, False),
        (BatchLoader((X, Y), order="reshuffle", seed=3), 21, True),
        (MiniBatchLoader((X, Y), 8, seed=3), 8, True),
        (MiniBatchLoader((X, Y), 1, seed=3), 1, True),
        (MiniBatchLoader((X, Y), 8, order="sequential"), 8, False),
    ],
)
@pytest.mark.parametrize("scheduled", [False, True])
def test_weights_losses_and_history_are_those_of_the_plain_loop(
    loader, batch_size: int, shuffled: bool, scheduled: bool
) -> None:
    points, losses = Points(), StepLosses()
    trainer = make_trainer(loader, scheduled=scheduled, callbacks=[points, losses])
    history = trainer.fit(60)
    model, steps = by_hand(60, batch_size, shuffled, scheduled)
    assert weights(trainer.model) == weights(model)
    assert losses.losses == [loss for loss, _ in steps]
    per_epoch = -(-21 // batch_size)
    sizes = [*([batch_size] * per_epoch)[:-1], 21 - batch_size * (per_epoch - 1)]
    for epoch, record in enumerate(history.epochs):
        own = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        mean = sum(loss * size for (loss, _), size in zip(own, sizes, strict=True)) / 21
        assert record["train_loss"] == pytest.approx(mean, rel=1e-12)
        assert (record["epoch"], record["step"]) == (epoch + 1, (epoch + 1) * per_epoch)
        assert record["samples"] == 21 * (epoch + 1)
        assert record["lr"] == own[-1][1]
    assert history.seconds == sorted(history.seconds)
    assert points.blocks[:5] == [1, 2, 4, 8, 16], "blocks reach over epochs"
    assert sum(points.blocks) == 60 * per_epoch


def test_counters_and_history_are_true_within_a_block() -> None:
    seen = []

    class Looking(Trainer):
        def compute_loss(self, batch):
            p = self.progress
            seen.append((p.epoch, p.step, p.step_in_epoch, p.samples, len(self.history)))
            return super().compute_loss(batch)

    make_trainer(kind=Looking).fit(30)
    samples = [0, 8, 16]
    assert seen == [(e, 3 * e + i, i, 21 * e + samples[i], e) for e in range(30) for i in range(3)]


def test_records_are_told_once_in_order_and_complete() -> None:
    records = Records()
    held_out = BatchLoader((X, Y))
    trainer = make_trainer(validation=Validation(held_out, every_n_epochs=7), callbacks=[records])
    trainer.fit(20)
    trainer.fit(33)
    assert records.epochs == list(range(1, 34))
    assert len(records.told) < 25, "many at a time"
    flat = [record for told in records.told for record in told]
    assert flat == trainer.history.epochs
    assert [r["epoch"] for r in flat if "val_loss" in r] == [7, 14, 21, 28]


def test_ends_of_epochs_are_told_at_their_cadence_between_blocks() -> None:
    seen = []

    class Every(Callback):
        def on_epoch_end(self, trainer, record):
            seen.append((record["epoch"], trainer.progress.epoch, trainer.progress.step_in_epoch))

    make_trainer(callbacks=[Every(every_n_epochs=6)]).fit(30)
    assert seen == [(e, e, 0) for e in (6, 12, 18, 24, 30)]


def test_each_start_of_an_epoch_is_told_where_somebody_listens() -> None:
    seen = []

    class Starts(Callback):
        def on_epoch_start(self, trainer):
            seen.append((trainer.progress.epoch, trainer.progress.step))

    make_trainer(callbacks=[Starts()]).fit(20)
    assert seen == [(e, 3 * e) for e in range(20)]


def test_early_stopping_by_the_training_loss_looks_after_each_epoch() -> None:
    stopping = EarlyStopping("train_loss", patience=3, min_delta=10.0)
    trainer = make_trainer(callbacks=[stopping])
    trainer.fit(50)
    assert trainer.progress.epoch == 4


def test_early_stopping_by_a_validation_lets_blocks_reach_over_epochs_between() -> None:
    stopping = EarlyStopping("val_loss", patience=2, min_delta=10.0)
    points = Points()
    validation = Validation(BatchLoader((X, Y)), every_n_epochs=16)
    trainer = make_trainer(callbacks=[points, stopping], validation=validation)
    trainer.fit(500)
    assert trainer.progress.epoch == 48
    assert len(points.blocks) < 20


def test_a_wish_to_stop_within_a_block_ends_it_with_that_update() -> None:
    class Stopping(Trainer):
        def compute_loss(self, batch):
            if self.step == 70:
                self.stop("enough")
            return super().compute_loss(batch)

    trainer = make_trainer(kind=Stopping)
    trainer.fit(100)
    assert (trainer.step, trainer.progress.epoch, trainer.progress.step_in_epoch) == (71, 23, 2)


def test_a_loader_that_changes_within_a_block_counts_from_the_next_epoch_on() -> None:
    class Growing(Trainer):
        def compute_loss(self, batch):
            if self.step == 61:  # in the middle of epoch 21
                self.loader.batch_size = 11
            return super().compute_loss(batch)

    trainer = make_trainer(kind=Growing)
    history = trainer.fit(40)
    assert history.step == [3 * e for e in range(1, 22)] + [63 + 2 * e for e in range(1, 20)]


@pytest.mark.parametrize("change", ["nothing", "data", "seed", "loader"])
def test_epochs_of_one_batch_that_are_read_at_once_are_as_they_would_be_one_by_one(change) -> None:
    """A hook that nobody can see changes something within a block of 200 epochs."""

    def changed_at_90(model: nn.Module, does) -> list:
        calls, node = [], model[0].weight.expand_as(model[0].weight).grad_fn.next_functions[0][0]

        def hook(*_: object) -> None:
            calls.append(1)
            if len(calls) == 90:
                does()

        node.register_hook(hook)
        return [node]

    x, seed, epochs = X.clone(), 3, 200
    trainer = make_trainer(BatchLoader((x, Y), order="reshuffle", seed=3))
    other = BatchLoader((x, Y), order="reshuffle", seed=7)
    does = {
        "nothing": lambda: None,
        "data": lambda: x.mul_(1.5),
        "seed": lambda: setattr(trainer.loader, "seed", 7),
        "loader": lambda: setattr(trainer, "loader", other),
    }
    kept = changed_at_90(trainer.model, does[change])
    trainer.fit(epochs)

    own, model = X.clone(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(epochs):
        order = torch.randperm(21, generator=generator(seed, epoch))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(own[order]), Y[order]).backward()
        optimizer.step()
        if epoch == 89 and change == "data":
            own.mul_(1.5)
        if epoch == 89 and change in ("seed", "loader"):
            seed = 7
    assert kept
    for mine, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_growing_batches_keep_their_epochs() -> None:
    sizes = BatchSizes([(9, 8), (25, 16), (None, 21)])
    history = make_trainer(MiniBatchLoader((X, Y), sizes, seed=3)).fit(40)
    updates = [3] * 9 + [2] * 16 + [1] * 15
    assert history.step == [sum(updates[: e + 1]) for e in range(40)]


def test_a_callable_order_is_asked_once_in_an_epoch_when_it_begins() -> None:
    asked = []

    def order(epoch: int) -> torch.Tensor:
        asked.append((epoch, trainer.step))
        return torch.randperm(21, generator=generator(3, epoch))

    trainer = make_trainer(MiniBatchLoader((X, Y), 8, order=order))
    trainer.fit(12)
    assert asked == [(e, 3 * e) for e in range(12)]
    assert weights(trainer.model) == weights(by_hand(12)[0])


def test_an_error_within_a_block_leaves_all_that_was_made_counted_and_told() -> None:
    class Failing(Trainer):
        fails_at = 100

        def compute_loss(self, batch):
            if self.step == self.fails_at:
                self.fails_at = -1
                raise RuntimeError("out of luck")
            return super().compute_loss(batch)

    records = Records()
    trainer = make_trainer(kind=Failing, scheduled=True, callbacks=[records])
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(60)
    assert (trainer.step, trainer.progress.epoch, trainer.progress.step_in_epoch) == (100, 33, 1)
    assert records.epochs == list(range(1, 34))
    whole = make_trainer(scheduled=True)
    assert trainer.fit(60).train_loss == whole.fit(60).train_loss
    assert weights(trainer.model) == weights(whole.model)
    assert records.epochs == list(range(1, 61))


def test_a_schedule_that_fails_between_epochs_ends_the_fit_in_step() -> None:
    class Fails(ExponentialLR):
        def step(self, *arguments):
            if self.last_epoch == 20:
                raise RuntimeError("no rate")
            super().step(*arguments)

    trainer = make_trainer(callbacks=[records := Records()])
    trainer.schedule.scheduler = Fails(trainer.optimizer, 1.0)
    with pytest.raises(RuntimeError, match="no rate"):
        trainer.fit(50)
    assert (trainer.progress.epoch, trainer.step, len(trainer.history)) == (21, 63, 21)
    trainer.schedule.scheduler = None
    trainer.fit(50)
    assert records.epochs == list(range(1, 51))
    assert weights(trainer.model) == weights(by_hand(50)[0])


def test_a_run_resumed_at_any_update_within_a_block_ends_with_the_same_bits() -> None:
    class Stopping(Trainer):
        stops_at = -1

        def compute_loss(self, batch):
            if self.step == self.stops_at:
                self.stop("here")
            return super().compute_loss(batch)

    whole = make_trainer(scheduled=True)
    expected = whole.fit(30)
    numbers = Random(0)
    for _ in range(12):
        stopped = make_trainer(kind=Stopping, scheduled=True)
        stopped.stops_at = numbers.randrange(89)
        stopped.fit(30)
        assert stopped.step == stopped.stops_at + 1
        resumed = make_trainer(scheduled=True)
        resumed.load_state_dict(stopped.state_dict())
        history = resumed.fit(30)
        assert history.train_loss == expected.train_loss
        assert history.lr == expected.lr
        assert weights(resumed.model) == weights(whole.model)


def test_a_log_has_every_kth_update_in_its_place_though_it_ends_no_block(tmp_path: Path) -> None:
    points = Points()
    log = MetricsLog(tmp_path / "metrics.jsonl", every_n_steps=4)
    trainer = make_trainer(scheduled=True, callbacks=[points, log])
    trainer.fit(40)
    _, steps = by_hand(40, scheduled=True)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in logged] == list(range(4, 121, 4))
    assert [line["epoch"] for line in logged] == [(s - 1) // 3 + 1 for s in range(4, 121, 4)]
    assert [(line["loss"], line["lr"]) for line in logged] == steps[3::4]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert len(points.blocks) < 20


def test_numbers_of_the_moment_are_logged_at_their_step(tmp_path: Path) -> None:
    class Reporting(Callback):
        step = 0

        def on_safe_point(self, trainer):
            self.step = trainer.step

        def report(self):
            return {"own": self.step}

    log = MetricsLog(tmp_path / "metrics.jsonl", every_n_steps=10)
    make_trainer(callbacks=[Reporting(), log]).fit(40)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    steps = [(line["step"], line["own"]) for line in lines if line["kind"] == "step"]
    assert steps == [(s, s) for s in range(10, 121, 10)]


def test_the_message_of_a_bad_update_names_its_epoch_and_its_samples() -> None:
    class Bursting(Trainer):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            return loss * float("inf") if self.step == 70 else loss

    trainer = make_trainer(kind=Bursting)
    samples = torch.randperm(21, generator=generator(3, 23))[8:16].tolist()
    named = f"in epoch 24, step 71, with lr 0.02, on samples {', '.join(map(str, samples))};"
    with pytest.raises(NonFiniteError, match=named):
        trainer.fit(50)
    assert (trainer.step, trainer.progress.epoch, trainer.progress.step_in_epoch) == (70, 23, 1)


def test_a_trainer_that_overrides_the_epoch_has_it_called_for_each() -> None:
    class Own(Trainer):
        epochs = 0

        def _run_epoch(self):
            self.epochs += 1
            return super()._run_epoch()

    trainer = make_trainer(kind=Own)
    trainer.fit(25)
    assert trainer.epochs == 25
