"""The loop: blocks, safe points, cadences, counters, stops and resumption."""

import copy
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gdtrain import (
    BatchLoader,
    Callback,
    EarlyStopping,
    MiniBatchLoader,
    SampleLoader,
    StepLosses,
    Trainer,
    Validation,
)
from gdtrain.errors import ConfigError, ModelError, NonFiniteError
from gdtrain.training.optimizing.schedules import ScheduleStepper

X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
Y = X.sin().sum(dim=1, keepdim=True)


def make_trainer(loader=None, lr=0.05, seed=1, **options) -> Trainer:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loader = loader or MiniBatchLoader((X, Y), 3)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", **options)


class Recorder(Callback):
    """Writes down every event with the progress at that moment."""

    def __init__(self, **cadence) -> None:
        super().__init__(**cadence)
        self.events: list[tuple] = []

    def note(self, event, trainer):
        p = trainer.progress
        self.events.append((event, p.epoch, p.step, p.step_in_epoch))

    def on_fit_start(self, trainer):
        self.note("fit_start", trainer)

    def on_epoch_start(self, trainer):
        self.note("epoch_start", trainer)

    def on_before_update(self, trainer):
        self.note("before_update", trainer)

    def on_safe_point(self, trainer):
        self.note("safe_point", trainer)

    def on_epoch_end(self, trainer, record):
        self.note("epoch_end", trainer)

    def on_fit_end(self, trainer):
        self.note("fit_end", trainer)


def test_events_of_two_epochs_of_three_batches_in_order() -> None:
    recorder = Recorder(every_n_steps=1)
    make_trainer(callbacks=[recorder]).fit(2)
    one_epoch = [
        [
            ("epoch_start", e, 3 * e, 0),
            *(
                event
                for i in range(3)
                for event in (
                    ("before_update", e, 3 * e + i, i),
                    ("safe_point", e, 3 * e + i + 1, i + 1),
                )
            ),
            ("epoch_end", e + 1, 3 * e + 3, 0),
        ]
        for e in range(2)
    ]
    assert recorder.events == [
        ("fit_start", 0, 0, 0),
        *one_epoch[0],
        *one_epoch[1],
        ("fit_end", 2, 6, 0),
    ]


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_a_step_cadence_is_met_exactly_across_epochs(every: int) -> None:
    recorder = Recorder(every_n_steps=every)
    make_trainer(SampleLoader((X, Y)), callbacks=[recorder]).fit(6)
    seen = [step for event, _, step, _ in recorder.events if event == "safe_point"]
    assert seen == list(range(every, 43, every))


def test_an_epoch_cadence_filters_epoch_ends_only() -> None:
    recorder = Recorder(every_n_steps=1, every_n_epochs=2)
    make_trainer(callbacks=[recorder]).fit(5)
    assert [e for event, e, _, _ in recorder.events if event == "epoch_end"] == [2, 4]


def test_a_time_cadence_is_asked_at_safe_points() -> None:
    often, never = Recorder(every_seconds=1e-9), Recorder(every_seconds=1e9)
    never.is_due(0)  # its first call is due at once
    make_trainer(callbacks=[often, never, Recorder(every_n_steps=1)]).fit(1)
    assert [s for event, _, s, _ in often.events if event == "safe_point"] == [1, 2, 3]
    assert [s for event, _, s, _ in never.events if event == "safe_point"] == []


def test_cadences_can_be_class_attributes_without_an_init() -> None:
    class Counting(Callback):
        every_n_steps = 2
        calls = 0

        def on_safe_point(self, trainer):
            self.calls += 1

    counting = Counting()
    make_trainer(callbacks=[counting]).fit(2)
    assert counting.calls == 3


def test_blocks_grow_while_nobody_looks_and_end_where_somebody_does() -> None:
    recorder = Recorder()
    make_trainer(SampleLoader((X, Y)), callbacks=[recorder]).fit(4)
    last_epoch = [i for event, e, _, i in recorder.events if event == "safe_point" and e == 3]
    assert last_epoch == [7]  # one block for the whole epoch


@pytest.mark.few(2)
@pytest.mark.parametrize("every", [None, 1, 3])
def test_losses_and_history_do_not_depend_on_where_blocks_end(every: int | None) -> None:
    big = torch.randn(211, 2, generator=torch.Generator().manual_seed(5))
    data = (big, big.sum(1, keepdim=True))
    plain = make_trainer(SampleLoader(data))
    expected = plain.fit(3).train_loss
    cut = make_trainer(SampleLoader(data), callbacks=[Recorder(every_n_steps=every)])
    assert cut.fit(3).train_loss == expected


def test_step_losses_are_batch_means_before_the_update_and_the_epoch_weights_them() -> None:
    losses = StepLosses()
    trainer = make_trainer(MiniBatchLoader((X, Y), 3, order="sequential"), callbacks=[losses])
    by_hand = copy.deepcopy(trainer.model)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(9)
    expected = []
    for s in (0, 3, 6):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(by_hand(X[s : s + 3]), Y[s : s + 3])
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    torch.manual_seed(9)
    history = trainer.fit(1)
    assert losses.losses == expected
    mean = (3 * expected[0] + 3 * expected[1] + expected[2]) / 7
    assert history.train_loss == [pytest.approx(mean, rel=1e-15)]


def test_fit_counts_epochs_in_total() -> None:
    once, twice = make_trainer(), make_trainer()
    once.fit(5)
    assert len(twice.fit(2)) == 2
    assert len(twice.fit(2)) == 2
    torch.manual_seed(1)  # dropout draws from the global generator, which `once` moved on
    fresh = make_trainer()
    fresh.fit(2)
    fresh.fit(5)
    assert fresh.history.train_loss == once.history.train_loss
    assert fresh.progress.step == 15
    assert fresh.progress.samples == 35


def test_a_stop_at_any_safe_point_and_a_second_fit_make_the_same_run() -> None:
    class StopAt(Callback):
        every_n_steps = 1

        def __init__(self, step):
            self.step = step

        def on_safe_point(self, trainer):
            if trainer.progress.step == self.step:
                trainer.stop("far enough")

    expected = make_trainer()
    expected.fit(3)
    for step in range(1, 10):
        trainer = make_trainer(callbacks=[StopAt(step)])
        trainer.fit(3)
        assert (trainer.progress.step, trainer.stop_reason) == (step, "far enough")
        trainer.fit(3)
        assert trainer.history.train_loss == expected.history.train_loss
        assert all(
            torch.equal(p, q)
            for p, q in zip(trainer.model.parameters(), expected.model.parameters(), strict=True)
        )


@pytest.mark.parametrize(
    "loader",
    [BatchLoader((X, Y)), SampleLoader((X, Y)), MiniBatchLoader((X, Y), 3)],
    ids=["batch", "sample", "minibatch"],
)
def test_a_snapshot_at_any_step_continues_to_the_same_bits(loader) -> None:
    def build():
        trainer = make_trainer(loader, validation=BatchLoader((X, Y)))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, 0.9)
        trainer.schedule = ScheduleStepper(scheduler, "step")
        return trainer

    class Snapshots(Callback):
        every_n_steps = 1

        def __init__(self):
            self.taken = []

        def on_safe_point(self, trainer):
            if trainer.callbacks[-1] is self:
                trainer.callbacks.pop()
                self.taken.append(trainer.state_dict())
                trainer.callbacks.append(self)

    undisturbed = build()
    snapshots = Snapshots()
    undisturbed.callbacks.append(snapshots)
    undisturbed.fit(3)
    assert len(snapshots.taken) == undisturbed.progress.step
    for snapshot in snapshots.taken:
        resumed = build()
        resumed.load_state_dict(snapshot)
        resumed.fit(3)
        assert resumed.history.epochs[-1]["val_loss"] == undisturbed.history.val_loss[-1]
        assert resumed.history.train_loss == undisturbed.history.train_loss
        assert all(
            torch.equal(p, q)
            for p, q in zip(resumed.model.parameters(), undisturbed.model.parameters(), strict=True)
        )


def test_a_snapshot_is_a_copy_and_loading_leaves_it_alone() -> None:
    trainer = make_trainer()
    trainer.fit(1)
    snapshot = trainer.state_dict()
    kept = copy.deepcopy(snapshot["model"])
    trainer.fit(2)
    trainer.load_state_dict(snapshot)
    trainer.fit(3)
    assert all(torch.equal(snapshot["model"][k], kept[k]) for k in kept)


@pytest.fixture
def terminal() -> Iterator[None]:
    """Ctrl-C does what it does at a terminal; a shell lets what it starts behind it ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_stops_at_a_safe_point_and_fit_goes_on_from_there() -> None:
    class PressCtrlC(Callback):
        def on_before_update(self, trainer):
            if trainer.progress.epoch == 1 and not trainer.should_stop and not self.pressed:
                self.pressed = True
                os.kill(os.getpid(), signal.SIGINT)

        pressed = False

    expected = make_trainer()
    expected.fit(4)
    trainer = make_trainer(callbacks=[PressCtrlC()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(4)
    assert trainer.stop_reason == "interrupted"
    assert 3 < trainer.progress.step < 12
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.fit(4)
    assert trainer.history.train_loss == expected.history.train_loss


@pytest.mark.usefixtures("terminal")
def test_a_second_ctrl_c_interrupts_at_once() -> None:
    class PressTwice(Callback):
        def on_before_update(self, trainer):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer = make_trainer(callbacks=[PressTwice()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(1)
    assert trainer.progress.step == 0


def test_early_stopping_counts_epochs_without_improvement_by_min_delta() -> None:
    class Scripted(Callback):
        values = (5.0, 4.0, 3.95, float("nan"), 3.0, 3.5, 3.4, 3.3)

        def on_epoch_end(self, trainer, record):
            record["val_loss"] = self.values[record["epoch"] - 1]

    stopping = EarlyStopping("val_loss", patience=2, min_delta=0.1)
    trainer = make_trainer(callbacks=[Scripted(), stopping])
    trainer.fit(8)
    assert trainer.progress.epoch == 4
    assert trainer.stop_reason == "val_loss did not improve for 2 epochs"
    trainer.fit(8)  # a wish to go on: 3.0 improves, 3.5 and 3.4 do not
    assert trainer.progress.epoch == 7
    assert stopping.best == 3.0


def test_early_stopping_tells_of_a_metric_that_never_came(caplog) -> None:
    make_trainer(callbacks=[EarlyStopping("val_loss")]).fit(2)
    said = "early stopping: no epoch had val_loss, so nothing could stop the run by it"
    assert caplog.messages == [said]
    caplog.clear()
    every_second = Validation(BatchLoader((X[:4], Y[:4])), every_n_epochs=2)
    make_trainer(validation=every_second, callbacks=[EarlyStopping("val_loss")]).fit(3)
    assert caplog.messages == []


def test_validation_by_epochs_and_by_steps() -> None:
    held_out = BatchLoader((X[:4], Y[:4]))
    every_second = make_trainer(validation=Validation(held_out, every_n_epochs=2))
    history = every_second.fit(4)
    assert [value is None for value in history.val_loss] == [True, False, True, False]
    assert history.val_loss[-1] == every_second.evaluate(held_out)["loss"]

    by_steps = Validation(held_out, every_n_steps=2)
    trainer = make_trainer(validation=by_steps)
    trainer.fit(2)
    assert [(r["epoch"], r["step"]) for r in by_steps.results] == [(0, 2), (1, 4), (1, 6)]
    assert trainer.history.val_loss == [by_steps.results[i]["val_loss"] for i in (0, 2)]


def test_reduce_on_plateau_gets_the_validation_loss() -> None:
    trainer = make_trainer(lr=1e-12, validation=BatchLoader((X, Y)))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        trainer.optimizer, patience=0, factor=0.5, eps=0
    )
    trainer.schedule = ScheduleStepper(scheduler, "epoch")
    history = trainer.fit(4)
    assert history.lr == [1e-12, 1e-12, 0.5e-12, 0.25e-12]


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where() -> None:
    trainer = make_trainer(SampleLoader((X, Y), order="sequential"), lr=1e20)
    with pytest.raises(
        NonFiniteError,
        match=r"^loss is (nan|inf) in epoch 1, step \d, with lr 1e\+20, on sample \d; first tensor "
        r"that is not finite: [^;]*; weights and optimizer are as they were before this update; "
        r"try a smaller lr, clip_grad_norm, or standardised inputs$",
    ):
        trainer.fit(1)


def test_a_model_in_eval_mode_is_put_in_train_mode_but_frozen_parts_stay() -> None:
    whole, partly = make_trainer(), make_trainer()
    whole.model.eval()
    whole.fit(1)
    assert all(module.training for module in whole.model.modules())
    partly.model[2].eval()
    partly.fit(1)
    assert [m.training for m in partly.model] == [True, True, False, True]


def test_the_loader_can_be_changed_between_fits() -> None:
    trainer = make_trainer(SampleLoader((X, Y)))
    trainer.fit(1)
    trainer.loader = BatchLoader((X, Y))
    trainer.fit(3)
    assert trainer.progress.step == 7 + 1 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_grad_norm": 0}, "clip_grad_norm: must be > 0, got 0"),
        ({"microbatch_size": -1}, "microbatch_size: must be > 0 or auto, got -1"),
        (
            {"engine": "warp"},
            "engine: must be one of auto, eager, compile, scan, cuda_graph; got 'warp'",
        ),
        ({"scheduler_per": "day"}, "scheduler_per: must be epoch or step, got 'day'"),
        ({"precision": "fp8"}, "precision: must be one of fp32, bf16, fp16, fp64; got 'fp8'"),
    ],
)
def test_wrong_settings_are_config_errors(options, message) -> None:
    with pytest.raises(ConfigError) as caught:
        make_trainer(**options)
    assert str(caught.value) == message


def test_a_torch_dataloader_is_refused_with_the_remedy() -> None:
    dataset = torch.utils.data.TensorDataset(X, Y)
    with pytest.raises(ModelError) as caught:
        make_trainer(torch.utils.data.DataLoader(dataset))
    assert str(caught.value) == (
        "loader: a torch DataLoader has no order by seed and epoch; give its data set to a loader, "
        "as in MiniBatchLoader(dataset, 1)"
    )


def test_bare_data_is_refused_for_evaluation_and_validation() -> None:
    message = (
        "must be a Loader (BatchLoader, SampleLoader, MiniBatchLoader, PhasedLoader or one of your "
        "own), got a tuple; give its data set to one of these"
    )
    with pytest.raises(ModelError) as caught:
        make_trainer().evaluate((X, Y))
    assert str(caught.value) == f"loader: {message}"
    with pytest.raises(ModelError) as caught:
        make_trainer(validation=(X, Y))
    assert str(caught.value) == f"validation: {message}"


def test_overriding_compute_loss_sees_every_batch_once_and_keeps_the_rest() -> None:
    class Ridge(Trainer):
        seen = 0

        def compute_loss(self, batch):
            self.seen += 1
            penalty = sum(p.square().sum() for p in self.model.parameters())
            return nn.functional.mse_loss(self.model(batch.inputs), batch.targets) + 0.1 * penalty

    torch.manual_seed(1)
    model, decayed = nn.Linear(2, 1), nn.Linear(2, 1)
    decayed.load_state_dict(model.state_dict())
    loader = MiniBatchLoader((X, Y), 3)
    ridge = Ridge(model, None, torch.optim.SGD(model.parameters(), lr=0.1), loader, device="cpu")
    ridge.fit(2)
    # ∂(0.1 |θ|²)/∂θ = 0.2 θ, which is what weight_decay 0.2 adds
    optimizer = torch.optim.SGD(decayed.parameters(), lr=0.1, weight_decay=0.2)
    Trainer(decayed, nn.MSELoss(), optimizer, loader, device="cpu").fit(2)
    assert ridge.seen == 6
    assert torch.allclose(model.weight, decayed.weight, atol=1e-6)
    assert torch.allclose(model.bias, decayed.bias, atol=1e-6)


def test_overriding_train_step_replaces_the_update() -> None:
    class SignDescent(Trainer):
        def train_step(self, batch):
            loss = self.batch_gradient(batch)
            with torch.no_grad():
                for p in self.model.parameters():
                    p -= 0.5 * p.grad.sign()
            return loss

    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    trainer = SignDescent(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        BatchLoader((X, Y)),
        device="cpu",
    )
    trainer.fit(1)
    assert torch.allclose((model.weight - before).abs(), torch.full((1, 2), 0.5))
