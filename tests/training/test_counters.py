"""The counters of a run: right at any moment, and after an error."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from gdtrain import BatchLoader, Callback, EarlyStopping, MiniBatchLoader, Trainer, Validation


def data(rows=64):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 3, generator=draw)
    return x, x.sum(1, keepdim=True) + 0.1 * torch.randn(rows, 1, generator=draw)


# ── the number of the update ────────────────────────────────────────────────────────────────────


class Seen(Trainer):
    def compute_loss(self, batch):
        if torch.is_grad_enabled():
            self.__dict__.setdefault("seen", []).append(self.progress.step)
        return super().compute_loss(batch)


class Look(Callback):
    def __init__(self, every):
        super().__init__(every_n_steps=every)


class BeforeUpdates(Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_before_update(self, trainer):
        self.seen.append(trainer.progress.step)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("every", [None, 1, 3, 7])
def test_step_that_compute_loss_sees(optimizer, every):
    """compute_loss sees 0, 1, 2, … in progress.step, wherever blocks end."""
    model = nn.Linear(3, 1)
    trainer = Seen(
        model,
        nn.MSELoss(),
        optimizer(model.parameters(), lr=0.01),
        MiniBatchLoader(data(), 4),
        callbacks=[Look(every)] if every else [],
        device="cpu",
    )
    trainer.fit(3)
    assert trainer.seen == list(range(3 * 16))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_step_that_on_before_update_sees(optimizer):
    """on_before_update sees 0, 1, 2, … in progress.step."""
    model, look = nn.Linear(3, 1), BeforeUpdates()
    Trainer(
        model,
        nn.MSELoss(),
        optimizer(model.parameters(), lr=0.01),
        MiniBatchLoader(data(), 4),
        callbacks=[look],
        device="cpu",
    ).fit(2)
    assert look.seen == list(range(2 * 16))


class Annealed(Trainer):
    def compute_loss(self, batch):
        weight = min(1.0, self.progress.step / 20)
        fit = F.mse_loss(self.model(batch.inputs), batch.targets)
        return fit + weight * self.model.weight.square().sum()


@pytest.mark.parametrize("every", [None, 5])
@pytest.mark.parametrize("clip", [None, 1e9])
def test_loss_that_depends_on_the_step(every, clip):
    """A penalty that grows with progress.step gives the bits of the same loop by hand."""
    x, y = data()
    torch.manual_seed(0)
    hand = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05)
    step = 0
    for _ in range(3):
        for inputs, targets in zip(x.split(8), y.split(8), strict=True):
            fit = F.mse_loss(hand(inputs), targets)
            loss = fit + min(1.0, step / 20) * hand.weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    Annealed(
        model,
        None,
        torch.optim.SGD(model.parameters(), lr=0.05),
        MiniBatchLoader((x, y), 8, order="sequential"),
        clip_grad_norm=clip,
        device="cpu",
        callbacks=[Look(every)] if every else [],
    ).fit(3)
    assert torch.equal(model.weight, hand.weight)


# ── errors in mid-epoch ─────────────────────────────────────────────────────────────────────────


class Count(nn.Module):
    """The weight counts the updates: its gradient is 1, so at lr 1 it is minus their number."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.fail_at, self.calls = None, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("once")
        return self.w + 0.0 * x

    @property
    def updates(self):
        return -int(self.w.detach())


class Rows(Dataset):
    fail_at = None

    def __len__(self):
        return 128

    def __getitem__(self, i):
        if i == self.fail_at:
            self.fail_at = None
            raise RuntimeError("once")
        return torch.full((1,), float(i), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


class FailsAt(Callback):
    def __init__(self, event, step):
        super().__init__(every_n_steps=1 if event == "on_safe_point" else None)
        self.event, self.step = event, step

    def fail(self, trainer, event):
        if event == self.event and trainer.model.updates == self.step:
            self.step = None
            raise RuntimeError("once")

    def on_safe_point(self, trainer):
        self.fail(trainer, "on_safe_point")


class FailsBeforeUpdate(FailsAt):
    def on_before_update(self, trainer):
        self.fail(trainer, "on_before_update")


def counted(rows=None, callbacks=(), **loader):
    rows = rows if rows is not None else tuple(torch.zeros(2, 128, 1, dtype=torch.float64))
    model = Count()
    return model, Trainer(
        model,
        lambda output, targets: output.mean(),
        torch.optim.SGD(model.parameters(), lr=1.0),
        MiniBatchLoader(rows, 4, order="sequential", **loader),
        callbacks=callbacks,
        device="cpu",
    )


def goes_on(model, trainer, updates):
    """One error in ``updates`` updates, and then a fit to the end of two epochs of 32."""
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(2)
    assert model.updates == trainer.progress.step == updates
    history = trainer.fit(2)
    assert model.updates == trainer.progress.step == 64
    assert len(history) == 2
    assert trainer.progress.samples == 256


@pytest.mark.parametrize("at", [1, 20, 45])
def test_error_in_the_model(at):
    """After an error in forward, counters are those of the updates made; the next fit goes on."""
    model, trainer = counted()
    model.fail_at = at
    goes_on(model, trainer, at - 1)


@pytest.mark.parametrize("at", [0, 50, 101])
def test_error_in_the_data_set(at):
    """An item that can't be read costs no update that was made, and repeats none."""
    rows = Rows()
    model, trainer = counted(rows)
    rows.fail_at = at
    goes_on(model, trainer, at // 4)


def test_error_in_the_collate_function():
    """An error in collate_fn costs no update that was made, and repeats none."""
    failed = []

    def collate(items):
        if items[0][0] == 80.0 and not failed:
            failed.append(True)
            raise RuntimeError("once")
        return default_collate(items)

    model, trainer = counted(Rows(), collate_fn=collate)
    goes_on(model, trainer, 20)


@pytest.mark.parametrize("kind", ["on_safe_point", "on_before_update"])
def test_error_in_a_callback(kind):
    """After an error in a callback, counters are true and the next fit goes on."""
    kinds = {"on_safe_point": FailsAt, "on_before_update": FailsBeforeUpdate}
    model, trainer = counted(callbacks=[kinds[kind](kind, 13)])
    goes_on(model, trainer, 13)


def test_schedule_after_an_error_at_the_end_of_an_epoch():
    """A callback's error at an epoch's end moves the schedule neither twice nor not at all."""

    class Fails(Callback):
        failed = False

        def on_epoch_end(self, trainer, record):
            if record["epoch"] == 2 and not self.failed:
                self.failed = True
                raise RuntimeError("once")

    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        BatchLoader(data()),
        callbacks=[Fails()],
        device="cpu",
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    )
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(5)
    history = trainer.fit(5)
    assert history.lr == pytest.approx([0.01, 0.005, 0.0025, 0.00125, 0.000625])
    assert history.epoch == [1, 2, 3, 4, 5]


# ── early stopping, and schedules that wait for a metric ────────────────────────────────────────


def stops_early():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    never = EarlyStopping("train_loss", patience=2, min_delta=1e9)
    return Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.01),
        BatchLoader(data()),
        callbacks=[never],
        device="cpu",
    )


def test_early_stopping_after_restore():
    """A restored trainer that has stopped early goes on at the next fit, as any does."""
    alone = stops_early()
    alone.fit(1)
    snapshot = alone.state_dict()
    expected = [(alone.fit(20), alone.progress.epoch)[1] for _ in range(3)]
    restored = stops_early()
    restored.load_state_dict(snapshot)
    assert [(restored.fit(20), restored.progress.epoch)[1] for _ in range(3)] == expected


def lr_by_hand(values, **options):
    """The learning rate after a plateau schedule has been given these values, by torch alone."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    for value in values:
        schedule.step(value)
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("kind", ["worsens", "improves"])
def test_plateau_with_validation_now_and_then(every, kind):
    """ReduceLROnPlateau is given the validation losses that there are, and nothing in between."""
    x, y = data()
    held = (x, -y) if kind == "worsens" else (3 * x, 3 * y)
    options = {"patience": 1 if kind == "worsens" else 0, "factor": 0.5}
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    history = Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        BatchLoader((x, y)),
        device="cpu",
        scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options),
        validation=Validation(BatchLoader(held), every_n_epochs=every),
    ).fit(12)
    values = [value for value in history.val_loss if value is not None]
    assert len(values) == 12 // every
    rises = [b > a for a, b in pairwise(values)]
    assert all(rises) if kind == "worsens" else not any(rises)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr_by_hand(values, **options))
