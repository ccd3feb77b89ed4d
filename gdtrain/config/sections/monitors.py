"""The monitors that a configuration can ask for, each with its cadence and options."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from gdtrain.config.registry import Strict
from gdtrain.config.sections.bounds import Positive, instead_of


class MonitorSection(Strict):
    """What a monitor with a cadence in steps or epochs takes."""

    every_n_steps: Positive | None = None
    """Look after every k-th update; the monitor's own default if neither is given."""
    every_n_epochs: Annotated[Positive | None, instead_of("every_n_steps")] = None
    """Look at the end of every k-th epoch."""


class GradientNorm(MonitorSection):
    """The 2-norm of the gradient of the next update's batch, before clipping."""


class FullLoss(MonitorSection):
    """The loss over the whole training part at the present weights."""


class UpdateRatio(Strict):
    """The length of an update over that of the weights, ‖Δθ‖ / ‖θ‖."""

    every_n_steps: Positive | None = None
    """Look at every k-th update; the monitor's own default if left out."""


class Sharpness(MonitorSection):
    """The largest eigenvalue of the full loss's Hessian, beside the limit of stability."""

    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Residual, relative to the eigenvalue, at which to stop."""
    max_products: Positive = 100
    """Products with the Hessian in a look at most, each of two gradients of the full loss."""


class NoiseScale(MonitorSection):
    """The gradient noise scale, and the critical batch size that it suggests."""

    num_samples: Annotated[int, Field(ge=2, lt=2**31)] = 512
    """Samples of a look, drawn anew for each; all that there are, if they are fewer."""
    batch_size: Positive | None = None
    """Samples of a group; 1: from per-sample gradients; in 16 groups if left out."""

    @field_validator("batch_size")
    @classmethod
    def _in_two_groups(cls, value: int | None, info: ValidationInfo) -> int | None:
        samples = info.data.get("num_samples")
        if value is not None and samples is not None and value >= samples:
            said = f"must be < num_samples = {samples}, for two groups, got {value}"
            raise ValueError(said)
        return value


class SampleGradients(MonitorSection):
    """The norms of the samples' own gradients, and the samples with the largest."""

    count: Positive = 10
    """How many of the largest to keep."""


class Trajectory(MonitorSection):
    """Where the weights have been, for the picture of the hill: trajectory.npz."""

    max_points: Annotated[int, Field(ge=4, lt=2**31)] = 200
    """Points kept at most; at more, every second one is dropped."""
    projections: Positive | None = None
    """Record so many random projections, not all weights; by the model's size if left out."""


class Monitors(Strict):
    """What to measure beside the loss: a list of names, or each name with its options."""

    gradient_norm: GradientNorm | None = None
    """How steep the loss of the next batch is."""
    full_loss: FullLoss | None = None
    """The loss of the whole training part, where batches show a part of it."""
    update_ratio: UpdateRatio | None = None
    """How far an update moves the weights."""
    sharpness: Sharpness | None = None
    """How curved the full loss is, and whether the learning rate suits that."""
    noise_scale: NoiseScale | None = None
    """How large a batch may be before it stops helping."""
    sample_gradients: SampleGradients | None = None
    """Which samples pull hardest."""
    trajectory: Trajectory | None = None
    """Where the weights went."""

    @model_validator(mode="after")
    def _names_one(self) -> Monitors:
        if all(value is None for _, value in self):
            raise ValueError(f"names no monitor; name some of {', '.join(NAMES)}, or remove it")
        return self


NAMES = tuple(Monitors.model_fields)


def misfit(monitors: Monitors) -> str | None:
    """Why these monitors can't be had on a stream, if so."""
    apart = ("update_ratio", "trajectory")
    named = [name for name, value in monitors if value is not None and name not in apart]
    if not named:
        return None
    return (
        f"{', '.join(named)} would look at samples again, and a stream's are read once; "
        "only update_ratio and trajectory can be had"
    )


def _by_name(value: Any) -> Any:
    """Take a name, or a list of names, for a mapping of names to no options."""
    if value is None or isinstance(value, dict | Monitors):
        return value
    names = value if isinstance(value, list) else [value]
    known = ", ".join(NAMES)
    if not names:
        raise ValueError(f"names no monitor; name some of {known}, or remove it")
    for name in names:
        if name not in NAMES:
            raise ValueError(f"must be among {known}, each with options or alone; got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError("must be different names; one of them stands there twice")
    return {name: {} for name in names}


def _or_names(schema: dict[str, Any]) -> None:
    """Let editors take what :func:`_by_name` does."""
    name = {"enum": list(NAMES)}
    names = {"type": "array", "items": name, "minItems": 1}
    schema["anyOf"] = [*schema["anyOf"], name, names]


MonitorsSection = Annotated[
    Monitors | None, BeforeValidator(_by_name), Field(json_schema_extra=_or_names)
]
