"""Monitors of the descent itself: the full loss, and how far an update moves the weights."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gdtrain.analysis.curvature.full_loss import by_layer, norm, rereadable, trained
from gdtrain.analysis.monitors.monitor import (
    LOOK_SECONDS,
    PASS_SECONDS,
    Cost,
    Monitor,
    MonitorSettings,
    steps_between,
)
from gdtrain.registry import register_monitor
from gdtrain.settings import OptionsOnly, Positive
from gdtrain.training.gradients.parameter_vector import held_by
from gdtrain.training.trainer import Trainer


class FullLossSettings(MonitorSettings):
    """The loss over the whole training part at the current weights."""


@register_monitor("full_loss", FullLossSettings)
class FullLoss(Monitor):
    """``full_loss``: J(θ), the loss over every sample of the training set at the current weights.

    What :meth:`Trainer.evaluate` gives for the training loader: in eval mode, each sample once.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, FullLoss, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> full_loss = FullLoss(every_n_epochs=1)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[full_loss]
    ... )
    >>> history = trainer.fit(10)
    >>> history.full_loss[-1] < history.full_loss[0]
    True
    """

    name = "full_loss"

    def cost(self, trainer: Trainer) -> Cost:
        samples = rereadable(trainer).num_samples
        passes = -(-samples // (trainer.microbatches.size or 1024))
        return Cost(LOOK_SECONDS + passes * PASS_SECONDS, samples / 2)

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        return {"full_loss": trainer.evaluate(trainer.loader)["loss"]}


class UpdateSettings(OptionsOnly):
    """What a monitor of single updates takes."""

    every_n_steps: Positive | None = None
    """Measure every k-th update; if left out, at the monitor's default cadence."""


class UpdateMonitor(Monitor):
    """A monitor that looks at both ends of an update.

    It looks at two safe points: before each k-th update, where it keeps what :meth:`begin` gives,
    and after it, where it measures. every_n_steps: k; there is no cadence by epochs.
    """

    def __init__(self, *, every_n_steps: int | None = None) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self._every = every_n_steps
        self._before: tuple[int, Any] | None = None

    def begin(self, trainer: Trainer) -> Any:
        """What is to be known of the moment before the update."""
        raise NotImplementedError

    def compare(self, trainer: Trainer, before: Any) -> dict[str, Any]:
        """What is measured after the update, beside what :meth:`begin` gave."""
        raise NotImplementedError

    def settle_cadence(self, trainer: Trainer) -> None:
        assert trainer.loader is not None
        if trainer.loader.is_stream:
            self._every = 1000
            return
        self._every = steps_between(trainer, self.cost(trainer))
        self.warn_of_no_look(trainer, self._every)

    def on_fit_start(self, trainer: Trainer) -> None:
        super().on_fit_start(trainer)
        self._aim(trainer)

    def on_safe_point(self, trainer: Trainer) -> None:
        step = trainer.progress.step
        if self._before is not None and self._before[0] == step - 1:
            self.look(trainer, trainer.progress.epoch + 1)
        self._aim(trainer)

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        assert self._before is not None
        return self.compare(trainer, self._before[1])

    def _aim(self, trainer: Trainer) -> None:
        """Have the next safe point where it looks or, one update earlier, begins.

        A block ends at multiples of ``every_n_steps``, of which the step that it is set to is the
        first that comes.
        """
        if self._every is None:  # added in mid-run
            self.settle_cadence(trainer)
        assert self._every is not None
        step, every = trainer.progress.step, self._every
        if (step + 1) % every == 0:
            self._before = step, self.begin(trainer)
            self.every_n_steps = step + 1
        else:
            self._before = None
            self.every_n_steps = (step // every + 1) * every - 1


class UpdateRatioSettings(UpdateSettings):
    """The norm of an update relative to that of the weights, ‖Δθ‖ / ‖θ‖."""

    layers: bool = False
    """For each layer too: update_ratio/<path of the module>."""


@register_monitor("update_ratio", UpdateRatioSettings)
class UpdateRatio(UpdateMonitor):
    """``update_ratio``: |Δθ| / |θ|, the norm of one update relative to that of the weights.

    Δθ = θ_t - θ_{t-1} for the update t that ends at the safe point, whatever optimizer made it, and
    θ = θ_{t-1}, over all trained parameters. About 1e-3 is usual; a far larger ratio means that the
    learning rate is too high, a far smaller one that it hardly changes the weights. The monitor
    copies the weights at a safe point before the update and compares them after it. It reads no
    data, so it works for streams too. Parameters that are trained at both points count.
    every_n_steps: the cadence; there is none in epochs. layers: for each layer too, as
    ``update_ratio/<path>`` and, for its weights, ``weight_norm/<path>``.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, UpdateRatio, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> ratio = UpdateRatio(every_n_steps=5)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[ratio]
    ... )
    >>> history = trainer.fit(10)
    >>> [record["step"] for record in ratio.records]
    [5, 10]
    """

    name = "update_ratio"

    def __init__(self, *, every_n_steps: int | None = None, layers: bool = False) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self.layers = layers

    def check(self, trainer: Trainer) -> None:
        trained(trainer)

    def cost(self, trainer: Trainer) -> Cost:
        return Cost(LOOK_SECONDS, 0)

    def begin(self, trainer: Trainer) -> dict[Tensor, Tensor]:
        return copies(trainer)

    def compare(self, trainer: Trainer, before: dict[Tensor, Tensor]) -> dict[str, Any]:
        now = set(moving(trainer))
        before = {p: b for p, b in before.items() if p in now and p.shape == b.shape}
        measured = {"update_ratio": _ratio(before)}
        if self.layers:
            for name, parameters in by_layer(trainer, list(before)).items():
                own = {p: before[p] for p in parameters}
                measured[f"update_ratio/{name}"] = _ratio(own)
                measured[f"weight_norm/{name}"] = norm([p.detach() for p in own])
        return measured


def moving(trainer: Trainer) -> list[Tensor]:
    """The parameters that the next update may change."""
    return [parameter for parameter in held_by(trainer) if parameter.requires_grad]


def copies(trainer: Trainer) -> dict[Tensor, Tensor]:
    """The same, with copies of their values."""
    return {parameter: parameter.detach().clone() for parameter in moving(trainer)}


def _ratio(before: dict[Tensor, Tensor]) -> float:
    length = norm(list(before.values()))
    moved = norm([parameter.detach() - value for parameter, value in before.items()])
    return moved / length if length else math.inf
