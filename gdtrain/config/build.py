"""From a checked configuration to live objects: data, loaders, model, loss, optimizer, trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD

from gdtrain import registry
from gdtrain.analysis.monitors.monitor import Monitor
from gdtrain.config.building.data import SharedSources, prepare_data, read_source
from gdtrain.config.building.model import (
    Metrics,
    build_loss,
    build_metrics,
    in_original_units,
    sized_model,
)
from gdtrain.config.building.optimizing import all_schedules, optimizing_of
from gdtrain.config.building.stages import stage
from gdtrain.config.schema import AveragingSection, Config
from gdtrain.data.loaders.forms import BatchLoader
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.loaders.phased_loader import PhasedLoader
from gdtrain.data.orders.order import mix
from gdtrain.data.samples import TensorSamples
from gdtrain.data.sources import as_samples
from gdtrain.data.tables.preparation import Preprocessing
from gdtrain.data.wording import best_of
from gdtrain.errors import ConfigError, GdtrainError
from gdtrain.settings import LoaderSettings, Settings
from gdtrain.training.callbacks.averaging import Averaging
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.callbacks.prequential import Prequential
from gdtrain.training.callbacks.validation import EarlyStopping, Validation
from gdtrain.training.callbacks.variance_reduction import VarianceReduction
from gdtrain.training.placement.device import parameter_dtype, resolve_device
from gdtrain.training.placement.sharding import shard
from gdtrain.training.state.random_generators import seed_everything
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

# Settings that the trainer takes as they are, by the same names.
_OF_TRAINER = (
    *("device", "precision", "clip_grad_norm", "clip_grad_value", "microbatch_size"),
    *("memory_limit", "microbatch_allow", "accumulate_in", "evaluate_in", "engine"),
)


@dataclass(frozen=True)
class BuiltRun:
    """A configuration made real: what the train command needs.

    notes: what is to be said of the data before training. test: for when training is over.
    """

    config: Config
    trainer: Trainer
    loader: Loader
    validation: Loader | None
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    test: Loader | None = None


def build(
    config: Config,
    callbacks: list[Callback] | None = None,
    sources: SharedSources | None = None,
) -> BuiltRun:
    """Build everything that the configuration names, with its seed.

    callbacks: appended to those that the configuration asks for. sources: keeps what it has read,
    for the next call.
    Raises ConfigError whose faults bear the keys of the sections at fault, without places.
    """
    seed_everything(config.seed)
    metrics = build_metrics(config)
    with stage("data"):
        data = prepare_data(config, read_source if sources is None else sources.read)
    loader = _loader(config, data.training)
    with stage("data"):
        held_out, test = (
            None if part is None else BatchLoader(part) for part in (data.validation, data.test)
        )
    when = config.validation.model_dump()
    validation = None if held_out is None else Validation(held_out, **when)
    with stage("model"):
        model = sized_model(config, data, loader)
    with stage("loss"):
        loss = build_loss(config, data.preprocessing.num_outputs)
    with stage(""):
        if config.strategy == "shard":
            device = resolve_device(config.device)
            model = shard(model.to(device, parameter_dtype(config.precision, device)), device)
        optimizing = optimizing_of(config, model, loader)
    if data.preprocessing.target_mean:
        metrics |= in_original_units(config, data.preprocessing)
    with stage(""):
        watchers = _callbacks_of_sections(config, loader, metrics)
        monitors: list[Monitor] = _named("monitor", config.monitors) if config.monitors else []
        own = _named("callback", config.callbacks) if config.callbacks else []
        trainer: Trainer = _trainer_type(config)(
            model,
            loss,
            loader=loader,
            validation=validation,
            metrics=metrics or None,
            callbacks=[*watchers, *monitors, *own, *(callbacks or [])],
            compile=None if config.compile is None else config.compile.model_dump(),
            **optimizing,
            **{key: getattr(config, key) for key in _OF_TRAINER},
        )
        trainer.shows_progress = False  # commands have their own
        trainer.check_separable()
        for callback in trainer.callbacks:
            if isinstance(callback, VarianceReduction | Averaging):
                callback.check(trainer)
    with stage("monitors"):
        for monitor in monitors:
            _check_monitor(monitor, trainer)
    if trainer.world.rank:  # alike until here; from here on, other ranks drop other units
        seed_everything(mix(config.seed, trainer.world.rank) % 2**63)
    return BuiltRun(config, trainer, loader, held_out, data.preprocessing, data.notes, test)


def evaluated(
    config: Config, model: nn.Module, preprocessing: Preprocessing, data: Any
) -> dict[str, float]:
    """The configuration's loss and metrics of a model on samples, and how many ``samples``.

    data: a loader, or what one takes.
    """
    metrics = build_metrics(config)
    if preprocessing.target_mean:
        metrics |= in_original_units(config, preprocessing)
    trainer: Trainer = _trainer_type(config)(
        model,
        build_loss(config, preprocessing.num_outputs),
        SGD(model.parameters(), lr=1.0),  # makes no step
        device="cpu",
        metrics=metrics,
        **{key: getattr(config, key) for key in ("precision", "evaluate_in", "memory_limit")},
    )
    loader = data if isinstance(data, Loader) else BatchLoader(data)
    return {**trainer.evaluate(loader), "samples": loader.num_samples}


def _trainer_type(config: Config) -> Any:
    return registry.find("trainer", config.trainer).part if config.trainer else Trainer


def _loader(config: Config, data: Any) -> Loader:
    """The loader, or the loaders of all phases over the same samples."""
    if not isinstance(config.loader, list):
        with stage("loader"):
            return _form(config.loader, data, config.seed)
    with stage("loader"):
        samples = as_samples(data, seed=config.seed)
    phases = []
    for number, section in enumerate(config.loader):
        with stage(f"loader[{number}]"):
            phases.append((section.until_epoch, _form(section, samples, config.seed)))
    loader = PhasedLoader(phases)
    reached = len(loader.phases.spans(config.epochs))
    if reached < len(phases):
        logger.warning(
            "loader[%d] is never reached: training ends with epoch %d", reached, config.epochs
        )
    return loader


def _form(section: LoaderSettings, data: Any, seed: int) -> Loader:
    if isinstance(data, tuple) and registry.find("loader", section.name).is_built_in:
        data = TensorSamples(data)  # which have been checked, and are not looked through again
    loader: Loader = registry.make("loader", section, data, seed=seed)
    loader.plan(0)  # raises what can't be planned
    return loader


def _named(kind: str, section: dict[str, Settings]) -> list[Any]:
    """The parts that a section maps to their options."""
    made = []
    for name, options in section.items():
        with stage(f"{kind}s.{name}"):
            made.append(registry.find(kind, name).make(options))
    return made


def _check_monitor(monitor: Monitor, trainer: Trainer) -> None:
    """Raise ConfigError, naming the monitor, if it can't measure what it is to on the trainer."""
    try:
        monitor.check(trainer)
    except GdtrainError as error:
        message = str(error).removeprefix(f"{monitor.name}: ")
        raise ConfigError.of(monitor.name, message) from error


def _callbacks_of_sections(config: Config, loader: Loader, metrics: Metrics) -> list[Callback]:
    """The callbacks that sections of the configuration ask for, but for monitors.

    Raises ConfigError for a metric that is looked at and not evaluated.
    """
    for key, section in all_schedules(config):
        if (monitor := getattr(section, "monitor", None)) is not None:
            _check_monitored(f"{key}.monitor", monitor, config, metrics)
    if config.checkpoint.keep_best is not None:
        _check_monitored("checkpoint.keep_best", config.checkpoint.keep_best, config, metrics)
    watchers: list[Callback] = []
    if config.variance_reduction is not None:
        with stage("variance_reduction"):
            watchers.append(registry.make("variance_reduction", config.variance_reduction))
    if config.averaging is not None:
        watchers.append(_averaging(config.averaging, config, loader))
    if loader.is_stream:
        window: int = config.data.window  # type: ignore[attr-defined]
        watchers.append(Prequential(window, metrics))
    if config.early_stopping is not None:
        watchers.append(_early_stopping(config, metrics))
    return watchers


def _averaging(section: AveragingSection, config: Config, loader: Loader) -> Averaging:
    if not loader.is_stream:
        start = section.start_step or loader.updates((section.start_epoch or 1) - 1) + 1
        first, last = -(-start // section.every_n_steps), loader.updates(config.epochs)
        if first * section.every_n_steps > last:
            logger.warning("averaging never begins: training ends with update %d", last)
    return Averaging(**section.model_dump())


def _early_stopping(config: Config, metrics: Mapping[str, Any]) -> EarlyStopping:
    section = config.early_stopping
    assert section is not None
    _check_monitored("early_stopping.monitor", section.monitor, config, metrics)
    mode = section.mode or best_of(section.monitor)
    return EarlyStopping(
        section.monitor, patience=section.patience, min_delta=section.min_delta, mode=mode
    )


def _check_monitored(key: str, metric: str, config: Config, metrics: Mapping[str, Any]) -> None:
    known = ["train_loss", "val_loss", *(f"val_{name}" for name in metrics)]
    if config.averaging is not None:
        known += [f"{name}_averaged" for name in known[1:]]
    if metric not in known:
        raise ConfigError.of(key, f"must be one of {', '.join(known)}; got {metric!r}")
