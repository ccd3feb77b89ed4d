"""What a run is made of, as engines, gradients, guards, state and callbacks see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch, Block, Plan
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ModelError
from gdtrain.training.callbacks.callback import Callback, Listeners
from gdtrain.training.descent import Work
from gdtrain.training.engines.engine import Engine
from gdtrain.training.evaluating.metrics import Metric
from gdtrain.training.gradients.loss_scale import LossScale
from gdtrain.training.gradients.microbatches import MicrobatchSize
from gdtrain.training.losses.terms import StepTerms
from gdtrain.training.optimizing.phases import Phases
from gdtrain.training.optimizing.schedules import ScheduleStepper
from gdtrain.training.placement.device import Placement, Precision
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.exchange import Total
from gdtrain.training.progress import History, Progress


class Kept(Protocol):
    """State that can be put back."""

    def restore(self) -> None:
        """Put it back."""


class UpdateGuard(Protocol):
    """What is asked of the guard outside of it.

    found: what :meth:`check` saw last: the loss, if it was asked of it, and the first gradient
        that is not finite. totals: of gradients that nobody changes before the next check.
    broken_off: whether the last update was made in part; stepped: by which of several optimizers.
    """

    found: tuple[float | None, str | None]
    totals: Sequence[Total]
    broken_off: bool
    stepped: list[str]

    @property
    def deferred(self) -> bool:
        """Whether to look after the block, and not before each update."""

    def before_step(self, own_step: bool) -> None:
        """Keep what a forward pass changes."""

    def keeping(self, *parts: Any) -> Callable[[], None]:
        """What to call instead where it is known which parts a forward pass may change."""

    def check(
        self,
        loss: Tensor | None = None,
        work: Work | None = None,
        of: torch.optim.Optimizer | None = None,
    ) -> None:
        """Raise NotFinite if ``loss`` (shape []) or a gradient is not finite; or keep a flag."""

    def check_rungs(self) -> None:
        """Raise ConfigError if an own ``train_step`` leaves a setting unused."""

    def check_made(self, loss: Tensor) -> None:
        """Raise NotFinite for the loss of a subclass's ``train_step``."""

    def undo(self) -> None:
        """Put back what there was at :meth:`before_step`."""

    def take_back(self) -> None:
        """As :meth:`undo`, of an update that is refused."""

    def unwatch(self) -> None:
        """Leave an own ``train_step`` alone again."""

    def snapshot(self) -> Kept:
        """What to come back to if the block that follows is not sound."""

    def sound_steps(self, losses: Sequence[Tensor]) -> int:
        """How many steps of a block came before the first that is not finite."""

    def protect(self, update: Callable[[], object]) -> None:
        """Make an update that looks for its step by itself, or none."""


class LossWeights(Protocol):
    """What the loss of each update's batch counts for in the mean over an epoch.

    computed: that of the update's first gradient, where computing that has found it out. is_noted:
    whether there was one.
    """

    computed: float | Tensor | None
    is_noted: bool

    def note(self, weight: float | Tensor | None) -> None:
        """Take what the loss of a gradient is divided by, if that is the first of the update."""

    def of(self, batch: Batch, size: int) -> float | Tensor:
        """For a batch of which ``size`` samples are on all processes."""

    def planned(self, block: Block) -> list[Any]:
        """For each batch of a block whose updates were made at once; empty if its samples."""


class EngineChoice(Protocol):
    """Which engine runs the blocks.

    wanted: the name that was asked for, or ``auto``. options: of torch.compile.
    """

    wanted: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The engine's, as in the configuration."""

    def instead(self, name: str, error: ModelError) -> Engine:
        """The engine that goes on where the one of this name can't."""

    def keep(self, name: str | None) -> None:
        """Go on with the engine that a snapshot was made by."""


class Run(Protocol):
    """A model in training, with all that its loop works with.

    :class:`~gdtrain.training.trainer.Trainer` is one, and owns every field; its docstring says
    what they are. Nothing below the trainer imports it: what a part of the loop needs of a run
    stands here.

    is_fitting: whether a fit is under way. stays_in_eval: whether the next one goes on where a
        snapshot was taken, with the model in eval mode.
    told_of_end: the callbacks that know of the end of the last epochs; None once all do.
    outputs: what the model gave in the batch's passes, for who wants to see it before the update.
    called_rungs: methods of the trainer that an own ``train_step`` has called in this update.
    captured_step: the number of updates, as a tensor, while an engine captures a step.
    clip_grad_norm, clip_grad_value: a bound, or several by the names of optimizers, or None.
    updater: the optimizer, or several as one, of which groups and state are to be read alone.
    terms: what is noted of the update that is being made, besides its loss. rates: the learning
        rates of the last update, of several optimizers, by name.
    loss_scale: of precision fp16. phase: the number of the present one of ``phases``, from 0.
    own_state: names of attributes that a subclass has registered as state.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor] | None
    updater: torch.optim.Optimizer
    loader: Loader | None
    schedule: ScheduleStepper
    metrics: dict[str, Metric]
    callbacks: list[Callback]
    evaluate_in: Literal["whole", "batches"]
    clip_grad_norm: Any
    clip_grad_value: Any
    microbatches: MicrobatchSize

    device: torch.device
    precision: Precision | None
    world: World
    is_sharded: bool

    progress: Progress
    history: History
    plan: Plan | None
    running: Block | None
    num_epochs: int
    is_fitting: bool
    stays_in_eval: bool
    should_stop: bool
    told_of_end: list[Callback] | None
    outputs: list[tuple[Any, Any]] | None
    called_rungs: set[str]
    captured_step: Tensor | None
    own_state: list[str]
    phases: Phases | None
    phase: int
    loss_scale: LossScale | None
    rates: dict[str, float]
    terms: StepTerms

    engine: Engine

    @property
    def choice(self) -> EngineChoice:
        """What has chosen the engine."""

    @property
    def guard(self) -> UpdateGuard:
        """What keeps updates from doing harm."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The only one. Raises ModelError if there are several."""

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All of them by name; a single one has none."""

    @property
    def step_weights(self) -> LossWeights:
        """What the loss of each update counts for."""

    # ── the rungs ───────────────────────────────────────────────────────────────────────────

    def train_step(self, batch: Batch) -> Tensor:
        """Apply one update; return the batch's loss before it, shape [], detached."""

    def batch_gradient(self, batch: Batch) -> Tensor:
        """Set ``.grad`` to the exact gradient of the batch's loss; return the loss, detached."""

    def finish_gradient(self) -> None:
        """Clip, then show the gradient to the callbacks."""

    def batch_loss(self, batch: Batch) -> Tensor:
        """``compute_loss`` in the run's precision, with its graph."""

    def compute_loss(self, batch: Batch) -> Tensor | Mapping[str, Any]:
        """The loss of a batch (or microbatch), shape [], or a mapping with it and its terms."""

    def loss_weight(self, batch: Batch) -> float | Tensor:
        """What the loss of a batch is divided by."""

    def forward(self, inputs: Any) -> Any:
        """The model's output."""

    def output_loss(self, output: Any, targets: Any) -> Tensor:
        """``loss(output, targets)``, checked."""

    def has_own(self, *rungs: str) -> bool:
        """Whether one of these methods is a subclass's, or was put into this object."""

    @property
    def has_own_step(self) -> bool:
        """Whether ``train_step`` is a subclass's."""

    @property
    def has_own_weight(self) -> bool:
        """Whether ``loss_weight`` is a subclass's."""

    # ── what parts of the loop call ─────────────────────────────────────────────────────────

    def read(
        self,
        loader: Loader,
        plan: Plan | None = None,
        start: int = 0,
        *,
        shared: bool = True,
        views: bool = False,
    ) -> Iterator[Batch]:
        """The loader's batches on the run's device and in its dtype."""

    def evaluate(
        self, loader: Loader | None = None, *, in_batches: bool | None = None
    ) -> dict[str, float]:
        """``loss`` and each metric over every sample of ``loader`` once."""

    def emit(self, event: str, *arguments: Any) -> None:
        """Tell the callbacks of one of their moments."""

    def after_update(self) -> None:
        """What an engine calls after each update."""

    def pass_epoch(self, plan_of: Callable[[int], Plan]) -> bool:
        """Go on into the next epoch in the middle of a block; whether that can be done."""

    def enter_phase(self, number: int) -> None:
        """Go on with the optimizer, the schedule and the frozen layers of a phase, from 0."""

    def stop(self, reason: str) -> None:
        """End the run at the next safe point."""

    def check_separable(self) -> None:
        """Raise ModelError if batches are to be cut although a layer mixes their samples."""

    @property
    def listeners(self) -> Listeners:
        """Who listens to what."""

    @property
    def placed(self) -> Placement:
        """What brings samples to the device, in the dtype that the model has now."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the data."""

    @property
    def lr(self) -> float:
        """The learning rate as it stands."""

    @property
    def needs_closure(self) -> bool:
        """Whether the optimizer evaluates the loss by itself, as L-BFGS does."""
