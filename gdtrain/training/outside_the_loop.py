"""What a trainer offers outside of its loop: evaluation, prediction, its state and its settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ModelError
from gdtrain.training.evaluating import evaluation
from gdtrain.training.gradients.microbatches import MicrobatchSize
from gdtrain.training.optimizing.schedules import ScheduleStepper
from gdtrain.training.optimizing.several_optimizers import Optimizers, together
from gdtrain.training.placement.device import Placement
from gdtrain.training.progress import Progress
from gdtrain.training.run import Run
from gdtrain.training.safety import checks
from gdtrain.training.state import copying, own_state
from gdtrain.training.state import snapshot as state
from gdtrain.wording import counted, first_guesses

State = TypeVar("State")

_EVALUATED = "is given by a loader: trainer.evaluate(BatchLoader((X, y)))"


class OutsideTheLoop:
    """The part of :class:`gdtrain.Trainer` that makes no updates."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor] | None
    loader: Loader | None
    device: torch.device
    progress: Progress
    updater: torch.optim.Optimizer
    schedule: ScheduleStepper
    microbatches: MicrobatchSize
    evaluate_in: Literal["whole", "batches"]
    _placement: Placement

    # ── looks ───────────────────────────────────────────────────────────────────────────────

    @first_guesses(by_place=_EVALUATED, data=_EVALUATED)
    def evaluate(
        self, loader: Loader | None = None, *, in_batches: bool | None = None
    ) -> dict[str, float]:
        """``loss`` and each metric over every sample of ``loader`` once, with the present weights.

        They are what one pass over all samples gives; the loader's order and batch size play no
        part. in_batches: the mean over the loader's own batches instead, weighted by what a batch's
        loss is divided by, or its samples; None: as ``evaluate_in`` says. Model and loss are in
        eval mode meanwhile; their modes, buffers and gradients and all random number generators
        come back as they were. Raises ConfigError where outputs and targets that are needed all at
        once go over ``memory_limit``, and ModelError without a loader.
        """
        loader = self.loader if loader is None else loader
        if loader is None:
            raise ModelError("loader: missing; give evaluate one")
        if isinstance(loader, Loader):
            self.placed.compare(loader.samples)
        chosen = self.evaluate_in == "batches" if in_batches is None else in_batches
        look = partial(evaluation.evaluate, cast(Run, self), loader, chosen)
        return self.microbatches.look(look)

    def predict(self, inputs: Any) -> Any:
        """The model's outputs [n, …], on the CPU, for inputs [n, …] (or a tuple or dict of such).

        inputs: tensors or arrays, with no rows too. Outputs that are a tuple or dict keep that
        structure. Without side effects, as in :meth:`evaluate`.
        """
        return self.microbatches.look(partial(evaluation.predict, cast(Run, self), inputs))

    def register_state(self, name: str, value: State) -> State:
        """Hold ``value`` as the attribute ``name``, as a part of the state of training; return it.

        It is saved, resumed, put back with an update that is undone, and as it was after every
        look, such as an evaluation; rebind the attribute as you like. value: a tensor, a plain
        value (numbers, text, None, and dicts, lists and tuples of these and of tensors), a
        torch.Generator, or an object with ``state_dict`` and ``load_state_dict``, such as a
        module: a teacher. Tensors, dicts and lists stay the objects that they are, so an optimizer
        may hold a registered parameter. Of several processes, each has its own.

        Raises ConfigError for a name that is taken and for what can't be saved.

        >>> import torch
        >>> from gdtrain import BatchLoader, Trainer
        >>> class Counting(Trainer):
        ...     def __init__(self, *arguments, **options):
        ...         super().__init__(*arguments, **options)
        ...         self.register_state("passes", 0)
        ...
        ...     def compute_loss(self, batch):
        ...         self.passes += 1
        ...         return self.model(batch.inputs).square().mean()
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Counting(model, None, optimizer, BatchLoader(torch.ones(4, 2)))
        >>> history = trainer.fit(3)
        >>> trainer.evaluate()["loss"] < 10, trainer.passes
        (True, 3)
        """
        own_state.register(cast(Run, self), name, value)
        return value

    def state_dict(self) -> dict[str, Any]:
        """A snapshot, in copies, of everything that decides how training goes on."""
        return state.take(cast(Run, self))

    def load_state_dict(self, snapshot: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; ``fit`` then continues to the same bits.

        The global random number generators are set to the snapshot's.
        """
        with torch.inference_mode(False):  # whose tensors no later update could write to
            state.restore(cast(Run, self), snapshot)

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        if self.loss is None:
            loss = "a loss of its own"
        progress = self.progress
        optimizers = " and ".join(type(one).__name__ for one in self.optimizers.values())
        return (
            f"{type(self).__name__}({type(self.model).__name__} of {parameters:,} parameters, "
            f"{loss}, {optimizers}, {self.loader!r}, on {self.device}; "
            f"{counted(progress.epoch, 'epoch')}, {counted(progress.step, 'update')})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return copying.contents(cast(Run, self))

    def __setstate__(self, contents: dict[str, Any]) -> None:
        copying.fill(cast(Run, self), contents)

    # ── optimizers and settings ─────────────────────────────────────────────────────────────

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All optimizers by name; a single one has the name ``""``."""
        return self.updater.of if isinstance(self.updater, Optimizers) else {"": self.updater}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer. Raises ModelError if there are several: ``optimizers`` has them."""
        self._check_single("optimizer")
        return self.updater

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.updater = together(optimizer)

    def _check_single(self, what: str) -> None:
        if isinstance(self.updater, Optimizers):
            names = ", ".join(self.updater.of)
            message = f"trainer.{what}: there are several ({names}); use trainer.optimizers[name]"
            raise ModelError(message)

    @property
    def lr(self) -> float:
        """The learning rate as it stands, of the optimizer's first group.

        Setting it does what ``for group in optimizer.param_groups: group["lr"] = rate`` does, from
        the next update on. Raises ConfigError for what is no rate, and beside a schedule that
        computes each rate again, and so would undo it; ModelError if there are several optimizers.
        """
        self._check_single("lr")
        return float(self.updater.param_groups[0]["lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        self._check_single("lr")
        self.schedule.set_rate(self.updater, rate)

    @property
    def needs_closure(self) -> bool:
        """Whether the optimizer evaluates the loss by itself, as L-BFGS does."""
        return checks.needs_closure(type(self.updater).step)

    @property
    def dtype(self) -> torch.dtype:
        """Of the data: that of the optimizer's first parameter, its real one if complex."""
        for group in self.updater.param_groups:
            for parameter in group["params"]:
                dtype: torch.dtype = parameter.dtype
                return dtype.to_real()
        return next(self.model.parameters()).dtype.to_real()

    @property
    def placed(self) -> Placement:
        """What brings samples to the device, in the dtype that the model has now."""
        if self._placement.dtype is not (dtype := self.dtype):
            self._placement = Placement(self.device, dtype)
        return self._placement
