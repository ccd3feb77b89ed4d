"""The whole configuration, typed: its sections, their defaults and bounds."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, create_model, field_validator

from gdtrain.config import registry
from gdtrain.config.registry import Strict
from gdtrain.config.sections import stream
from gdtrain.config.sections.bounds import (
    NonNegative,
    Positive,
    PositiveFloat,
    instead_of,
    shorthand,
)
from gdtrain.config.sections.corrections import (
    AveragingSection,
    VarianceReductionSection,
    no_reduction,
)
from gdtrain.config.sections.data import Data, DataSection, Source
from gdtrain.config.sections.loaders import LoaderSection, check_phases
from gdtrain.config.sections.losses import Loss, LossSection
from gdtrain.config.sections.models import Model, ModelSection
from gdtrain.config.sections.monitors import Monitors, MonitorsSection
from gdtrain.config.sections.monitors import misfit as monitors_misfit
from gdtrain.config.sections.updates import OptimizerSection, ScheduleSection
from gdtrain.errors import ConfigError


class ValidationSection(Strict):
    """When to evaluate on the validation part."""

    every_n_steps: Positive | None = None
    """After every k-th update."""
    every_n_epochs: Annotated[Positive | None, instead_of("every_n_steps")] = None
    """After every k-th epoch; every epoch if neither is given."""


class EarlyStoppingSection(Strict):
    """Stop when a metric has not improved for some epochs."""

    monitor: str = "val_loss"
    """A metric of the epochs: train_loss, val_loss, val_accuracy, val_mae."""
    patience: Positive = 5
    """Epochs without improvement that are borne."""
    min_delta: NonNegative = 0.0
    """What counts as an improvement."""
    mode: Literal["min", "max"] | None = None
    """Whether lower or higher is better; by the metric if left out."""


class LogSection(Strict):
    """What goes into metrics.jsonl besides the epochs, and what is made of it."""

    every_n_steps: Positive = 50
    """Record step, loss and learning rate of every k-th update."""
    csv: bool = False
    """Write metrics.csv too: the same numbers as a table."""
    tensorboard: bool = False
    """Write the same numbers for TensorBoard, into tensorboard/ of the run's directory."""
    picture: bool = True
    """Draw loss.png when training is over, if matplotlib is installed."""


class CheckpointSection(Strict):
    """When to save checkpoints, besides those at the start, the end and an interruption."""

    every_n_steps: Positive | None = None
    """After every k-th update."""
    every_n_epochs: Positive | None = None
    """After every k-th epoch."""
    every_seconds: PositiveFloat | None = 60.0
    """At the first safe point after this many seconds; null in the file: never by the clock."""
    keep_last: Positive = 3
    """How many of the newest to keep."""
    keep_best: str | None = None
    """A metric of the epochs, such as val_loss: the checkpoint of its best epoch is kept too."""


class Config(Strict):
    """One training run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides initial weights, split, orders and dropout."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")] = "auto"
    """auto (cuda, mps, then cpu), cpu, cuda, cuda:1 or mps."""
    data: DataSection
    """Where the samples come from, by source."""
    model: ModelSection
    """The model, by name."""
    loss: LossSection
    """The loss, by name."""
    loader: LoaderSection
    """Which form of gradient descent: batch, sample or minibatch. Or a list of them, each until the
    end of an epoch."""
    optimizer: OptimizerSection
    """The optimizer, by name; sgd if no name is given."""
    variance_reduction: VarianceReductionSection | None = None
    """Correct the gradients of the batches so that their noise vanishes at the minimum, by name."""
    averaging: AveragingSection | None = None
    """Average the weights over the updates; evaluated and written beside the last ones."""
    scheduler: ScheduleSection | None = None
    """How the learning rate changes, by name."""
    clip_grad_norm: PositiveFloat | None = None
    """Bound on the 2-norm of the gradient."""
    clip_grad_value: PositiveFloat | None = None
    """Bound on each element of the gradient."""
    microbatch_size: Positive | Literal["auto"] | None = None
    """Compute each batch's gradient, and evaluate, in slices of this many samples, to save memory;
    auto: of as many as memory_limit allows."""
    memory_limit: Positive | str | None = None
    """What the activations of a slice may take under auto, and the outputs and targets of a data
    set where a loss needs all of them: bytes, or 512MB, 2GiB; if left out, on a CPU 4MiB, a core's
    cache, and 1GiB, and half of the free memory of a device."""
    microbatch_allow: list[str] = Field([])
    """Names of layers that mix the samples of a batch and may be given slices all the same."""
    accumulate_in: Literal["fp64"] | None = None
    """Add up the gradients of slices in float64."""
    evaluate_in: Literal["whole", "batches"] = "whole"
    """Evaluate the loss of all samples, as in one pass over them, or the mean over the batches of
    the loader, for a loss that is meant per batch."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Of the computation; bf16 keeps float32 parameters."""
    strategy: Literal["replicate", "shard"] = "replicate"
    """Of several processes, each holds the whole model (replicate), or a part of it (shard)."""
    process_timeout: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    """Seconds that a process started by torchrun waits for the others before it gives up."""
    engine: Literal["auto", "eager", "scan", "cuda_graph"] = "auto"
    """How blocks of steps are executed: one by one with the bits of the hand-written loop (eager),
    or compiled, by XLA on a CPU (scan) or as a CUDA graph; auto chooses by a fixed rule."""
    epochs: Positive
    """Passes over the training part, in total."""
    validation: ValidationSection = ValidationSection()
    """When to evaluate on the validation part."""
    metrics: list[Literal["accuracy", "mae"]] | None = None
    """Evaluated beside the loss; accuracy for losses over classes if left out."""
    early_stopping: EarlyStoppingSection | None = None
    """Stop when a metric has not improved for some epochs."""
    log: LogSection = LogSection()
    """What goes into metrics.jsonl besides the epochs, and what is made of it."""
    monitors: MonitorsSection = None
    """What to measure beside the loss: a list of names, or each name with its options."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When to save checkpoints."""
    trainer: str | None = None
    """A Trainer subclass registered with register_trainer."""

    @field_validator("loader", mode="before")
    @classmethod
    def _in_the_order_of_a_stream(cls, value: Any, info: ValidationInfo) -> Any:
        is_stream = isinstance(info.data.get("data"), stream.Stream)
        return stream.in_its_order(value) if is_stream else value

    @field_validator("loader")
    @classmethod
    def _phases_follow(cls, value: Any) -> Any:
        check_phases(value)
        return value

    @field_validator("loader", "scheduler", "epochs", "early_stopping")
    @classmethod
    def _fits_a_stream(cls, value: Any, info: ValidationInfo) -> Any:
        said = stream.misfit(info.field_name, value)
        if said and isinstance(info.data.get("data"), stream.Stream):
            raise ValueError(said)
        return value

    @field_validator("monitors")
    @classmethod
    def _can_look(cls, value: Monitors | None, info: ValidationInfo) -> Monitors | None:
        is_stream = isinstance(info.data.get("data"), stream.Stream)
        said = monitors_misfit(value) if value is not None and is_stream else None
        if said:
            raise ValueError(said)
        return value

    @field_validator("variance_reduction")
    @classmethod
    def _has_variance(cls, value: Any, info: ValidationInfo) -> Any:
        is_stream = isinstance(info.data.get("data"), stream.Stream)
        parts = (info.data.get("loader"), info.data.get("optimizer"))
        if value is not None and (said := no_reduction(*parts, is_stream)):
            raise ValueError(said)
        return value

    @field_validator("averaging")
    @classmethod
    def _has_epochs(cls, value: Any, info: ValidationInfo) -> Any:
        is_stream = isinstance(info.data.get("data"), stream.Stream)
        if value is not None and is_stream and (value.start_epoch or 1) > 1:
            raise ValueError("start_epoch has no effect on a stream, which is one epoch")
        return value

    @field_validator("validation")
    @classmethod
    def _needs_validation_part(cls, value: Any, info: ValidationInfo) -> Any:
        data = info.data.get("data")
        if value != ValidationSection() and isinstance(data, Data) and not data.validation_fraction:
            raise ValueError("has no effect without data.validation_fraction; set it")
        return value

    @field_validator("metrics")
    @classmethod
    def _are_evaluated(cls, value: Any, info: ValidationInfo) -> Any:
        data = info.data.get("data")
        if value and isinstance(data, Data) and not data.validation_fraction:
            raise ValueError("have no effect without data.validation_fraction; set it")
        return value

    @field_validator("checkpoint")
    @classmethod
    def _can_be_kept(cls, value: CheckpointSection, info: ValidationInfo) -> CheckpointSection:
        data = info.data.get("data")
        of_validation = (value.keep_best or "").startswith("val_")
        if of_validation and isinstance(data, Data) and not data.validation_fraction:
            said = f"keeps the best {value.keep_best} but data.validation_fraction is 0; set it"
            raise ValueError(said)
        return value

    @field_validator("early_stopping")
    @classmethod
    def _can_be_monitored(cls, value: Any, info: ValidationInfo) -> Any:
        data = info.data.get("data")
        if value is None or not value.monitor.startswith("val_") or not isinstance(data, Data):
            return value
        if not data.validation_fraction:
            raise ValueError(f"monitors {value.monitor} but data.validation_fraction is 0; set it")
        return value

    @field_validator("trainer")
    @classmethod
    def _is_registered(cls, value: str | None) -> str | None:
        if value is not None and value not in registry.trainers.parts:
            known = ", ".join(registry.trainers.parts) or "none"
            raise ValueError(f"{value!r} is not registered (registered: {known}); use --import")
        return value


def config_model() -> type[Config]:
    """The type of a configuration, with what a user has registered among its parts."""
    fields: dict[str, Any] = {}
    for key, built_in, registered, base in (
        ("data", Source, registry.sources, Data),
        ("model", Model, registry.models, Strict),
        ("loss", Loss, registry.losses, Strict),
    ):
        if registered.parts:
            tag = registered.tag
            for part in get_args(built_in):
                for name in get_args(part.model_fields[tag].annotation):
                    if name in registered.parts:
                        said = f"{name!r} is built in; register yours under another name"
                        raise ConfigError.of(key, said)
            union: Any = reduce(or_, registered.option_models(base), built_in)
            kind = Annotated[union, Field(discriminator=tag), shorthand(tag)]
            fields[key] = (kind, Field(description=Config.model_fields[key].description))
    return create_model("Config", __base__=Config, **fields) if fields else Config
