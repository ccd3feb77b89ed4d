"""Monitors of single batches: tests of their gradients, step sizes, successive directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdtrain.analysis.curvature.full_loss import norm, rereadable, trained
from gdtrain.analysis.gradient_tests import (
    along_update,
    cosine,
    gradient_tests,
    step_size_alpha,
)
from gdtrain.analysis.monitors.gradients import next_batch
from gdtrain.analysis.monitors.monitor import (
    LOOK_SECONDS,
    PASS_SECONDS,
    Cost,
    Monitor,
    MonitorSettings,
    first_batch_size,
)
from gdtrain.analysis.monitors.updates import UpdateMonitor, UpdateSettings, copies
from gdtrain.data.batch import Batch
from gdtrain.registry import register_monitor
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.parameter_vector import held_by, with_values
from gdtrain.training.state.keeper import unchanged
from gdtrain.training.trainer import Trainer

_EACH_SECONDS = 10 * PASS_SECONDS  # of a batch's samples: torch.func is slow to start


class GradientTestsSettings(MonitorSettings):
    """Norm, inner-product and orthogonality tests of the next batch; its signal-to-noise ratio."""


@register_monitor("gradient_tests", GradientTestsSettings)
class GradientTestsMonitor(Monitor):
    """``gradient_tests``: whether the gradient of the next update's batch can be trusted.

    ``norm_test``, ``inner_product_test`` and ``orthogonality_test`` are the smallest θ (ν) for
    which each holds: small if the batch's gradient can be trusted, above 1 if it is noise.
    ``gradient_snr`` is the mean signal-to-noise ratio of its elements. Definitions and sources are
    in :class:`~gdtrain.analysis.gradient_tests.GradientTests`. In eval mode, from per-sample
    gradients. NaN for a batch of one sample.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import GradientTestsMonitor, MiniBatchLoader, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> tests = GradientTestsMonitor(every_n_epochs=5)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, MiniBatchLoader((X, 3 * X), 5), callbacks=[tests]
    ... )
    >>> history = trainer.fit(10)
    >>> history.norm_test[-1] >= history.inner_product_test[-1]
    True
    """

    name = "gradient_tests"

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        trained(trainer)

    def cost(self, trainer: Trainer) -> Cost:
        size = first_batch_size(rereadable(trainer))
        return Cost(LOOK_SECONDS + 2 * _EACH_SECONDS, 8 * size)

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        found = gradient_tests(trainer, next_batch(trainer, shared=False))
        return {
            "norm_test": found.norm,
            "inner_product_test": found.inner_product,
            "orthogonality_test": found.orthogonality,
            "gradient_snr": found.signal_to_noise,
        }


class GradientCosineSettings(UpdateSettings):
    """The cosine between the gradients of two successive updates."""


@register_monitor("gradient_cosine", GradientCosineSettings)
class GradientCosine(UpdateMonitor):
    """``gradient_cosine``: cos(g_t, g_{t+1}), between the gradients of two successive updates.

    The exact gradients of these updates, before clipping, each for its batch at its weights; after
    an epoch's last update, that of the epoch's first batch. Below 0 the updates oscillate, as with
    too large a learning rate; near 1 they keep their direction. NaN if one of them is 0.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, GradientCosine, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> angle = GradientCosine(every_n_steps=5)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[angle]
    ... )
    >>> history = trainer.fit(10)
    >>> angle.records[-1]["gradient_cosine"] > 0.9
    True
    """

    name = "gradient_cosine"

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        trained(trainer)

    def cost(self, trainer: Trainer) -> Cost:
        size = first_batch_size(rereadable(trainer))
        return Cost(2 * (LOOK_SECONDS + PASS_SECONDS), 2 * size)

    def begin(self, trainer: Trainer) -> dict[Tensor, Tensor]:
        with unchanged(trainer), torch.enable_grad():
            trainer.batch_gradient(next_batch(trainer))
            return {p: p.grad for p in held_by(trainer) if p.grad is not None}

    def compare(self, trainer: Trainer, before: dict[Tensor, Tensor]) -> dict[str, Any]:
        now = self.begin(trainer)
        shared = [p for p in now if p in before and p.shape == before[p].shape]
        if not shared:
            return {"gradient_cosine": float("nan")}
        flat = Flat(shared)
        pair = [flat.joined([its[p] for p in shared]).double() for its in (before, now)]
        return {"gradient_cosine": cosine(*pair)}


class AlphaSettings(UpdateSettings):
    """Where an update ended on a fitted parabola: -1 its start, 0 the minimum, 1 equally high."""


@register_monitor("alpha", AlphaSettings)
class Alpha(UpdateMonitor):
    """``alpha``: the local step size, -1 at an update's start, 0 at the minimum along it, 1 at
    the same height on the other side.

    A parabola is fitted to loss and slope of the update's batch before it, and of the next batch
    after it, weighted by their scatter over the samples
    (:func:`~gdtrain.analysis.gradient_tests.step_size_alpha`). Positive values mean that updates
    are longer than the best ones for the next loss, which is often right in the long run. In
    eval mode, from per-sample gradients.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import Alpha, BatchLoader, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> alpha = Alpha(every_n_steps=5)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[alpha]
    ... )
    >>> history = trainer.fit(10)
    >>> -1 < alpha.records[-1]["alpha"] < 0  # too short an update
    True
    """

    name = "alpha"

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        trained(trainer)

    def cost(self, trainer: Trainer) -> Cost:
        size = first_batch_size(rereadable(trainer))
        return Cost(2 * (LOOK_SECONDS + _EACH_SECONDS), 8 * size)

    def begin(self, trainer: Trainer) -> tuple[Batch, dict[Tensor, Tensor]]:
        return next_batch(trainer, shared=False), copies(trainer)

    def compare(
        self, trainer: Trainer, before: tuple[Batch, dict[Tensor, Tensor]]
    ) -> dict[str, Any]:
        batch, values = before
        parameters = trained(trainer)
        moved = {p: v for p, v in values.items() if p in set(parameters) and p.shape == v.shape}
        steps = [p.detach() - moved[p] if p in moved else None for p in parameters]
        direction = Flat(parameters).joined(steps).double()
        if not (length := norm([direction])):
            return {"alpha": -1.0}
        direction /= length
        end = along_update(trainer, next_batch(trainer, shared=False), direction)
        with with_values(trainer, moved):
            start = along_update(trainer, batch, direction)
        return {"alpha": step_size_alpha(length, start, end)}
