"""Learning-rate schedules, against PyTorch's own and against their formulas."""

import pytest
import torch
from torch.optim import lr_scheduler

from gdtrain.errors import ConfigError
from gdtrain.training import schedules

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
