"""From the monitors section to the monitors, in the order in which the section names them."""

from __future__ import annotations

from gdtrain.analysis.gradient_monitors import GradientNorm, NoiseScale, SampleGradients
from gdtrain.analysis.monitor import Monitor
from gdtrain.analysis.sharpness_monitor import SharpnessMonitor
from gdtrain.analysis.trajectory import Trajectory
from gdtrain.analysis.update_monitors import FullLoss, UpdateRatio
from gdtrain.config.sections.monitors import Monitors

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
