"""From the optimizer, scheduler and phases sections to what steps a model's parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gdtrain import registry
from gdtrain.config.building.stages import stage
from gdtrain.config.schema import Config, PhaseSection
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError
from gdtrain.settings import ScheduleSettings, Settings
from gdtrain.training.optimizing import schedules
from gdtrain.training.optimizing.phases import Phases, below, trained_in

logger = logging.getLogger("gdtrain")


def optimizing_of(config: Config, model: nn.Module, loader: Loader) -> dict[str, Any]:
    """What a Trainer is given of optimizers and schedules.

    Raises ConfigError, without places, for names that the model does not have.
    """
    if config.phases is None:
        with stage("optimizer"):
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer: Any = _optimizers(config.optimizer, model, trained)
        if config.scheduler is None:
            return {"optimizer": optimizer}
        with stage("scheduler"):
            lengths = _lengths(loader, 0, config.epochs)
            scheduler = _schedules(config.scheduler, lengths, optimizer)
        return {"optimizer": optimizer, "scheduler": scheduler} | _stepping(config)
    phases = _phases(config.phases, config.epochs, model, loader)
    return {"optimizer": phases} | _stepping(config)


def _phases(
    sections: Sequence[PhaseSection], epochs: int, model: nn.Module, loader: Loader
) -> Phases:
    rows, start = [], 0
    for number, section in enumerate(sections):
        if start >= epochs:
            text = "phases[%d] is never reached: training ends with epoch %d"
            logger.warning(text, number, epochs)
        stop = epochs if section.until_epoch is None else min(section.until_epoch, epochs)
        key = f"phases[{number}].optimizer"
        if isinstance(section.optimizer, Mapping):  # now, and not when it begins
            with stage(key):
                _parameters(section.optimizer, model, trained_in(section.frozen, model))
        optimizer = _Placed(key, _optimizers, section.optimizer, model)
        schedule = None
        if section.scheduler is not None:
            key = f"phases[{number}].scheduler"
            lengths = _lengths(loader, start, max(stop, start + 1))
            schedule = _Placed(key, _schedules, section.scheduler, lengths)
        rows.append((section.until_epoch, optimizer, schedule, section.frozen))
        start = stop
    return Phases(rows)


class _Placed:
    """A call whose errors bear the key of a section; one of a phase is made when the phase is."""

    def __init__(self, key: str, call: Callable[..., Any], *first: Any) -> None:
        self.key, self.call = key, partial(call, *first)

    def __call__(self, given: Any) -> Any:
        with stage(self.key):
            return self.call(given)


# ── optimizers ──────────────────────────────────────────────────────────────────────────────


def _optimizers(section: Any, model: nn.Module, trained: Sequence[Tensor]) -> Any:
    """The optimizer of these parameters, or the optimizers by their names."""
    if not isinstance(section, Mapping):
        made: Optimizer = registry.make("optimizer", section, list(trained))
        return made
    of = _parameters(section, model, trained)
    return {name: registry.make("optimizer", section[name], of[name]) for name in section}


def _parameters(
    section: Mapping[str, Settings], model: nn.Module, trained: Sequence[Tensor]
) -> dict[str, list[Tensor]]:
    """Which parameters each optimizer steps; the one that names none has what is left."""
    ids = {id(p) for p in trained}
    left: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if id(p) in ids}
    found: dict[str, list[Tensor]] = {}
    for name, options in section.items():
        wanted = getattr(options, "parameters", None)
        if wanted is not None:
            found[name] = _taken(f"{name}.parameters", wanted, model, left)
    for name in section:
        if name not in found:
            found[name], left = list(left.values()), {}
            if not found[name]:
                text = "has no parameters: the others step all there are; remove it"
                raise ConfigError.of(name, text)
    if left:
        names = ", ".join(list(left)[:3]) + (", …" if len(left) > 3 else "")
        text = f"leave out {len(left)} of the model's ({names}); name them, or leave out parameters"
        raise ConfigError.of(f"{list(section)[-1]}.parameters", text)
    return found


def _taken(
    key: str, wanted: Sequence[str], model: nn.Module, left: dict[str, Tensor]
) -> list[Tensor]:
    """The parameters of layers that are named, in the model's order, which are left no longer."""
    known = dict(model.named_parameters())
    for number, layer in enumerate(wanted):
        if not any(below(name, [layer]) for name in known):
            some = ", ".join(name for name, _ in model.named_children()) or ", ".join(known)
            text = f"the model has no parameters in {layer!r}; it has {some}"
            raise ConfigError.of(f"{key}[{number}]", text)
    names = [name for name in left if below(name, wanted)]
    if not names:
        raise ConfigError.of(key, "name nothing that is trained and that no optimizer before has")
    return [left.pop(name) for name in names]


# ── schedules ───────────────────────────────────────────────────────────────────────────────


Lengths = Mapping[str, int | None]
"""Of the epochs that a schedule is for, counted per epoch and per step; None on a stream."""


def _lengths(loader: Loader, start: int, stop: int) -> Lengths:
    if loader.is_stream:  # whose end nobody knows
        return {"epoch": None, "step": None}
    return {"epoch": stop - start, "step": loader.updates(stop) - loader.updates(start)}


def _schedules(section: Any, lengths: Lengths, optimizer: Any) -> Any:
    """The schedule of the optimizer, or schedules by the names of optimizers."""
    if not isinstance(section, Mapping):
        if isinstance(optimizer, Mapping):
            text = f"must name one of the optimizers, {', '.join(optimizer)}, and its schedule"
            raise ConfigError.of("", text)
        return _schedule(section, lengths, optimizer)
    there = optimizer if isinstance(optimizer, Mapping) else {}
    for name in section:
        if name not in there:
            must = f"it must be one of {', '.join(there)}" if there else "there is one alone"
            raise ConfigError.of(name, f"is no optimizer's name; {must}")
    return {name: _schedule(one, lengths, there[name]) for name, one in section.items()}


def _schedule(section: Settings, lengths: Lengths, optimizer: Optimizer) -> schedules.Scheduler:
    if not isinstance(section, ScheduleSettings):  # one that is made of the optimizer
        scheduler: schedules.Scheduler = registry.make("schedule", section)(optimizer)
        return scheduler
    length = lengths[section.per]
    total = None if length is None else max(1, length - section.warmup)
    schedule: schedules.Schedule = registry.make("schedule", section, total=total)
    return schedules.scheduler(optimizer, schedules.warmup(section.warmup, schedule))


def _stepping(config: Config) -> dict[str, Any]:
    """When all schedules are stepped, and the metric that some are given.

    Raises ConfigError where they do not agree.
    """
    found: dict[str, Any] = {"per": None, "monitor": None}
    for key, one in all_schedules(config):
        for setting, before in found.items():
            value = getattr(one, setting, None)
            if value is None:
                continue
            if before not in (None, value):
                text = f"must be {before}, as in the schedule before it; got {value}"
                raise ConfigError.of(f"{key}.{setting}", text)
            found[setting] = value
    return {"scheduler_per": found["per"] or "epoch", "scheduler_metric": found["monitor"]}


def all_schedules(config: Config) -> list[tuple[str, Any]]:
    """The settings of all schedules of a run, of its phases too, each with its key."""
    sections = [("scheduler", config.scheduler)]
    for number, phase in enumerate(config.phases or ()):
        sections.append((f"phases[{number}].scheduler", phase.scheduler))
    found: list[tuple[str, Any]] = []
    for key, section in sections:
        if isinstance(section, Mapping):
            found += [(f"{key}.{name}", one) for name, one in section.items()]
        elif section is not None:
            found.append((key, section))
    return found
