"""Monitors of gradients: their norm, their noise, and the samples with the largest."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from gdtrain.analysis.curvature.full_loss import by_layer, norm, rereadable, trained
from gdtrain.analysis.monitors.monitor import (
    LOOK_SECONDS,
    PASS_SECONDS,
    Cost,
    Monitor,
    MonitorSettings,
    first_batch_size,
)
from gdtrain.analysis.noise_scale import gradient_noise
from gdtrain.analysis.sample_gradients import largest_sample_gradients
from gdtrain.data.batch import Batch, Plan
from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError, DataError
from gdtrain.registry import register_monitor
from gdtrain.settings import Positive
from gdtrain.training.blocks import known_plan
from gdtrain.training.gradients.parameter_vector import held_by
from gdtrain.training.placement.sharding import whole
from gdtrain.training.state.keeper import unchanged
from gdtrain.training.trainer import Trainer


class GradientNormSettings(MonitorSettings):
    """The 2-norm of the gradient of the next update's batch, before clipping."""

    layers: bool = False
    """For each layer too: gradient_norm/<path of the module>."""


@register_monitor("gradient_norm", GradientNormSettings)
class GradientNorm(Monitor):
    """``gradient_norm``: |∂J_B/∂θ|, the 2-norm of the gradient of the next update's batch.

    The exact gradient that the next update will use, before clipping: at the current weights, in
    training mode, with its dropout masks, in microbatches and over all processes as set. After an
    epoch's last update it is that of the epoch's first batch. With a BatchLoader it is the norm of
    the full gradient, which is 0 at a stationary point. layers: for each layer too, as
    ``gradient_norm/<path>``.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, GradientNorm, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> norm = GradientNorm(every_n_epochs=1)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[norm]
    ... )
    >>> history = trainer.fit(10)
    >>> history.gradient_norm[-1] < history.gradient_norm[0]
    True
    """

    name = "gradient_norm"

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        layers: bool = False,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        self.layers = layers

    def cost(self, trainer: Trainer) -> Cost:
        return Cost(LOOK_SECONDS + PASS_SECONDS, first_batch_size(rereadable(trainer)))

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        with unchanged(trainer), torch.enable_grad():
            trainer.batch_gradient(next_batch(trainer))
            found = {p: whole(p.grad) for p in held_by(trainer) if p.grad is not None}
        measured = {"gradient_norm": norm(list(found.values()))}
        if self.layers:
            for name, parameters in by_layer(trainer, list(found)).items():
                measured[f"gradient_norm/{name}"] = norm([found[p] for p in parameters])
        return measured


class NoiseScaleSettings(MonitorSettings):
    """The gradient noise scale, and the critical batch size that it suggests."""

    num_samples: Annotated[int, Field(ge=2, lt=2**31)] = 512
    """Samples per measurement, drawn again each time; all samples if there are fewer."""
    batch_size: Positive | None = None
    """Samples per group; 1: use per-sample gradients; if left out, there are 16 groups."""

    @field_validator("batch_size")
    @classmethod
    def _in_two_groups(cls, value: int | None, info: ValidationInfo) -> int | None:
        samples = info.data.get("num_samples")
        if value is not None and samples is not None and value >= samples:
            message = f"must be < num_samples = {samples}, for two groups, got {value}"
            raise ValueError(message)
        return value


@register_monitor("noise_scale", NoiseScaleSettings)
class NoiseScale(Monitor):
    """``noise_scale``: B_simple = tr Σ / |G|², the batch size at which noise and gradient balance.

    Estimated as :func:`~gdtrain.analysis.noise_scale.gradient_noise` says, from ``num_samples``
    samples, drawn again for each measurement, in groups of ``batch_size``: with 1, from per-sample
    gradients. If left out, in 16 groups or as many as there are samples. It reports
    ``noise_scale`` and ``critical_batch_size``; ``records`` also have ``covariance_trace`` and
    ``gradient_square``, whose averages over measurements are unbiased too. The scale is infinite
    if |G|² is lost in noise: then use more samples.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, NoiseScale, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> noise = NoiseScale(every_n_epochs=10, batch_size=1)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[noise]
    ... )
    >>> history = trainer.fit(10)
    >>> history.noise_scale[-1] > 0
    True
    """

    name = "noise_scale"

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        num_samples: int = 512,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        self.num_samples = whole_number("num_samples", num_samples, minimum=2)
        if batch_size is not None:
            whole_number("batch_size", batch_size, minimum=1)
            if batch_size >= num_samples:
                message = f"must be < num_samples = {num_samples}, for two groups, got {batch_size}"
                raise ConfigError.of("batch_size", message)
        self.batch_size = batch_size

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        trained(trainer)
        samples, size = self._sizes(trainer)
        if samples <= size:
            raise DataError(
                f"noise_scale: needs two groups of {size} samples, and there are {samples}"
            )

    def cost(self, trainer: Trainer) -> Cost:
        samples, size = self._sizes(trainer)
        passes = 10 if size == 1 else -(-samples // size)  # torch.func is slow to start
        return Cost(LOOK_SECONDS + passes * PASS_SECONDS, samples * (4 if size == 1 else 1))

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        samples, size = self._sizes(trainer)
        seed = trainer.progress.step
        noise = gradient_noise(trainer, num_samples=samples, batch_size=size, seed=seed)
        return {
            "noise_scale": noise.scale,
            "critical_batch_size": noise.critical_batch_size,
            "covariance_trace": noise.covariance_trace,
            "gradient_square": noise.gradient_square,
        }

    def report(self) -> dict[str, float]:
        shown = ("noise_scale", "critical_batch_size")
        return {k: v for k, v in super().report().items() if k in shown}

    def _sizes(self, trainer: Trainer) -> tuple[int, int]:
        samples = min(self.num_samples, rereadable(trainer).num_samples)
        return samples, self.batch_size or max(1, samples // 16)


class SampleGradientsSettings(MonitorSettings):
    """The norms of the per-sample gradients, and the samples with the largest."""

    count: Positive = 10
    """Number of the largest norms to keep."""


@register_monitor("sample_gradients", SampleGradientsSettings)
class SampleGradients(Monitor):
    """``sample_gradients``: the norms of the per-sample gradients, and the samples with the
    largest.

    Reports ``sample_gradient_mean``, ``sample_gradient_max`` and ``largest_sample``, the index in
    the data set of the sample with the largest; ``records``, and the epochs in the log, also have
    ``largest_samples`` and ``largest_norms`` of the ``count`` largest. The norms are those of
    :func:`~gdtrain.analysis.sample_gradients.sample_gradient_norms`. By default it measures ten
    times in a run.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, SampleGradients, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> norms = SampleGradients(every_n_epochs=10, count=3)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[norms]
    ... )
    >>> history = trainer.fit(10)
    >>> len(norms.records[-1]["largest_samples"])
    3
    """

    name = "sample_gradients"
    looks_by_steps = False

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        count: int = 10,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        self.count = whole_number("count", count, minimum=1)

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        trained(trainer)

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        found = largest_sample_gradients(trainer, self.count)
        return {
            "sample_gradient_mean": found.mean,
            "sample_gradient_max": float(found.norms[0]),
            "largest_sample": int(found.indices[0]),
            "largest_samples": found.indices.tolist(),
            "largest_norms": found.norms.tolist(),
        }


def next_batch(trainer: Trainer, *, shared: bool = True) -> Batch:
    """The batch of the next update; or this rank's share of it.

    Of an order that has not said yet how the next epoch goes, the first batch of this one instead.
    """
    loader, progress = rereadable(trainer), trainer.progress
    plan, number = known_plan(trainer, loader, progress.epoch), progress.step_in_epoch
    if number == len(plan):
        plan, number = known_plan(trainer, loader, progress.epoch + 1), 0
    if len(plan) == 1 or trainer.world.size > 1:
        return next(trainer.read(loader, plan, number, shared=shared))
    indices = plan.batch_indices(number)  # reading by the plan would gather many batches at once
    return next(trainer.read(loader, Plan(0, len(indices), len(indices), indices), shared=False))
