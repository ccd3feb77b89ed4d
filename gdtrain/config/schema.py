"""The whole configuration, typed: its sections, their defaults and bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from gdtrain import registry
from gdtrain.data.loaders.phases import following
from gdtrain.registry import OneOf, OneOfKinds, SomeOf, fault
from gdtrain.settings import (
    LoaderSettings,
    LossSettings,
    NamedSettings,
    NonNegative,
    Positive,
    PositiveFloat,
    Settings,
    SourceSettings,
    instead_of,
)

# The sections that name a part, and its kind.
KIND_OF = {
    "data": "source",
    "model": "model",
    "loss": "loss",
    "loader": "loader",
    "optimizer": "optimizer",
    "variance_reduction": "variance_reduction",
    "scheduler": "schedule",
}
# Those that map names of parts to their options.
MAPPINGS = {"metrics": "metric", "monitors": "monitor", "callbacks": "callback"}

Loader = Annotated[LoaderSettings, OneOf("loader")]
Schedule = Annotated[Settings, OneOf("schedule")]
Optimizer = Annotated[NamedSettings, OneOf("optimizer")]


def _sharing(value: Any) -> Any:
    """An optimizer, or several, of which all but one say what they step; else an error there."""
    if not isinstance(value, dict):
        if getattr(value, "parameters", None) is not None:
            text = "has no effect for a single optimizer, which steps all there are; remove it"
            raise fault(text, "parameters")
        return value
    rest = None
    for name, one in value.items():
        if not name.isidentifier():
            raise fault("is not a name; use letters, digits, _", name)
        if getattr(one, "parameters", None) is None:
            if rest is not None:
                raise fault(f"missing; {rest} steps all that is left already", name, "parameters")
            rest = name
    return value


Optimizers = Annotated[
    Any, OneOfKinds(one=Optimizer, named=dict[str, Optimizer]), AfterValidator(_sharing)
]
Schedules = Annotated[Any, OneOfKinds(one=Schedule, named=dict[str, Schedule])]
Bound = Annotated[Any, OneOfKinds(one=PositiveFloat, mapping=dict[str, PositiveFloat])]


class AveragingSection(Settings):
    """Average the weights over the updates; training itself does not use the average."""

    start_epoch: Positive | None = None
    """The first epoch whose weights are averaged, counted from 1; 1 if neither start is given."""
    start_step: Annotated[Positive | None, instead_of("start_epoch")] = None
    """The first update whose weights are averaged, counted from 1."""
    every_n_steps: Positive = 1
    """Average the weights after every k-th update. Under engine scan, 1 costs most of its speed."""
    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """d of the exponential average d · mean + (1 - d) · θ; a plain mean if left out."""


class CompileSection(Settings):
    """Options of torch.compile, as PyTorch has them."""

    backend: str | None = None
    """The backend that compiles graphs; inductor if left out."""
    mode: Literal["default", "max-autotune-no-cudagraphs"] | None = None
    """How long to search for fast kernels."""
    fullgraph: bool = False
    """Whether a graph break is an error."""
    dynamic: bool | None = None
    """Whether sizes may change without compiling again; PyTorch decides if left out."""


class PhaseSection(Settings):
    """The settings of one phase of training."""

    until_epoch: Positive | None = None
    """The last epoch of the phase, counted from 1; omit it in the last phase."""
    optimizer: Optimizers
    """The optimizer of the phase, which starts with a fresh state; or several by name."""
    scheduler: Schedules | None = None
    """The learning-rate schedule, with t counted from the start of the phase."""
    frozen: list[str] = Field([])
    """Names of layers or parameters of the model that are not trained in this phase."""


class ValidationSection(Settings):
    """When to evaluate on the validation part."""

    every_n_steps: Positive | None = None
    """After every k-th update."""
    every_n_epochs: Annotated[Positive | None, instead_of("every_n_steps")] = None
    """After every k-th epoch; every epoch if neither is given."""


class EarlyStoppingSection(Settings):
    """Stop when a metric has not improved for some epochs."""

    monitor: str = "val_loss"
    """train_loss, val_loss, or val_ and the name of a metric, such as val_accuracy; with averaging
    also val_loss_averaged and so on."""
    patience: Positive = 5
    """Epochs without improvement after which training stops."""
    min_delta: NonNegative = 0.0
    """By how much a value must beat the best to count as an improvement."""
    mode: Literal["min", "max"] | None = None
    """Whether lower or higher is better; by the metric if left out."""


class LogSection(Settings):
    """What metrics.jsonl records besides the epochs, and in which other forms it is written."""

    every_n_steps: Positive = 50
    """Record step, loss and learning rate of every k-th update."""
    csv: bool = False
    """Write metrics.csv too: the same numbers as a table."""
    tensorboard: bool = False
    """Write the same numbers for TensorBoard, into tensorboard/ of the run's directory."""
    picture: bool = True
    """Draw loss.png when training is over, if matplotlib is installed."""


class CheckpointSection(Settings):
    """When to save checkpoints, besides those at the start, the end and an interruption."""

    every_n_steps: Positive | None = None
    """After every k-th update."""
    every_n_epochs: Positive | None = None
    """After every k-th epoch."""
    every_seconds: PositiveFloat | None = 60.0
    """At the first safe point after this many seconds; null: not by time."""
    keep_last: Positive = 3
    """How many of the newest to keep."""
    keep_every_n_steps: Positive | None = None
    """Keep those after every k-th update too; they are never removed."""
    keep_best: str | None = None
    """A metric of the epochs, such as val_loss: the checkpoint of its best epoch is kept too."""


class Config(Settings):
    """One training run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Determines initial weights, split, orders and dropout."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")] = "auto"
    """auto (cuda, mps, then cpu), cpu, cuda, cuda:1 or mps."""
    data: Annotated[SourceSettings, OneOf("source")]
    """Where the samples come from, by source."""
    model: Annotated[NamedSettings, OneOf("model")]
    """The model, by name."""
    loss: Annotated[LossSettings, OneOf("loss")]
    """The loss, by name."""
    loader: Annotated[
        Any, OneOfKinds(one=Loader, several=Annotated[list[Loader], Field(min_length=1)])
    ]
    """The form of gradient descent: batch, sample or minibatch. Or a list of them, each used until
    the end of its until_epoch."""
    phases: Annotated[list[PhaseSection], Field(min_length=1)] | None = None
    """Phases of training, in place of optimizer and scheduler. Each lasts until the end of an
    epoch, and has an optimizer, a schedule and a list of frozen layers."""
    optimizer: Annotated[Optimizers, Field(validate_default=True)] = None
    """The optimizer, by name; sgd if no name is given. Or a mapping from names that you choose to
    optimizers of different parameters, stepped in this order; then scheduler, clip_grad_norm and
    clip_grad_value may be such mappings too."""
    variance_reduction: Annotated[NamedSettings, OneOf("variance_reduction")] | None = None
    """Correct the batch gradients so that their noise vanishes at the minimum, by name."""
    averaging: AveragingSection | None = None
    """Average the weights over the updates; they are evaluated and saved next to the last ones."""
    scheduler: Schedules | None = None
    """The learning-rate schedule, by name."""
    clip_grad_norm: Bound | None = None
    """Bound on the 2-norm of the gradient."""
    clip_grad_value: Bound | None = None
    """Bound on each element of the gradient."""
    microbatch_size: Positive | Literal["auto"] | None = None
    """Compute each batch's gradient, and evaluate, in slices of this many samples, to save memory;
    auto: as many as memory_limit allows."""
    memory_limit: Positive | str | None = None
    """Limit on the activations of a slice under auto, and on the outputs and targets of a data set
    if the loss needs all of them at once: bytes, or 512MB, 2GiB. If left out, on a CPU 4MiB (a
    core's cache) and 1GiB, respectively; on a device, half of its free memory."""
    microbatch_allow: list[str] = Field([])
    """Names of layers that mix the samples of a batch, and are allowed to run on slices anyway."""
    accumulate_in: Literal["fp64"] | None = None
    """Add up the gradients of slices in float64."""
    evaluate_in: Literal["whole", "batches"] = "whole"
    """Evaluate the loss of all samples as in one pass (whole), or the mean over the loader's
    batches, for a loss that is defined per batch (batches)."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Precision of the computation; bf16 and fp16 keep float32 parameters; fp16 scales the loss."""
    strategy: Literal["replicate", "shard"] = "replicate"
    """With several processes, each holds the whole model (replicate) or a part of it (shard)."""
    process_timeout: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    """Seconds that a process started by torchrun waits for the others before it gives up."""
    engine: Literal["auto", "eager", "compile", "scan", "cuda_graph"] = "auto"
    """How updates are executed: one by one with the bits of the hand-written loop (eager), the same
    with model and loss compiled by torch.compile (compile), or many at once, compiled by XLA on a
    CPU (scan) or as a CUDA graph (cuda_graph). auto chooses eager, scan or cuda_graph by a fixed
    rule."""
    compile: CompileSection | None = None
    """Options of torch.compile, for the engine compile."""
    epochs: Positive
    """Number of passes over the training part, in total."""
    validation: ValidationSection = ValidationSection()
    """When to evaluate on the validation part."""
    metrics: Annotated[dict[str, Settings], SomeOf("metric", may_be_none=True)] | None = None
    """Evaluated in addition to the loss, by name; if left out, accuracy for classification."""
    early_stopping: EarlyStoppingSection | None = None
    """Stop when a metric has not improved for some epochs."""
    log: LogSection = LogSection()
    """What metrics.jsonl records besides the epochs, and in which other forms it is written."""
    monitors: Annotated[dict[str, Settings], SomeOf("monitor")] | None = None
    """What to measure during training: a list of names, or each name with its options."""
    callbacks: Annotated[dict[str, Settings], SomeOf("callback")] | None = None
    """Registered callbacks: a list of names, or each name with its options."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When to save checkpoints."""
    trainer: str | None = None
    """A Trainer subclass registered with register_trainer."""

    @field_validator("loader", mode="wrap")
    @classmethod
    def _suits_source_and_phases(cls, value: Any, read: Any, info: ValidationInfo) -> Any:
        """Some sources have an order of their own, which a loader need not name; phases follow."""
        order = _ORDER_OF.get(getattr(info.data.get("data"), "source", ""))
        if order is not None:
            several = isinstance(value, list)
            value = [_in_order(order, each) for each in (value if several else [value])]
            value = value if several else value[0]
        value = read(value)
        if isinstance(value, list):
            following(value)
        elif value.until_epoch is not None:
            text = "has no effect outside a list of loaders; remove it, or add the loader after it"
            raise fault(text, "until_epoch")
        return value

    @field_validator("phases")
    @classmethod
    def _follow_each_other(cls, value: Any) -> Any:
        return None if value is None else following(value)

    @field_validator("optimizer", "scheduler", mode="wrap")
    @classmethod
    def _is_here_or_in_phases(cls, value: Any, read: Any, info: ValidationInfo) -> Any:
        phases = info.data.get("phases", ...)  # missing where they are wrong
        if value is None and phases is not None:
            return None
        value = read(value)
        if value is not None and phases not in (None, ...):
            raise ValueError("has no place beside phases, each of which has its own; remove it")
        return value

    @field_validator("*")
    @classmethod
    def _suits_the_parts_before_it(cls, value: Any, info: ValidationInfo) -> Any:
        for part in parts_in(info.data.values()):
            if (text := part.refuses(str(info.field_name), value)) is not None:
                raise ValueError(text)
        return value

    @field_validator("validation")
    @classmethod
    def _needs_validation_part(cls, value: Any, info: ValidationInfo) -> Any:
        if value != ValidationSection() and _is_all_trained_on(info):
            raise ValueError("has no effect without data.validation_fraction; set it")
        return value

    @field_validator("metrics")
    @classmethod
    def _are_evaluated(cls, value: Any, info: ValidationInfo) -> Any:
        is_tested = getattr(info.data.get("data"), "test", None) is not None
        if value and _is_all_trained_on(info) and not is_tested:
            raise ValueError("have no effect without data.validation_fraction; set it")
        return value

    @field_validator("checkpoint")
    @classmethod
    def _can_be_kept(cls, value: CheckpointSection, info: ValidationInfo) -> CheckpointSection:
        if (value.keep_best or "").startswith("val_") and _is_all_trained_on(info):
            message = f"keeps the best {value.keep_best} but data.validation_fraction is 0; set it"
            raise ValueError(message)
        return value

    @field_validator("early_stopping")
    @classmethod
    def _can_be_monitored(cls, value: Any, info: ValidationInfo) -> Any:
        monitor = "" if value is None else value.monitor
        if monitor.startswith("val_") and _is_all_trained_on(info):
            raise ValueError(f"monitors {monitor} but data.validation_fraction is 0; set it")
        return value

    @field_validator("trainer")
    @classmethod
    def _is_registered(cls, value: str | None) -> str | None:
        if value is not None and value not in registry.names("trainer"):
            known = ", ".join(registry.names("trainer")) or "none"
            raise ValueError(f"{value!r} is not registered (registered: {known}); use --import")
        return value


_ORDER_OF = {"stream": "sequential", "parquet": "row_groups"}


def _in_order(order: str, loader: Any) -> Any:
    """A loader's settings with the order that it has unless it says another."""
    loader = {"name": loader} if isinstance(loader, str) else loader
    if not isinstance(loader, dict) or loader.get("name") == "batch":
        return loader
    return {"order": order, **loader}


def parts_in(value: Any) -> Iterator[Settings]:
    """The settings of all parts in a section, or in what has some."""
    if isinstance(value, PhaseSection):
        yield from parts_in((value.optimizer, value.scheduler))
    elif isinstance(value, Settings):
        yield value
    elif isinstance(value, Mapping):
        yield from parts_in(value.values())
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from parts_in(item)


def _is_all_trained_on(info: ValidationInfo) -> bool:
    """Whether no part of the data is kept for validation."""
    data = info.data.get("data")
    own_file = getattr(data, "validation", None)
    return isinstance(data, SourceSettings) and not data.validation_fraction and own_file is None
