"""From a checked configuration to live objects: data, loaders, model, loss, optimizer, trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import Dataset

from gdtrain import registry
from gdtrain.analysis.monitors.monitor import Monitor
from gdtrain.config.data import SharedSources, prepare_data, read_source
from gdtrain.config.schema import AveragingSection, Config, PhaseSection
from gdtrain.data.checks import ALWAYS_THERE, free_memory
from gdtrain.data.loaders.loader import BatchLoader, Loader
from gdtrain.data.loaders.phased_loader import PhasedLoader
from gdtrain.data.orders.order import mix
from gdtrain.data.samples import TensorSamples
from gdtrain.data.sources import as_samples
from gdtrain.data.tables.preparation import PreparedData, Preprocessing
from gdtrain.errors import ConfigError, DataError, Fault, GdtrainError, ModelError
from gdtrain.settings import LoaderSettings, ScheduleSettings, Settings
from gdtrain.training.callbacks.averaging import Averaging
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.callbacks.prequential import Prequential
from gdtrain.training.callbacks.validation import EarlyStopping, Validation
from gdtrain.training.callbacks.variance_reduction import VarianceReduction
from gdtrain.training.evaluating.metrics import MeanOverSamples, Metric, Streaming
from gdtrain.training.gradients.microbatches import is_out_of_memory
from gdtrain.training.optimizing import schedules
from gdtrain.training.optimizing.phases import Phases, below, trained_in
from gdtrain.training.placement.device import parameter_dtype, resolve_device
from gdtrain.training.placement.sharding import shard
from gdtrain.training.state.random_generators import seed_everything
from gdtrain.training.trainer import Trainer
from gdtrain.wording import best_of, counted

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
        if data.preprocessing.target_mean:
            metrics |= in_original_units(config, data.preprocessing)
        optimizing = optimizing_of(config, model, loader, metrics)
        watchers = _callbacks_of_sections(config, loader, metrics)
        monitors: list[Monitor] = _named("monitor", config.monitors) if config.monitors else []
        own = _named("callback", config.callbacks) if config.callbacks else []
        kind: Any = registry.find("trainer", config.trainer).part if config.trainer else Trainer
        trainer: Trainer = kind(
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
    kind: Any = registry.find("trainer", config.trainer).part if config.trainer else Trainer
    trainer: Trainer = kind(
        model,
        build_loss(config, preprocessing.num_outputs),
        SGD(model.parameters(), lr=1.0),  # makes no step
        device="cpu",
        metrics=metrics,
        **{key: getattr(config, key) for key in ("precision", "evaluate_in", "memory_limit")},
    )
    loader = data if isinstance(data, Loader) else BatchLoader(data)
    return {**trainer.evaluate(loader), "samples": loader.num_samples}


def _loader(config: Config, data: Any) -> Loader:
    """The loader, or the loaders of all phases over the same samples."""
    several = isinstance(config.loader, list)
    sections: list[LoaderSettings] = config.loader if several else [config.loader]
    if several:
        with stage("loader"):
            data = as_samples(data, seed=config.seed)
    phases: list[tuple[int | None, Loader]] = []
    for number, section in enumerate(sections):
        with stage(f"loader[{number}]" if several else "loader"):
            part = registry.find("loader", section.name)
            if isinstance(data, tuple) and part.is_built_in:
                data = TensorSamples(data)  # which have been checked, and are not looked through
            loader: Loader = part.make(section, data, seed=config.seed)
            loader.plan(0)  # raises what can't be planned
            phases.append((section.until_epoch, loader))
    if not several:
        return loader
    phased = PhasedLoader(phases)
    reached = len(phased.phases.spans(config.epochs))
    if reached < len(phases):
        logger.warning(
            "loader[%d] is never reached: training ends with epoch %d", reached, config.epochs
        )
    return phased


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
    if config.checkpoint.keep_best is not None:
        _check_monitored("checkpoint.keep_best", config.checkpoint.keep_best, config, metrics)
    watchers: list[Callback] = []
    if config.variance_reduction is not None:
        with stage("variance_reduction"):
            correction = registry.find("variance_reduction", config.variance_reduction.name)
            watchers.append(correction.make(config.variance_reduction))
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


# ── model, loss and metrics ─────────────────────────────────────────────────────────────────────


def sized_model(config: Config, data: PreparedData, loader: Loader) -> nn.Module:
    """The model for this data and this loss, trained on the loader's batches."""
    shape, outputs = data.preprocessing.input_shape, data.preprocessing.num_outputs
    options, built_in = config.model, registry.find("model", config.model.name).is_built_in
    activation = getattr(options, "output_activation", None)
    wanted = config.loss.output_activations
    if built_in and wanted and activation not in wanted:
        raise ConfigError.of(
            "output_activation",
            f"must be {' or '.join(wanted)} for the loss {config.loss.name}, got {activation}",
        )
    normalised = options.name == "mlp" and getattr(options, "batch_norm", False)
    if normalised and loader.smallest_batch(config.epochs) == 1:
        raise ConfigError.of(
            "batch_norm",
            "needs batches of at least 2 samples, and this loader gives one of 1; "
            "set it to false, or change loader.batch_size or loader.drop_last",
        )
    if built_in and isinstance(data.training, Dataset) and not outputs:
        raise ConfigError.of(
            "name", "can't be sized for a Dataset of class labels; register a model of your own"
        )
    model = build_model(config, shape, outputs)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("has no parameters to train; give it at least one with requires_grad=True")
    return model


def build_model(config: Config, input_shape: list[int], num_outputs: int | None) -> nn.Module:
    """The model of a configuration, with fresh weights.

    A registered one is called with its options and, where its signature has them and the
    configuration does not set them, ``in_features``, ``input_shape`` and ``out_features``.
    """
    sizes: dict[str, Any] = {
        "in_features": int(torch.Size(input_shape).numel()),
        "input_shape": input_shape,
        "out_features": num_outputs,
    }
    part = registry.find("model", config.model.name)
    build = partial(part.make, config.model, **sizes)
    if part.is_built_in:
        assert num_outputs is not None
        extent = f"{counted(math.prod(input_shape), 'input')} and {counted(num_outputs, 'output')}"
        return _built_if_it_fits(build, copies=2, extent=extent)  # beside the weights, a gradient
    model = build()
    if not isinstance(model, nn.Module):
        raise ConfigError.of(
            "name", f"{config.model.name!r} gave a {type(model).__name__}, not an nn.Module"
        )
    return model


def _built_if_it_fits(build: Callable[[], nn.Module], copies: int, extent: str) -> nn.Module:
    """``build()``, after a look at what ``copies`` of its parameters take, without allocating.

    extent: how large it is, in words. Raises ConfigError if less memory is free.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, TypeError) as error:
        if out_of_memory(error, "model") is None:
            raise
        message = f"needs more memory than there is for {extent}; {REMEDIES['model']}"
        raise ConfigError.of("", message) from error
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    needed = copies * sum(tensor.nbytes for tensor in tensors)
    there = free_memory() if needed > ALWAYS_THERE else None
    if there is not None and needed > there:
        raise ConfigError.of(
            "",
            f"needs {_said(needed)} of memory for {extent}, and {_said(there)} are free; "
            f"{REMEDIES['model']}",
        )
    return build()


def _said(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def build_loss(config: Config, num_outputs: int) -> Any:
    """The loss of a configuration, ``(output, targets) -> loss``.

    Raises ConfigError for weights that are not one for each of the ``num_outputs`` outputs.
    """
    options = config.loss.model_dump(exclude={"name"})
    dtype = torch.float64 if config.precision == "fp64" else None
    for key in config.loss.per_output:
        if options[key] is not None:
            if len(options[key]) != num_outputs:
                raise ConfigError.of(
                    key,
                    f"must hold one number for each of the {num_outputs} outputs, "
                    f"got {len(options[key])}",
                )
            options[key] = torch.tensor(options[key], dtype=dtype, device="cpu")
    return registry.find("loss", config.loss.name).make(options)


# ── metrics ─────────────────────────────────────────────────────────────────────────────────

Metrics = dict[str, Metric]


def build_metrics(config: Config) -> Metrics:
    """The metrics of a configuration, or those that go with its loss. Reads no data.

    Raises ConfigError for one that does not go with the loss, and MissingPackageError.
    """
    chosen = config.metrics
    if chosen is None:
        chosen = {name: registry.find("metric", name).settings() for name in config.loss.metrics}
    return {
        name: registry.find("metric", name).make(options, loss=config.loss)
        for name, options in chosen.items()
    }


def in_original_units(config: Config, preprocessing: Preprocessing) -> Metrics:
    """The metrics that have a unit, in that of targets which are standardised.

    ``mae_original_units`` beside ``mae``, of which a standardised target has deviation 1.
    """
    # Others than the ones that are evaluated already: a metric that streams has a state.
    again = {n: m for n, m in build_metrics(config).items() if _has_unit(n)}
    return {f"{name}_original_units": _restored(m, preprocessing) for name, m in again.items()}


def _has_unit(name: str) -> bool:
    return getattr(registry.find("metric", name).settings, "has_unit", False)


def _restored(metric: Metric, preprocessing: Preprocessing) -> Metric:
    if isinstance(metric, MeanOverSamples):
        return _RestoredMean(metric, preprocessing)
    if isinstance(metric, Streaming):
        return _RestoredStream(metric, preprocessing)
    return _Restored(metric, preprocessing)


class _Restored:
    """A function of outputs and targets, of which it is given those in the targets' units."""

    def __init__(self, function: Callable[[Any, Any], Any], preprocessing: Preprocessing) -> None:
        self.function, self.preprocessing = function, preprocessing

    def __call__(self, output: Tensor, targets: Tensor) -> Any:
        # In float64: a mean may be large beside the errors.
        wide = [t if t.device.type == "mps" else t.double() for t in (output, targets)]
        return self.function(*map(self.preprocessing.restore_targets, wide))


class _RestoredMean(MeanOverSamples):
    """The same of a mean over samples."""

    def __init__(self, metric: MeanOverSamples, preprocessing: Preprocessing) -> None:
        super().__init__(metric.function)
        self.function = _Restored(metric.function, preprocessing)

    def __reduce__(self) -> Any:
        restored: Any = self.function
        return type(self), (MeanOverSamples(restored.function), restored.preprocessing)


class _RestoredStream:
    """The same of a metric that streams."""

    def __init__(self, metric: Streaming, preprocessing: Preprocessing) -> None:
        self.metric = metric
        self.update = _Restored(metric.update, preprocessing)

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        self.metric.reset()


# ── optimizers and schedules ────────────────────────────────────────────────────────────────────


def optimizing_of(
    config: Config, model: nn.Module, loader: Loader, metrics: Metrics
) -> dict[str, Any]:
    """What a Trainer is given of optimizers and schedules.

    Raises ConfigError, without places, for names that the model does not have, and for a metric
    that is none of those that are evaluated.
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
        return {"optimizer": optimizer, "scheduler": scheduler} | _stepping(config, metrics)
    phases = _phases(config.phases, config.epochs, model, loader)
    return {"optimizer": phases} | _stepping(config, metrics)


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
        made: Optimizer = registry.find("optimizer", section.name).make(section, list(trained))
        return made
    of = _parameters(section, model, trained)
    return {name: _optimizers(one, model, of[name]) for name, one in section.items()}


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
    part = registry.find("schedule", section.name)  # type: ignore[attr-defined]
    if not isinstance(section, ScheduleSettings):  # one that is made of the optimizer
        scheduler: schedules.Scheduler = part.make(section)(optimizer)
        return scheduler
    length = lengths[section.per]
    total = None if length is None else max(1, length - section.warmup)
    schedule: schedules.Schedule = part.make(section, total=total)
    return schedules.scheduler(optimizer, schedules.warmup(section.warmup, schedule))


def _stepping(config: Config, metrics: Metrics) -> dict[str, Any]:
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
        if getattr(one, "monitor", None) is not None:
            _check_monitored(f"{key}.monitor", one.monitor, config, metrics)
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


# ── which section an error is of ────────────────────────────────────────────────────────────────


# What torch says of sizes that are too large, themselves or as a product, to count bytes.
_NO_SIZE = (
    "size calculation overflowed",
    "Overflow when unpacking long",
    "multiplication overflow",
)
REMEDIES = {
    "data": "use fewer samples, or source: mapped, which is read as it is needed",
    "model": "use fewer or smaller layers",
    "": "use a smaller model, or set microbatch_size: auto to compute batches in slices",
}


@contextmanager
def stage(key: str) -> Iterator[None]:
    """Say of which section an error is, as a ConfigError without places."""
    try:
        yield
    except ConfigError as error:
        faults = [
            Fault(".".join(filter(None, (key, fault.key))), fault.message) for fault in error.faults
        ]
        raise ConfigError(faults) from error
    except GdtrainError as error:
        messages = error.args if isinstance(error, DataError) else [str(error)]
        raise ConfigError([_fault(key, str(message)) for message in messages]) from error
    except (MemoryError, RuntimeError, TypeError) as error:
        text = out_of_memory(error, key)
        if text is None:
            raise
        raise ConfigError([Fault(key, text)]) from error


def _fault(key: str, message: str) -> Fault:
    """The fault of a section, or of the one that the message itself begins with."""
    own, _, rest = message.partition(": ")
    if own == key or (not key and own in Config.model_fields):
        return Fault(own, rest)
    in_data = not key and own in ("inputs", "targets")
    return Fault("data" if in_data else key, message)


def out_of_memory(error: BaseException, key: str) -> str | None:
    """What to say if ``error`` is of too little memory for the section ``key``, else None."""
    if not (is_out_of_memory(error) or any(message in str(error) for message in _NO_SIZE)):
        return None
    what = "needs" if key else "training needs"
    return f"{what} more memory than there is; {REMEDIES.get(key, REMEDIES[''])}"
