"""The end of an epoch: schedules, metrics that steer, early stopping; over errors and snapshots."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torchs

from gdtrain import BatchLoader, Callback, EarlyStopping, MiniBatchLoader, Trainer, Validation
from gdtrain.checkpoint.checkpoints import Checkpoints, CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.cli.main import main
from gdtrain.errors import ConfigError

draw = torch.Generator().manual_seed(2)
X = torch.randn(20, 3, generator=draw)
Y = X.sum(1, keepdim=True) + 0.3 * torch.randn(20, 1, generator=draw)


def build(*callbacks, schedule=None, **options) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return Trainer(
        model, nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 8, seed=1), device="cpu",
        scheduler=schedule(optimizer) if schedule else None, callbacks=callbacks, **options,
    )  # fmt: skip


class Tells(Callback):
    """Notes the epochs of which it is told, and the rate that stands then."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []
        self.rates: list[float] = []

    def on_epoch_end(self, trainer, record) -> None:
        self.epochs.append(record["epoch"])
        self.rates.append(trainer.lr)


class FailsOnce(Tells):
    def on_epoch_end(self, trainer, record) -> None:
        super().on_epoch_end(trainer, record)
        if record["epoch"] == 2 and self.epochs.count(2) == 1:
            raise RuntimeError("once")


class Keeps(Callback):
    """Takes a snapshot at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch, self.held = epoch, None

    def on_epoch_end(self, trainer, record) -> None:
        if record["epoch"] == self.epoch:
            self.held = trainer.state_dict()


SCHEDULES = {
    "exponential": lambda o: torchs.ExponentialLR(o, 0.5),
    "plateau": lambda o: torchs.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.3),
    "none": None,
}


def assert_same(one: Trainer, other: Trainer) -> None:
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert one.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]
    clean = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in t.history.epochs]
        for t in (one, other)
    ]
    assert clean[0] == clean[1]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("snapshot", [False, True])
def test_an_error_at_the_end_of_an_epoch(name, snapshot, tmp_path) -> None:
    """Nothing is done twice or left out: in the trainer itself, or in one that is restored."""
    options = {"schedule": SCHEDULES[name], "validation": BatchLoader((X[:5], Y[:5]))}
    whole = build(Tells(), FailsOnce(), Tells(), **options)
    whole.callbacks[2].epochs = [2]  # so that it never fails
    whole.fit(6)
    before, fails, after = Tells(), FailsOnce(), Tells()
    trainer = build(before, fails, after, **options)
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(6)
    assert (before.epochs, fails.epochs, after.epochs) == ([1, 2], [1, 2], [1])
    if snapshot:
        store = CheckpointStore(tmp_path)
        store.save(trainer.progress.step, trainer.state_dict())
        before, fails, after = Tells(), Tells(), Tells()
        trainer = build(before, fails, after, **options)
        # By its name, FailsOnce is another one; whoever was told is a Tells.
        trainer.callbacks[2] = fails = FailsOnce()
        fails.epochs = [2]
        trainer.load_state_dict(store.load_newest(tensor_check(trainer))[1])
        trainer.fit(6)
        assert before.epochs == [3, 4, 5, 6]
        assert after.epochs == [2, 3, 4, 5, 6]
    else:
        trainer.fit(6)
        assert before.epochs == after.epochs == [1, 2, 3, 4, 5, 6]
        assert fails.epochs == [1, 2, 2, 3, 4, 5, 6]
    assert_same(trainer, whole)
    assert len(trainer.callbacks[0].results) == 6


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_snapshot_at_the_end_of_an_epoch(name, epoch) -> None:
    """One taken by a callback, between the validation and others, goes on as if it were not."""
    options = {"schedule": SCHEDULES[name], "validation": BatchLoader((X[:5], Y[:5]))}
    stopping = lambda: EarlyStopping("val_loss", patience=2, min_delta=0.1)  # noqa: E731
    keeps = Keeps(epoch)
    whole = build(keeps, stopping(), **options)
    whole.fit(7)
    assert keeps.held["told"] == ["Validation"]
    other = build(Keeps(-1), stopping(), **options)
    other.load_state_dict(keeps.held)
    other.fit(7)
    assert_same(other, whole)
    assert other.stop_reason == whole.stop_reason
    assert other.callbacks[0].results == whole.callbacks[0].results


def test_a_callback_that_goes_back_to_an_earlier_state() -> None:
    class GoesBack(Callback):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.seen = None, []

        def on_epoch_end(self, trainer, record) -> None:
            self.seen.append(record["epoch"])
            if self.start is None:
                self.start = trainer.state_dict() | {"told": None}
            elif len(self.seen) == 3:
                trainer.load_state_dict(self.start)

    trainer = build(back := GoesBack(), schedule=SCHEDULES["exponential"])
    trainer.fit(4)
    assert back.seen == [1, 2, 3, 2, 3, 4]
    assert trainer.history.lr == pytest.approx([0.05, 0.025, 0.0125, 0.00625])


def test_the_schedule_has_moved_when_callbacks_are_told() -> None:
    tells = Tells()
    trainer = build(tells, schedule=SCHEDULES["exponential"])
    trainer.fit(3)
    assert trainer.history.lr == pytest.approx([0.05, 0.025, 0.0125])
    assert tells.rates == pytest.approx([0.025, 0.0125, 0.00625])


# ── schedules by a metric ───────────────────────────────────────────────────────────────────


class Gives(Callback):
    """Puts given numbers into the records, None where there is none."""

    def __init__(self, key: str, values) -> None:
        super().__init__()
        self.key, self.values = key, values

    def on_epoch_end(self, trainer, record) -> None:
        value = self.values[record["epoch"] - 1]
        if value is not None:
            record[self.key] = value


def rates_by_hand(values, epochs, **options) -> list[float]:
    """The rate of each epoch, by torch alone; values: None where there is none."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    schedule = torchs.ReduceLROnPlateau(optimizer, **options)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        if values[epoch] is not None:
            schedule.step(values[epoch])
    return rates


SCORES = [0.5, 0.6, 0.55, 0.52, 0.7, 0.69, 0.68, 0.1]
OPTIONS = {"factor": 0.5, "patience": 0}


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_of_ones_own(every, mode) -> None:
    values = [v if (i + 1) % every == 0 else None for i, v in enumerate(SCORES)]
    trainer = build(
        Gives("score", values),
        schedule=lambda o: torchs.ReduceLROnPlateau(o, mode, **OPTIONS),
        scheduler_metric="score",
    )
    trainer.fit(8)
    assert trainer.history.lr == rates_by_hand(values, 8, mode=mode, **OPTIONS)


def test_a_metric_of_the_validation() -> None:
    def score(outputs, targets):
        return (outputs - targets).abs().mean()

    trainer = build(
        schedule=lambda o: torchs.ReduceLROnPlateau(o, "max", **OPTIONS),
        scheduler_metric="val_score",
        metrics={"score": score},
        validation=Validation(BatchLoader((X[:5], Y[:5])), every_n_epochs=2),
    )
    history = trainer.fit(8)
    assert [v is None for v in history.val_score] == [True, False] * 4
    assert history.lr == rates_by_hand(history.val_score, 8, mode="max", **OPTIONS)
    assert history.lr[-1] < 0.05


def test_train_loss_in_a_run_without_validation() -> None:
    trainer = build(schedule=lambda o: torchs.ReduceLROnPlateau(o, threshold=0.5, **OPTIONS))
    history = trainer.fit(8)
    expected = rates_by_hand(history.train_loss, 8, threshold=0.5, **OPTIONS)
    assert history.lr == expected
    assert history.lr[-1] < 0.05


def test_train_loss_although_there_is_a_validation() -> None:
    trainer = build(
        schedule=lambda o: torchs.ReduceLROnPlateau(o, threshold=0.5, **OPTIONS),
        scheduler_metric="train_loss",
        validation=Validation(BatchLoader((X[:5], -Y[:5])), every_n_epochs=3),
    )
    history = trainer.fit(8)
    assert history.lr == rates_by_hand(history.train_loss, 8, threshold=0.5, **OPTIONS)


def test_a_metric_that_no_epoch_has_is_told(caplog) -> None:
    trainer = build(schedule=lambda o: torchs.ReduceLROnPlateau(o), scheduler_metric="val_loss")
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(2)
    assert caplog.messages == [
        "ReduceLROnPlateau: no epoch had val_loss, so nothing could change the rate by it"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"scheduler_metric": "val_loss"},
            "scheduler_metric: has no effect without ReduceLROnPlateau; leave it out",
        ),
        (
            {"scheduler_metric": "val_loss", "schedule": SCHEDULES["exponential"]},
            "scheduler_metric: has no effect without ReduceLROnPlateau; leave it out",
        ),
        (
            {"schedule": lambda o: torchs.ReduceLROnPlateau(o, "max")},
            "scheduler_metric: missing; ReduceLROnPlateau of mode max has to be told what is to "
            "rise, such as val_accuracy",
        ),
    ],
)
def test_settings_without_effect_or_sense(options, said) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**options)
    assert str(caught.value) == said


CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [4]}
loss: cross_entropy
loader: batch
optimizer: {lr: 0.1}
epochs: 9
"""


def records_of(directory: str) -> list[dict]:
    lines = Path(directory, "metrics.jsonl").read_text("utf-8").splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == "epoch"]


@pytest.mark.parametrize(
    ("section", "key", "options"),
    [
        ("{name: plateau, patience: 0, factor: 0.5, min_delta: 0.05}", "val_loss", {}),
        (
            "{name: plateau, monitor: val_accuracy, patience: 1, factor: 0.5}",
            "val_accuracy",
            {"mode": "max", "patience": 1, "threshold": 0.0},
        ),
        (
            "{name: plateau, monitor: train_loss, mode: max, patience: 2, factor: 0.5}",
            "train_loss",
            {"mode": "max", "patience": 2, "threshold": 0.0},
        ),
    ],
)
def test_plateau_in_a_configuration(section, key, options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(f"{CONFIG}scheduler: {section}\n", "utf-8")
    assert main(["--config", "a.yaml", "--output-dir", "out"]) == 0
    given = {"patience": 0, "factor": 0.5, "threshold": 0.05, "threshold_mode": "abs", "eps": 0.0}
    records = records_of("out")
    expected = rates_by_hand([record[key] for record in records], 9, **(given | options))
    assert [record["lr"] for record in records] == [2 * rate for rate in expected]
    assert records[-1]["lr"] < 0.1


def test_a_metric_that_a_configuration_does_not_have(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(f"{CONFIG}scheduler: {{name: plateau, monitor: val_mae}}\n", "utf-8")
    assert main(["--config", "a.yaml"]) == 2
    assert capsys.readouterr().err == (
        "a.yaml:7:37: scheduler.monitor: must be one of train_loss, val_loss, val_accuracy; "
        "got 'val_mae'\n"
    )


# ── early stopping ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_early_stopping_is_the_same_restored_or_not(at) -> None:
    """Whether the snapshot is of before the stop, of the stop itself, or of after it."""
    make = lambda: build(EarlyStopping("train_loss", patience=2, min_delta=1e9))  # noqa: E731
    alone, restored = make(), make()
    alone.fit(min(at, 3))
    if at > 3:
        alone.fit(20)
    restored.load_state_dict(alone.state_dict())
    for epochs in (20, 20, 30, 12):
        assert alone.fit(epochs).epoch == restored.fit(epochs).epoch
        assert alone.stop_reason == restored.stop_reason
    assert_same(alone, restored)


def test_a_run_that_has_stopped_early_ends_at_once_when_it_is_resumed(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stopping = "early_stopping: {monitor: train_loss, patience: 2, min_delta: 100}"
    Path("a.yaml").write_text(f"{CONFIG}{stopping}\n", "utf-8")
    assert main(["--config", "a.yaml", "--output-dir", "out"]) == 0
    names = ("summary.json", "model.safetensors")
    before = {name: Path("out", name).read_bytes() for name in names}
    assert json.loads(before["summary.json"])["epochs"] == 3
    Path("out/model.safetensors").unlink()
    assert main(["--config", "a.yaml", "--output-dir", "out", "--resume"]) == 0
    assert {name: Path("out", name).read_bytes() for name in names} == before
    assert len(records_of("out")) == 3


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [("val_accuracy", None, 2), ("val_score", None, 4), ("val_score", "max", 2)],
)
def test_what_is_best_goes_by_the_metric_or_by_mode(monitor, mode, best, tmp_path) -> None:
    values = [0.5, 0.9, 0.7, 0.1, 0.2, 0.3, 0.4]
    stopping = EarlyStopping(monitor, patience=3, mode=mode)
    store = CheckpointStore(tmp_path)
    saving = Checkpoints(store, keep_best=monitor, mode=mode)
    trainer = build(Gives(monitor, values), saving, stopping)
    trainer.fit(7)
    assert trainer.progress.epoch == best + 3
    assert store.best().name.startswith(f"step-{3 * best:010d}")


# ── fit ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("epochs", [2.5, 2.0, -1, "3", True, None, float("inf"), [3]])
def test_what_is_no_number_of_epochs_is_refused(epochs) -> None:
    trainer = build()
    with pytest.raises(ConfigError) as caught:
        trainer.fit(epochs)
    assert str(caught.value) == f"num_epochs: must be a whole number >= 0, got {epochs!r}"
    assert trainer.progress.step == 0


def test_a_fit_with_nothing_to_do_does_nothing() -> None:
    trainer = build()
    assert len(trainer.fit(0)) == 0
    assert len(trainer.fit(np.int64(2))) == 2
    assert len(trainer.fit(1)) == 2
    assert trainer.progress.step == 6
