"""The monitor of sharpness, beside the limit up to which descent is stable."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gdtrain.analysis.curvature.descended_function import descended
from gdtrain.analysis.curvature.full_loss import trained
from gdtrain.analysis.monitors.monitor import Monitor, MonitorSettings
from gdtrain.analysis.sharpness import largest_eigenvalue, stability_limit
from gdtrain.registry import register_monitor
from gdtrain.settings import Positive
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

# At the edge of stability sharpness oscillates around the limit, which is one crossing. Whether
# it has come from below a first look can't tell; it warns of what is far above the limit.
CLEARLY_BELOW, FAR_OVER = 0.9, 1.5


class SharpnessSettings(MonitorSettings):
    """The largest eigenvalue of the full loss's Hessian, and the stability limit."""

    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Residual, relative to the eigenvalue, at which to stop."""
    max_products: Positive = 100
    """Most Hessian products per measurement; each costs two full gradients."""


@register_monitor("sharpness", SharpnessSettings)
class SharpnessMonitor(Monitor):
    """``sharpness``: λ, the largest eigenvalue of the full loss's Hessian, and the stability limit.

    For a single ``torch.optim.SGD`` it also reports ``sharpness_lr_2`` = λ · lr / 2 and
    ``stability_limit``, the value below which full-batch descent is stable in the direction of the
    eigenvector: 1, and with momentum β, 1 + β
    (:func:`~gdtrain.analysis.sharpness.stability_limit`, halved; weight decay is added to λ). It
    warns each time that the limit is crossed from clearly below, and at the first measurement if
    that is over by half. Full-batch descent raises λ to the limit and keeps it there (Cohen and
    others, 2021, "Gradient descent on neural networks typically occurs at the edge of stability").

    λ is measured on the function that training minimises: the loss in training mode, if a batch is
    all samples. If there is no such function, since BatchNorm uses the statistics of mini-batches
    or dropout draws new masks, λ is that of the loss in eval mode; the limit does not apply to it,
    and is not reported (:func:`~gdtrain.analysis.curvature.descended_function.descended`).

    tolerance, max_products: see :func:`~gdtrain.analysis.sharpness.largest_eigenvalue`. Each
    measurement starts from the previous eigenvector. ``records`` have its cost, in gradients of the
    full loss, as ``gradient_evaluations``. By default it measures ten times in a run.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, SharpnessMonitor, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> sharpness = SharpnessMonitor(every_n_epochs=10)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[sharpness]
    ... )
    >>> history = trainer.fit(10)
    >>> round(history.sharpness[-1], 3), round(history.stability_limit[-1], 3)
    (2.0, 1.0)
    """

    name = "sharpness"
    looks_by_steps = False

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        tolerance: float = 1e-4,
        max_products: int = 100,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        self.tolerance = tolerance
        self.max_products = max_products
        self._vector: Tensor | None = None
        self._told = False

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        self._told = False
        descended(trainer).objective.check_second_derivatives()

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        start = self._vector
        if start is not None and start.numel() != len(Flat(trained(trainer))):
            start = None  # a callback has frozen some
        found = largest_eigenvalue(
            trainer, start=start, tolerance=self.tolerance, max_products=self.max_products
        )
        self._vector = found.vector
        measured = {"sharpness": found.value}
        optimizer, *others = trainer.optimizers.values()
        limit = None if others else stability_limit(optimizer)
        if found.no_limit is not None:
            self._tell(found.no_limit, trainer)
        elif limit is not None:
            curvature = found.value + optimizer.param_groups[0]["weight_decay"]
            measured["sharpness_lr_2"] = curvature * float(trainer.progress.lr) / 2
            measured["stability_limit"] = limit / 2
            self._warn(measured, trainer)
        return measured | {"gradient_evaluations": found.gradient_evaluations}

    def report(self) -> dict[str, float]:
        return {k: v for k, v in super().report().items() if k != "gradient_evaluations"}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "vector": self._vector}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vector = state["vector"]
        is_vector = isinstance(vector, Tensor) and vector.ndim == 1 and vector.is_floating_point()
        if vector is not None and not (is_vector and bool(torch.isfinite(vector).all())):
            raise ValueError("vector: is not one")
        super().load_state_dict(state)
        self._vector = vector

    def _tell(self, reason: str, trainer: Trainer) -> None:
        if not self._told and trainer.world.rank == 0:
            logger.info("sharpness: in eval mode, which descent does not see: %s", reason)
        self._told = True

    def _warn(self, measured: dict[str, float], trainer: Trainer) -> None:
        limit, value = measured["stability_limit"], measured["sharpness_lr_2"]
        before = self._place()
        over = value > (limit if before == "below" else FAR_OVER * limit)
        if over and before != "over" and trainer.world.rank == 0:
            logger.warning(
                "sharpness %.4g times lr / 2 is %.4g after %s updates, over the limit of "
                "stability, %.4g: full-batch descent can't settle in that direction at this lr",
                *(measured["sharpness"], value, f"{trainer.progress.step:,}", limit),
            )

    def _place(self) -> str | None:
        """Where it was last: over the limit, or clearly below; None if that is not known."""
        for record in reversed(self.records):
            limit, value = record.get("stability_limit"), record.get("sharpness_lr_2")
            if limit is None or value is None:
                continue
            if value > limit:
                return "over"
            if value < CLEARLY_BELOW * limit:
                return "below"
        return None
