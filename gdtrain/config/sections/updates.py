"""How weights are updated: optimizers and learning-rate schedules with their options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gdtrain.config.registry import Strict
from gdtrain.config.sections.bounds import NonNegative, Positive, PositiveFloat, shorthand

Momentum = Annotated[float, Field(ge=0, lt=1)]


# ── optimizers ──────────────────────────────────────────────────────────────────────────────


class Sgd(Strict):
    """torch.optim.SGD."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat
    """Learning rate."""
    momentum: Momentum = 0.0
    """Share of the last velocity that is kept."""
    dampening: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the gradient that is left out of the velocity; needs momentum."""
    weight_decay: NonNegative = 0.0
    """L2 penalty added to the gradient, as weight_decay · θ."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum and no dampening."""

    @field_validator("dampening", "nesterov")
    @classmethod
    def _needs_momentum(cls, value: float, info: ValidationInfo) -> float:
        if value and not info.data.get("momentum", 1):
            raise ValueError("has no effect without momentum; set momentum, or remove it")
        if info.field_name == "nesterov" and value and info.data.get("dampening"):
            raise ValueError("needs dampening 0; remove one of the two")
        return value


class Adam(Strict):
    """torch.optim.Adam."""

    name: Literal["adam"]
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegative = 0.0
    """L2 penalty added to the gradient."""


class AdamW(Strict):
    """torch.optim.AdamW."""

    name: Literal["adamw"]
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegative = 0.01
    """Decay of the weights, apart from the gradient."""


class Lbfgs(Strict):
    """torch.optim.LBFGS, for the batch loader: it needs the same loss at each evaluation."""

    name: Literal["lbfgs"]
    lr: PositiveFloat = 1.0
    """Length of the first step tried."""
    max_iter: Positive = 20
    """Iterations in one update."""
    history_size: Positive = 100
    """Updates remembered."""
    line_search: bool = True
    """Search each step's length by the strong Wolfe conditions."""


def _sgd_by_default(value: Any) -> Any:
    return {"name": "sgd", **value} if isinstance(value, dict) and "name" not in value else value


OptimizerSection = Annotated[
    Sgd | Adam | AdamW | Lbfgs,
    Field(discriminator="name"),
    shorthand("name"),
    BeforeValidator(_sgd_by_default),
]


# ── schedules ───────────────────────────────────────────────────────────────────────────────


class Schedule(Strict):
    """What every schedule takes; t counts steps or epochs, α_0 is the optimizer's lr."""

    per: Literal["step", "epoch"] = "step"
    """What t counts: updates, or epochs."""
    warmup: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Rise in a line to α_0 over this many t first; the schedule starts after it."""


class Constant(Schedule):
    """α_t = α_0, after the warm-up."""

    name: Literal["constant"]


class Cosine(Schedule):
    """α_t falls from α_0 along half a cosine (Loshchilov and Hutter, 2017)."""

    name: Literal["cosine"]
    min_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of α_0 at the end of training."""


class Step(Schedule):
    """α_t = α_0 · gamma^floor(t / every)."""

    name: Literal["step"]
    every: Positive
    """How many t between two falls."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each fall."""


class Exponential(Schedule):
    """α_t = α_0 · gamma^t."""

    name: Literal["exponential"]
    gamma: Annotated[float, Field(gt=0, le=1)]
    """Factor of each t."""


class InverseTime(Schedule):
    """α_t = a / (b + t) with a = α_0 · b (Robbins and Monro, 1951)."""

    name: Literal["inverse_time"]
    b: PositiveFloat
    """After b steps (or epochs) the learning rate is half of α_0."""


class Plateau(Strict):
    """α falls by a factor where a metric of the epochs has stopped improving."""

    name: Literal["plateau"]
    monitor: str | None = None
    """A metric of the epochs, looked at after those that have it; by default val_loss, or
    train_loss without validation."""
    mode: Literal["min", "max"] | None = None
    """Whether lower or higher is better; by default max of an accuracy, else min."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of each fall."""
    patience: Annotated[int, Field(ge=0, lt=2**31)] = 10
    """How many of the metric's values may pass without an improvement before a fall."""
    min_delta: NonNegative = 0.0
    """By how much a value must beat the best to count."""
    min_lr: NonNegative = 0.0
    """The learning rate falls no further."""


ScheduleSection = Annotated[
    Constant | Cosine | Step | Exponential | InverseTime | Plateau,
    Field(discriminator="name"),
    shorthand("name"),
]
