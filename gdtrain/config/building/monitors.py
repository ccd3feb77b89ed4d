"""From the monitors section to the monitors, in the order in which the section names them."""

from __future__ import annotations

from gdtrain.analysis.monitors.gradients import GradientNorm, NoiseScale, SampleGradients
from gdtrain.analysis.monitors.monitor import Monitor
from gdtrain.analysis.monitors.sharpness import SharpnessMonitor
from gdtrain.analysis.monitors.trajectory import Trajectory
from gdtrain.analysis.monitors.updates import FullLoss, UpdateRatio
from gdtrain.config.sections.monitors import Monitors
from gdtrain.errors import ConfigError, GdtrainError
from gdtrain.training.trainer import Trainer

MONITORS: dict[str, type[Monitor]] = {
    kind.name: kind
    for kind in (
        *(GradientNorm, FullLoss, UpdateRatio),
        *(SharpnessMonitor, NoiseScale, SampleGradients, Trajectory),
    )
}


def build_monitors(section: Monitors | None) -> list[Monitor]:
    """The monitors that the section asks for; none if there is no section."""
    if section is None:
        return []
    named = [(name, options) for name, options in section if options is not None]
    return [MONITORS[name](**options.model_dump()) for name, options in named]


def check_monitors(monitors: list[Monitor], trainer: Trainer) -> None:
    """Raise ConfigError, naming the monitor, if one can't measure what it is to on the trainer."""
    for monitor in monitors:
        try:
            monitor.check(trainer)
        except GdtrainError as error:
            said = str(error).removeprefix(f"{monitor.name}: ")
            raise ConfigError.of(monitor.name, said) from error
