"""Learning-rate schedules by name: each a pure function of the number of updates or epochs."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from gdtrain.errors import ConfigError
from gdtrain.registry import register_schedule
from gdtrain.settings import (
    NamedSettings,
    NonNegative,
    Positive,
    PositiveFloat,
    ScheduleSettings,
)
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.state.plain_values import is_finite
from gdtrain.wording import best_of

logger = logging.getLogger("gdtrain")

Scheduler = LRScheduler | ReduceLROnPlateau
# Schedules of torch's whose step changes the rate that it finds. Others compute it again.
_FROM_RATE = {
    *(lr_scheduler.ConstantLR, lr_scheduler.LinearLR, lr_scheduler.PolynomialLR),
    *(lr_scheduler.ExponentialLR, lr_scheduler.StepLR, lr_scheduler.MultiStepLR),
    *(lr_scheduler.MultiplicativeLR, lr_scheduler.CosineAnnealingLR, ReduceLROnPlateau),
}
# t (updates or epochs so far, from 0) -> factor on the optimizer's learning rate
Schedule = Callable[[int], float]


class Constant(ScheduleSettings):
    """α_t = α_0, after the warm-up."""


@register_schedule("constant", Constant)
def constant() -> Schedule:
    """α_t = α_0."""
    return _constant


class Cosine(ScheduleSettings):
    """α_t falls from α_0 along half a cosine (Loshchilov and Hutter, 2017)."""

    min_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The learning rate at the end of training, as a share of α_0."""


@register_schedule("cosine", Cosine)
def cosine(total: int, min_factor: float = 0.0) -> Schedule:
    """α_t = α_0 (m + (1 - m)(1 + cos(π t / total)) / 2), then m α_0 (Loshchilov, Hutter 2017, 5).

    total: length of the fall; min_factor: m, the share of α_0 at its end.
    """
    _check(total >= 1, "total", f"must be >= 1, got {total}")
    return partial(_cosine, total, min_factor)


class Step(ScheduleSettings):
    """α_t = α_0 · gamma^floor(t / every)."""

    every: Positive
    """Number of t between two reductions."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each reduction."""


@register_schedule("step", Step)
def step(every: int, gamma: float = 0.1) -> Schedule:
    """α_t = α_0 γ^⌊t / every⌋."""
    _check(every >= 1, "every", f"must be >= 1, got {every}")
    return partial(_step, every, gamma)


class Exponential(ScheduleSettings):
    """α_t = α_0 · gamma^t."""

    gamma: Annotated[float, Field(gt=0, le=1)]
    """Factor applied at each t."""


@register_schedule("exponential", Exponential)
def exponential(gamma: float) -> Schedule:
    """α_t = α_0 γ^t."""
    return partial(pow, gamma)


class InverseTime(ScheduleSettings):
    """α_t = a / (b + t) with a = α_0 · b (Robbins and Monro, 1951)."""

    b: PositiveFloat
    """After b steps (or epochs) the learning rate is half of α_0."""


@register_schedule("inverse_time", InverseTime)
def inverse_time(b: float = 1.0) -> Schedule:
    """α_t = a / (b + t) with a = α_0 b, so that it starts at α_0 (Robbins and Monro, 1951).

    Σ α_t diverges and Σ α_t² converges, the condition under which SGD converges.
    """
    _check(b > 0, "b", f"must be > 0, got {b}")
    return partial(_inverse_time, b)


def warmup(steps: int, then: Schedule) -> Schedule:
    """α_t = α_0 (t + 1) / (steps + 1) for t < steps, then the schedule ``then`` from its start."""
    _check(steps >= 0, "warmup", f"must be >= 0, got {steps}")
    return partial(_warmup, steps, then)


# Functions of t last, so that a schedule is a partial of one: those can be copied and pickled.


def _constant(_: int) -> float:
    return 1.0


def _cosine(total: int, least: float, t: int) -> float:
    return least + (1 - least) * (1 + math.cos(math.pi * min(t, total) / total)) / 2


def _step(every: int, gamma: float, t: int) -> float:
    power: float = gamma ** (t // every)
    return power


def _inverse_time(b: float, t: int) -> float:
    return b / (b + t)


def _warmup(steps: int, then: Schedule, t: int) -> float:
    return (t + 1) / (steps + 1) if t < steps else then(t - steps)


def scheduler(optimizer: Optimizer, schedule: Schedule) -> LambdaLR:
    """The schedule as a ``torch.optim.lr_scheduler`` for ``Trainer(scheduler=…)``."""
    return LambdaLR(optimizer, schedule)


class Plateau(NamedSettings):
    """α is multiplied by a factor when a metric of the epochs has stopped improving."""

    monitor: str | None = None
    """A metric of the epochs, checked after those that have it; by default val_loss, or train_loss
    without validation."""
    mode: Literal["min", "max"] | None = None
    """Whether lower or higher is better; by default max for accuracy, r2, f1, precision, recall,
    auroc, auc and iou, min otherwise."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of each reduction."""
    patience: Annotated[int, Field(ge=0, lt=2**31)] = 10
    """Number of values without improvement that are allowed before a reduction."""
    min_delta: NonNegative = 0.0
    """By how much a value must beat the best to count."""
    min_lr: NonNegative = 0.0
    """Lower bound on the learning rate."""


@register_schedule("plateau", Plateau)
def plateau(
    monitor: str | None = None,
    mode: Literal["min", "max"] | None = None,
    factor: float = 0.1,
    patience: int = 10,
    min_delta: float = 0.0,
    min_lr: float = 0.0,
) -> Callable[[Optimizer], ReduceLROnPlateau]:
    """α ← max(factor · α, min_lr) at each run of more than ``patience`` values without improvement.

    A value of the metric ``monitor`` improves if it beats the best by ``min_delta``. mode: ``min``
    or ``max``; if left out, by the metric's name.
    """
    options: dict[str, Any] = {"mode": mode or best_of(monitor or ""), "threshold_mode": "abs"}
    options |= {"factor": factor, "patience": patience, "threshold": min_delta, "min_lr": min_lr}
    return partial(ReduceLROnPlateau, **options, eps=0.0)


class ScheduleStepper:
    """Steps a scheduler once per update or once per epoch; without one it does nothing.

    metric: of the epochs' records, for ReduceLROnPlateau.
    """

    def __init__(
        self,
        scheduler: Scheduler | None,
        per: Literal["epoch", "step"],
        metric: str | None = None,
    ) -> None:
        if per not in ("epoch", "step"):
            raise ConfigError.of("scheduler_per", f"must be epoch or step, got {per!r}")
        if scheduler is not None or metric is not None:
            _check_scheduler(scheduler, per, metric)
        self.scheduler = scheduler
        self.per = per
        self.metric = metric
        self._is_validated: bool | None = None  # whether epochs have val_loss; not known yet

    def set_rate(self, optimizer: Optimizer, rate: Any) -> None:
        """Set the learning rate of all groups; see :attr:`Trainer.lr`."""
        _check(is_finite(rate) and rate >= 0, "lr", f"must be a number >= 0, got {rate!r}")
        _check(
            self.scheduler is None or _goes_on_from_rate(self.scheduler),
            "lr",
            f"can't be set beside {type(self.scheduler).__name__}, which would set it back; leave "
            "the schedule out, or change the schedule",
        )
        for group in optimizer.param_groups:
            group["lr"] = rate

    @property
    def schedulers(self) -> dict[str, Scheduler]:
        """Those that there are, by the names of their optimizers; a single one has none."""
        return {} if self.scheduler is None else {"": self.scheduler}

    @property
    def own_code(self) -> list[Any]:
        """Schedulers, and functions of t, that are neither PyTorch's nor the project's."""
        waiting, found = [self.scheduler] if self.scheduler is not None else [], []
        while waiting:
            scheduler: Any = waiting.pop()
            waiting += getattr(scheduler, "_schedulers", [])
            parts = [type(scheduler), *getattr(scheduler, "lr_lambdas", [])]
            if not all(_is_known(part) for part in parts):
                found += [scheduler, *parts[1:]]
        return found

    @property
    def by_metric(self) -> bool:
        """Whether the schedule is told a metric of each epoch."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    @property
    def by_step(self) -> bool:
        """Whether settings may change with every update."""
        return self.scheduler is not None and self.per == "step"

    def rows(self, steps: int, read: Callable[[], list[float]]) -> list[list[float]]:
        """What ``read`` finds in the optimizer before each of so many steps of the schedule."""
        if not steps:
            return []
        if type(self.scheduler) is LambdaLR and "step" not in vars(self.scheduler):
            return _rows_of_lambdas(self.scheduler, steps, read)
        rows = []
        for _ in range(steps):
            rows.append(read())
            self._step()
        return rows

    def mark(self, *, over_epochs: bool = False) -> Callable[[], None]:
        """How to come back here, should the next steps not be made after all.

        over_epochs: whether they reach over the end of an epoch.
        """
        if self.scheduler is None or not (self.by_step or over_epochs):
            return lambda: None
        groups = self.scheduler.optimizer.param_groups
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        settings, state = copy.deepcopy((settings, self.scheduler.state_dict()))

        def back() -> None:
            assert self.scheduler is not None
            self.scheduler.load_state_dict(state)
            for group, kept in zip(groups, settings, strict=True):
                group.update(kept)

        return back

    def after_step(self) -> None:
        """To be called after each update."""
        if self.per == "step":
            self._step()

    def after_epoch(self) -> None:
        """To be called after each epoch."""
        if self.per == "epoch" and not self.by_metric:
            self._step()

    def _step(self) -> None:
        if self.scheduler is not None:
            self.scheduler.step()

    def end_fit(self, records: Sequence[dict[str, Any]]) -> None:
        """To be called after a fit, with all records there are; warns of a metric that none has."""
        if self.metric is not None and records and not any(self.metric in r for r in records):
            logger.warning(
                "ReduceLROnPlateau: no epoch had %s, so nothing could change the rate by it",
                self.metric,
            )

    def after_validation(
        self, records: Sequence[dict[str, Any]], callbacks: Sequence[Callback]
    ) -> None:
        """To be called when the last epoch's record is complete, with all there are.

        ReduceLROnPlateau is given the metric, where the record has it.
        """
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            return
        validated = self._validates(records, callbacks)
        metric = self.metric or ("val_loss" if validated else "train_loss")
        if metric in records[-1]:
            self.scheduler.step(records[-1][metric])

    def _validates(self, records: Sequence[dict[str, Any]], callbacks: Sequence[Callback]) -> bool:
        """Whether epochs of the run have val_loss, be it only now and then."""
        if self._is_validated is None:
            self._is_validated = any("val_loss" in record for record in records)
        self._is_validated = self._is_validated or "val_loss" in records[-1]
        return self._is_validated or any(one.validates for one in callbacks)


def _goes_on_from_rate(scheduler: Scheduler) -> bool:
    """Whether each rate of a schedule is computed from the one that stands in the optimizer."""
    if type(scheduler) is lr_scheduler.ChainedScheduler:
        return all(map(_goes_on_from_rate, scheduler._schedulers))
    return type(scheduler) in _FROM_RATE


def _is_known(part: Any) -> bool:
    return part is None or part.__module__.partition(".")[0] in ("torch", "gdtrain")


def _rows_of_lambdas(
    scheduler: LambdaLR, steps: int, read: Callable[[], list[float]]
) -> list[list[float]]:
    """As :meth:`ScheduleStepper.rows`, with what LambdaLR.step computes and little else."""
    groups, t = scheduler.optimizer.param_groups, scheduler.last_epoch
    parts = list(zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True))
    rows = []
    for _ in range(steps):
        rows.append(read())
        t += 1
        for group, base, factor in parts:
            group["lr"] = base * factor(t)
    scheduler.last_epoch = t
    scheduler._step_count += steps
    scheduler._last_lr = [group["lr"] for group in groups]
    return rows


def _check_scheduler(scheduler: Any, per: str, metric: str | None) -> None:
    """Raise ConfigError for what is no scheduler, or does not go with the other settings."""
    _check(
        scheduler is None or (hasattr(scheduler, "step") and not isinstance(scheduler, type)),
        "scheduler",
        "must be a torch.optim.lr_scheduler, such as torch.optim.lr_scheduler.StepLR("
        f"optimizer, 10); got {scheduler!r}",
    )
    by_metric = isinstance(scheduler, ReduceLROnPlateau)
    rises = isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode == "max"
    _check(
        not (by_metric and per == "step"),
        "scheduler_per",
        "must be epoch for ReduceLROnPlateau, whose metrics are those of epochs",
    )
    _check(
        by_metric or metric is None,
        "scheduler_metric",
        "has no effect without ReduceLROnPlateau; leave it out",
    )
    _check(
        metric is not None or not rises,
        "scheduler_metric",
        "missing; ReduceLROnPlateau of mode max has to be told what is to rise, such as "
        "val_accuracy",
    )


def _check(holds: bool, key: str, message: str) -> None:
    if not holds:
        raise ConfigError.of(key, message)
