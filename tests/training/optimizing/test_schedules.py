"""Learning-rate schedules, against PyTorch's own and against their formulas."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError
from gdtrain.training.optimizing import schedules

STEPS = 40


def rates(make_scheduler) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make_scheduler(optimizer)
    seen = []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def ours(schedule: schedules.Schedule) -> list[float]:
    return rates(lambda optimizer: schedules.scheduler(optimizer, schedule))


@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        (schedules.cosine(STEPS), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (
            schedules.cosine(STEPS, min_factor=0.1),
            lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.03),
        ),
        (schedules.step(7, gamma=0.5), lambda o: lr_scheduler.StepLR(o, 7, 0.5)),
        (schedules.exponential(0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        (schedules.constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (
            schedules.warmup(4, schedules.constant()),
            lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=4),
        ),
    ],
)
def test_they_equal_torchs_own(schedule, torchs) -> None:
    assert ours(schedule) == pytest.approx(rates(torchs), rel=1e-9)


def test_inverse_time_is_a_over_b_plus_t() -> None:
    assert ours(schedules.inverse_time(b=8.0)) == pytest.approx(
        [0.3 * 8 / (8 + t) for t in range(STEPS)], rel=1e-12
    )


def test_warmup_rises_in_a_line_and_then_starts_the_schedule() -> None:
    expected = [0.3 * (t + 1) / 4 for t in range(3)] + [0.3 * 0.5**t for t in range(STEPS - 3)]
    assert ours(schedules.warmup(3, schedules.exponential(0.5))) == pytest.approx(expected)


def test_cosine_stays_at_its_end() -> None:
    assert ours(schedules.cosine(10, min_factor=0.25))[10:] == pytest.approx([0.075] * 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.cosine(0), "total: must be >= 1, got 0"),
        (lambda: schedules.step(0), "every: must be >= 1, got 0"),
        (lambda: schedules.inverse_time(0), "b: must be > 0, got 0"),
        (lambda: schedules.warmup(-1, schedules.constant()), "warmup: must be >= 0, got -1"),
    ],
)
def test_wrong_arguments(make, message) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


# ── Trainer.lr ──────────────────────────────────────────────────────────────────────────────


def rated(make_scheduler=None, rates=(0.1, 0.02), **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    groups = [
        {"params": layer.parameters(), "lr": lr} for layer, lr in zip(model, rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    return model, optimizer, make_scheduler(optimizer) if make_scheduler else None


def trained_by_hand(make_scheduler, per):
    model, optimizer, scheduler = rated(make_scheduler)
    seen = []
    for epoch in range(4):
        for inputs, targets in zip(X.split(4), Y.split(4), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            if scheduler is not None and per == "step":
                scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
        if scheduler is not None and per == "epoch":
            scheduler.step()
        if epoch == 1:
            for group in optimizer.param_groups:
                group["lr"] = 0.003
    return model, optimizer


class SetsRate(Callback):
    def on_epoch_end(self, trainer, record):
        if record["epoch"] == 2:
            trainer.lr = 0.003
            assert trainer.lr == 0.003


draw = torch.Generator().manual_seed(0)
X = torch.randn(10, 2, generator=draw)
Y = X.sum(1, keepdim=True)
FROM_RATE = {
    "none": None,
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "steps": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.5, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def test_a_schedule_by_a_metric_that_comes_in_mid_run_is_told_the_metric() -> None:
    model, optimizer, scheduler = rated(FROM_RATE["exponential"])
    told: list[float] = []

    class Plateau(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            told.append(metrics)
            super().step(metrics)

    class Replaces(Callback):
        def on_epoch_end(self, trainer, record):
            if record["epoch"] == 1:
                trainer.schedule.scheduler = Plateau(optimizer)

    trainer = Trainer(
        model, torch.nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 4, order="sequential"),
        device="cpu", scheduler=scheduler, callbacks=[Replaces()],
    )  # fmt: skip
    history = trainer.fit(3)
    assert told == history.train_loss  # it is stepped when the epoch is over for all callbacks


@pytest.mark.parametrize("name", FROM_RATE)
@pytest.mark.parametrize("per", ["step", "epoch"])
def test_a_rate_that_is_set_does_what_a_loop_by_hand_does(name, per) -> None:
    hand, by_hand = trained_by_hand(FROM_RATE[name], per)
    model, optimizer, scheduler = rated(FROM_RATE[name])
    Trainer(
        model, torch.nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 4, order="sequential"),
        device="cpu", scheduler=scheduler, scheduler_per=per, callbacks=[SetsRate()],
    ).fit(4)  # fmt: skip
    for mine, theirs in zip(model.parameters(), hand.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in by_hand.param_groups]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=100),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LambdaLR(o, lambda t: 0.5)]),
    ],
)
def test_a_rate_that_a_schedule_would_set_back_is_refused(make) -> None:
    model, optimizer, scheduler = rated(make)
    trainer = Trainer(
        model, torch.nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 4), scheduler=scheduler
    )
    before = trainer.lr
    with pytest.raises(ConfigError) as caught:
        trainer.lr = 0.01
    assert str(caught.value) == (
        f"lr: can't be set beside {type(scheduler).__name__}, which would set it back; leave the "
        "schedule out, or change the schedule"
    )
    assert trainer.lr == before == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf"), "0.1", None, True])
def test_what_is_no_rate_is_refused(rate) -> None:
    model, optimizer, _ = rated()
    trainer = Trainer(model, torch.nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 4))
    with pytest.raises(ConfigError) as caught:
        trainer.lr = rate
    assert str(caught.value) == f"lr: must be a number >= 0, got {rate!r}"
    assert trainer.lr == 0.1


@pytest.mark.parametrize("named", [False, True])
def test_a_schedule_of_another_optimizer_is_refused(named: bool) -> None:
    """A notebook that makes the optimizer again, and not the schedule, would change no rate."""
    model = nn.Linear(2, 1)
    before, optimizer = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    schedule = torch.optim.lr_scheduler.StepLR(before, 2)
    given = ({"a": optimizer}, {"a": schedule}) if named else (optimizer, schedule)
    loader = BatchLoader((torch.zeros(4, 2), torch.zeros(4, 1)))
    with pytest.raises(ConfigError) as told:
        Trainer(model, nn.MSELoss(), given[0], loader, scheduler=given[1])
    assert str(told.value) == (
        "scheduler: sets the rate of another optimizer than the one given, and so has no effect; "
        "make it with that optimizer"
    )
