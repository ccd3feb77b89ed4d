"""From a checked configuration to live objects: data, loaders, model, loss, optimizer, trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from gdtrain.config import registry
from gdtrain.config.build_data import REGRESSION, prepare_data
from gdtrain.config.build_loss import build_loss
from gdtrain.config.build_model import sized_model
from gdtrain.config.build_monitors import build_monitors, check_monitors
from gdtrain.config.build_stream import prepare_stream
from gdtrain.config.memory import out_of_memory
from gdtrain.config.schema import Config, EarlyStoppingSection
from gdtrain.config.sections.losses import CLASS_LABEL_LOSSES
from gdtrain.config.sections.stream import Stream
from gdtrain.data.dataset import Preprocessing
from gdtrain.data.loaders import BatchLoader, Loader, MiniBatchLoader, SampleLoader
from gdtrain.data.order import mix
from gdtrain.errors import ConfigError, Fault, GdtrainError
from gdtrain.training import evaluation, schedules
from gdtrain.training.callbacks import Callback
from gdtrain.training.device import parameter_dtype, resolve_device
from gdtrain.training.prequential import Prequential
from gdtrain.training.seeding import seed_everything
from gdtrain.training.sharding import shard
from gdtrain.training.trainer import Trainer
from gdtrain.training.validation import EarlyStopping, Validation, best_of

LOADERS: dict[str, Callable[..., Loader]] = {
    "batch": BatchLoader,
    "sample": SampleLoader,
    "minibatch": MiniBatchLoader,
}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True)
class Run:
    """A configuration made real: what the train command needs."""

    config: Config
    trainer: Trainer
    loader: Loader
    validation: Loader | None
    preprocessing: Preprocessing


def build(config: Config, callbacks: list[Callback] | None = None) -> Run:
    """Build everything that the configuration names, with its seed.

    callbacks: appended to those that the configuration asks for.
    Raises ConfigError whose faults bear the keys of the sections at fault, without places.
    """
    seed_everything(config.seed)
    with stage("data"):
        is_stream = isinstance(config.data, Stream)
        data = prepare_stream(config) if is_stream else prepare_data(config)
    with stage("loader"):
        options = config.loader.model_dump(exclude={"name"})
        loader = LOADERS[config.loader.name](data.training, seed=config.seed, **options)
        plan = loader.plan(0)
    with stage("data"):
        validation = None if data.validation is None else BatchLoader(data.validation)
    with stage("model"):
        model = sized_model(config, data, smallest_batch=plan.smallest_batch)
    with stage("loss"):
        loss = build_loss(config, data.preprocessing.num_outputs)
    with stage(""):
        if config.strategy == "shard":
            device = resolve_device(config.device)
            model = shard(model.to(device, parameter_dtype(config.precision, device)), device)
    with stage("optimizer"):
        optimizer = _optimizer(config, model)
    metrics = _metrics(config)
    trainer_type = registry.trainers.parts[config.trainer] if config.trainer else Trainer
    with stage(""):
        scheduler = _scheduler(config, optimizer, loader)
        watchers: list[Callback] = []
        if isinstance(config.data, Stream):
            watchers.append(Prequential(config.data.window, metrics))
        if config.early_stopping is not None:
            watchers.append(_early_stopping(config.early_stopping, list(metrics)))
        if config.checkpoint.keep_best is not None:
            _check_monitored("checkpoint.keep_best", config.checkpoint.keep_best, list(metrics))
        monitors = build_monitors(config.monitors)
        trainer: Trainer = trainer_type(
            model,
            loss,
            optimizer,
            loader,
            device=config.device,
            precision=config.precision,
            scheduler=scheduler,
            scheduler_per=config.scheduler.per if config.scheduler else "epoch",
            validation=_validation(config, validation),
            metrics=metrics,
            callbacks=[*watchers, *monitors, *(callbacks or [])],
            clip_grad_norm=config.clip_grad_norm,
            clip_grad_value=config.clip_grad_value,
            microbatch_size=config.microbatch_size,
            memory_limit=config.memory_limit,
            microbatch_allow=config.microbatch_allow,
            accumulate_in=config.accumulate_in,
            engine=config.engine,
        )
        trainer.check_separable()
    with stage("monitors"):
        check_monitors(monitors, trainer)
    if trainer.world.rank:  # alike until here; from here on, other ranks drop other units
        seed_everything(mix(config.seed, trainer.world.rank) % 2**63)
    return Run(config, trainer, loader, validation, data.preprocessing)


@contextmanager
def stage(key: str) -> Iterator[None]:
    """Say of which section an error is, as a ConfigError without places."""
    try:
        yield
    except ConfigError as error:
        prefix = f"{key}." if key else ""
        faults = [Fault(prefix + fault.key, fault.message) for fault in error.faults]
        raise ConfigError(faults) from error
    except GdtrainError as error:
        message = str(error)
        own, _, rest = message.partition(": ")
        if own == key or (not key and own in Config.model_fields):
            raise ConfigError([Fault(own, rest)]) from error
        in_data = not key and own in ("inputs", "targets")
        raise ConfigError([Fault("data" if in_data else key, message)]) from error
    except (MemoryError, RuntimeError, TypeError) as error:
        said = out_of_memory(error, key)
        if said is None:
            raise
        raise ConfigError([Fault(key, said)]) from error


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    options = config.optimizer.model_dump(exclude={"name"})
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer.name == "lbfgs":
        options["line_search_fn"] = "strong_wolfe" if options.pop("line_search") else None
        return torch.optim.LBFGS(parameters, **options)
    return OPTIMIZERS[config.optimizer.name](parameters, **options)


def _scheduler(
    config: Config, optimizer: torch.optim.Optimizer, loader: Loader
) -> torch.optim.lr_scheduler.LambdaLR | None:
    section = config.scheduler
    if section is None:
        return None
    options = section.model_dump(exclude={"name", "per", "warmup"})
    if section.name == "cosine":
        total = config.epochs * (len(loader) if section.per == "step" else 1)
        options["total"] = max(1, total - section.warmup)
    schedule: schedules.Schedule = getattr(schedules, section.name)(**options)
    return schedules.scheduler(optimizer, schedules.warmup(section.warmup, schedule))


def _metrics(config: Config) -> dict[str, evaluation.Metric]:
    labels = isinstance(config.loss, CLASS_LABEL_LOSSES)
    binary = {
        "bce": evaluation.probability_accuracy,
        "bce_with_logits": evaluation.accuracy,
    }
    chosen = config.metrics
    if chosen is None:
        chosen = ["accuracy"] if labels or config.loss.name in binary else []
    known: dict[str, evaluation.Metric] = {}
    for name in chosen:
        if name == "mae":
            if config.loss.name not in REGRESSION:
                raise ConfigError.of("metrics", f"mae needs a loss of {', '.join(REGRESSION)}")
            known[name] = evaluation.mean_absolute_error
        elif labels:
            known[name] = evaluation.accuracy
        elif config.loss.name in binary:
            known[name] = binary[config.loss.name]
        else:
            raise ConfigError.of("metrics", f"accuracy has no meaning under {config.loss.name}")
    return known


def _early_stopping(section: EarlyStoppingSection, metrics: list[str]) -> EarlyStopping:
    _check_monitored("early_stopping.monitor", section.monitor, metrics)
    mode = section.mode or best_of(section.monitor)
    return EarlyStopping(
        section.monitor, patience=section.patience, min_delta=section.min_delta, mode=mode
    )


def _check_monitored(key: str, metric: str, metrics: list[str]) -> None:
    known = ["train_loss", "val_loss", *(f"val_{name}" for name in metrics)]
    if metric not in known:
        raise ConfigError.of(key, f"must be one of {', '.join(known)}; got {metric!r}")


def _validation(config: Config, loader: Loader | None) -> Validation | None:
    if loader is None:
        return None
    section = config.validation
    return Validation(
        loader, every_n_steps=section.every_n_steps, every_n_epochs=section.every_n_epochs
    )
