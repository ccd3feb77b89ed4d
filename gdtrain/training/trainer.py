"""The training loop: one loop for batch, stochastic and mini-batch gradient descent.

In pseudocode, and with nothing left out that matters:

    fit(num_epochs):
        until num_epochs are done or somebody asked to stop:
            plan = loader.plan(epoch)                which samples form which batch
            for each block of batches:               a block ends where somebody needs to look
                for each batch of the block:         one batch = one update
                    θ.grad = ∂J/∂θ                   of the batch's mean loss J
                    θ = θ - lr · θ.grad              whatever the optimizer makes of it
                safe point                           log, check, save, stop: here only
            end of epoch                             change the lr, validate, stop early

Where nobody needs to look at the end of an epoch, a block reaches over it: the epoch is counted,
its record written and the lr changed in passing, and the next plan made.

Only the loader knows which form it is. Override, from the widest to the narrowest:
``fit → _run_epoch → train_step → compute_loss``; the rung that is overridden is the one called.

What runs an update is the engine (:mod:`gdtrain.training.engines`), a block at a time:

* ``eager`` calls :meth:`Trainer.train_step` for each batch. Where nobody looks on and the optimizer
  is torch's SGD, Adam or AdamW on float32 or float64 of a CPU, :mod:`gdtrain.training.descent`
  makes the kernel calls of ``optimizer.step()``, with the same bits; else that is called. Of a
  block in which no code runs but PyTorch's and the project's own,
  :func:`gdtrain.training.engines.known_update.known_update` looks up once what an update needs, and
  does the same.
* ``scan`` and ``cuda_graph`` capture forward, loss, backward and update of one step as a graph and
  run whole blocks of it. ``train_step`` is not called then, so a trainer that overrides it, or a
  callback that looks at every update, is refused by name, and ``auto`` takes ``eager``.

What a part of the loop needs of the trainer stands in :mod:`gdtrain.training.run`; what it offers
besides, evaluation, prediction, state and settings, in :mod:`gdtrain.training.outside_the_loop`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch, Block, Plan
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.samples import copies
from gdtrain.data.sources import death_of_worker
from gdtrain.data.tree import map_tensors
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training import by_name
from gdtrain.training.blocks import BlockLength, EpochsAhead, blocks, may_go_on, present_plan
from gdtrain.training.callbacks.callback import Callback, Listeners, among
from gdtrain.training.callbacks.validation import Validation
from gdtrain.training.descent import backward, descend, gathered, zero_gradients
from gdtrain.training.engines.eager import EagerEngine, stacked
from gdtrain.training.engines.engine import Engine
from gdtrain.training.engines.selection import EngineChoice
from gdtrain.training.evaluating.metrics import Metric, check_metrics
from gdtrain.training.gradients import loss_weights
from gdtrain.training.gradients.accumulation import clip_gradient, scalar
from gdtrain.training.gradients.exact import ExactGradient, closure_step
from gdtrain.training.gradients.loss_scale import LossScale
from gdtrain.training.gradients.microbatches import MicrobatchSize
from gdtrain.training.losses import terms
from gdtrain.training.losses.known_means import mean_of
from gdtrain.training.losses.of_model import LossOfModel
from gdtrain.training.optimizing.phases import Phases
from gdtrain.training.optimizing.schedules import Scheduler
from gdtrain.training.optimizing.several_optimizers import (
    Optimizers,
    check_bounds,
    check_scheduler_is_of,
    stepper,
    together,
)
from gdtrain.training.outside_the_loop import OutsideTheLoop
from gdtrain.training.placement.compiler_import import leave_compiler_out
from gdtrain.training.placement.device import (
    Placement,
    Precision,
    autocast,
    parameter_dtype,
    resolve_device,
)
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.sharding import is_sharded
from gdtrain.training.progress import History, Progress, public
from gdtrain.training.safety import checks, diagnosis
from gdtrain.training.safety.finite_guard import Guard
from gdtrain.training.safety.signals import interruptible
from gdtrain.training.state.keeper import as_in_fit
from gdtrain.wording import counted, first_guesses

logger = logging.getLogger("gdtrain")

State = TypeVar("State")

# What is written here in place of arguments that other libraries have.
_OF_FIT = "is an argument of fit: trainer.fit(100)"
_LOADER = "is given by a loader: loader=MiniBatchLoader((X, y), batch_size=32)"
_VALIDATION = "is called validation: validation=BatchLoader((X, y))"
_OF_OPTIMIZER = "is the optimizer's: optimizer=torch.optim.SGD(model.parameters(), lr=0.1)"

leave_compiler_out()  # who trains has optimizers made, and few compile


class Trainer(OutsideTheLoop):
    """Trains ``model`` by gradient descent on the batches of ``loader``.

    model: moved to the device, and to the precision's dtype, in place.
    loss: ``(output, targets) -> loss``, shape [], such as a torch.nn loss, or its name in a
        configuration, such as ``"mse"``; ``"model"`` for a model that takes the inputs by name and
        returns its loss, like Hugging Face models; None if a subclass overrides
        :meth:`compute_loss`.
    optimizer: any ``torch.optim`` optimizer over ``model.parameters()``; L-BFGS too. Or several
        by name, for different parameters: after one backward pass each is stepped, in this order;
        a :meth:`train_step` of your own steps those of :attr:`optimizers` that it needs. Or
        :class:`gdtrain.Phases`, which change optimizer, schedule and frozen layers in mid-run.
    loader: a Loader: BatchLoader, SampleLoader, MiniBatchLoader, a PhasedLoader of loaders, or
        your own.
    device: ``auto`` (cuda, mps, then cpu), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    precision: ``fp32``, ``bf16`` or ``fp16`` (float32 parameters, autocast) or ``fp64``; None keeps
        the model's dtype. Floating-point data is cast to the parameters' dtype. Under ``fp16`` the
        loss is scaled as by torch.amp.GradScaler; a batch whose gradient overflows makes no update,
        ``progress.skipped`` counts it, and 20 in a row end the fit.
    scheduler: any ``torch.optim.lr_scheduler``, or several by the names of their optimizers,
        stepped once per ``scheduler_per``: ``"epoch"`` or ``"step"``, before the callbacks'
        ``on_epoch_end``.
    scheduler_metric: the metric for ReduceLROnPlateau, a key of the epochs' records; epochs
        without it are skipped. By default val_loss, or train_loss in a run without validation.
    validation: a loader to evaluate after each epoch, or a :class:`Validation` callback.
    metrics: name -> ``(output, targets) -> number``, called by :meth:`evaluate` once on the whole
        data set; ``mean_over_samples`` of such a function, or an object with ``update``,
        ``compute`` and ``reset`` (as in torchmetrics), is computed part by part. Or a list of
        their names in a configuration: ``["mae"]``.
    callbacks: called in this order, after the validation.
    clip_grad_norm, clip_grad_value: bounds on the gradient's 2-norm and on each element; over all
        trained parameters, or for each optimizer, by its name.
    microbatch_size: compute each batch's gradient in slices of this many samples; ``auto``: as
        many as ``memory_limit`` allows.
    memory_limit: bytes, or text such as ``512MB``, for the activations of a slice, and for the
        outputs and targets of a data set if a loss or metric needs all of them at once.
    microbatch_allow: names of layers that mix samples (BatchNorm) but may run on slices.
    accumulate_in: ``fp64`` adds up the slices' gradients in float64.
    evaluate_in: ``whole``, the loss of all samples as in one pass; ``batches``, the mean over the
        loader's batches, for losses that are defined per batch (contrastive ones).
    engine: ``eager``, with the bits of the hand-written loop; ``compile`` (torch.compile), ``scan``
        (XLA, on a CPU) or ``cuda_graph``, compiled, the same up to rounding; or ``auto``, which
        chooses by a fixed rule in fit.
    compile: options of ``module.compile()`` for the engine of that name: ``backend``, ``mode``,
        ``fullgraph``, ``dynamic``, ``options``.
    compute_loss: ``(trainer, batch) -> loss``, used in place of the method
        :meth:`compute_loss`, so that no subclass is needed.
    progress: whether ``fit`` shows a progress bar, on terminals and in notebooks only.

    Raises ModelError, ConfigError or DeviceError where these do not fit together.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> trainer = Trainer(
    ...     model,
    ...     nn.MSELoss(),
    ...     torch.optim.SGD(model.parameters(), lr=0.5),
    ...     BatchLoader((X, 3 * X + 1)),
    ...     device="cpu",
    ... )
    >>> history = trainer.fit(100)
    >>> len(history.train_loss), trainer.step
    (100, 100)
    >>> [round(value, 3) for value in (model.weight.item(), model.bias.item())]
    [3.0, 1.0]
    """

    phase = 0
    num_epochs = 0  # of the present fit
    is_fitting = False
    stays_in_eval = False
    should_stop = False
    stop_reason: str | None = None
    told_of_end: list[Callback] | None = None  # of an epoch; None: nobody is to be told
    _ahead: EpochsAhead
    _untold = 0  # records, the last ones, of which not all have been told
    plan: Plan | None = None  # of the current epoch
    running: Block | None = None  # that runs, or ran last

    @first_guesses(
        **dict.fromkeys(("epochs", "num_epochs", "max_epochs"), _OF_FIT),
        **dict.fromkeys(
            ("train_loader", "dataloader", "train_dataloader", "data", "train_dataset"), _LOADER
        ),
        **dict.fromkeys(("batch_size", "shuffle"), _LOADER),
        **dict.fromkeys(
            ("val_loader", "valid_loader", "val_dataloader", "validation_data"), _VALIDATION
        ),
        **dict.fromkeys(("gradient_clip_val", "max_grad_norm"), "is called clip_grad_norm"),
        **dict.fromkeys(("verbose", "enable_progress_bar"), "is called progress: progress=False"),
        **dict.fromkeys(("criterion", "loss_fn"), "is called loss: loss=nn.MSELoss()"),
        **dict.fromkeys(("lr", "learning_rate"), _OF_OPTIMIZER),
    )
    def __init__(
        self,
        model: nn.Module,
        loss: str | Callable[[Any, Any], Tensor] | None = None,
        optimizer: torch.optim.Optimizer
        | Mapping[str, torch.optim.Optimizer]
        | Phases
        | str
        | None = None,
        loader: Loader | None = None,
        *,
        device: str | torch.device = "auto",
        precision: Precision | None = None,
        scheduler: Scheduler | Mapping[str, Scheduler] | None = None,
        scheduler_per: Literal["epoch", "step"] = "epoch",
        scheduler_metric: str | None = None,
        validation: Loader | Validation | None = None,
        metrics: Mapping[str, Metric | str] | Sequence[str] | None = None,
        callbacks: Sequence[Callback] = (),
        clip_grad_norm: float | Mapping[str, float] | None = None,
        clip_grad_value: float | Mapping[str, float] | None = None,
        microbatch_size: int | Literal["auto"] | None = None,
        memory_limit: int | str | None = None,
        microbatch_allow: Sequence[str] = (),
        accumulate_in: Literal["fp64"] | None = None,
        evaluate_in: Literal["whole", "batches"] = "whole",
        engine: Literal["auto", "eager", "compile", "scan", "cuda_graph"] = "auto",
        compile: Mapping[str, Any] | None = None,
        compute_loss: Callable[[Any, Batch], Tensor | Mapping[str, Any]] | None = None,
        progress: bool = True,
    ) -> None:
        checks.check_model(model)
        checks.tell_of_other_methods(type(self))
        if compute_loss is not None:
            checks.check_own_loss(self, compute_loss)
            vars(self)["compute_loss"] = partial(compute_loss, self)
        self.own_state: list[str] = vars(self).get("own_state", [])  # see register_state
        own_loss = self.has_own("compute_loss", "train_step")
        criterion: Callable[[Any, Any], Tensor] | None = (
            by_name.loss(loss) if isinstance(loss, str) else loss
        )
        self.phases = optimizer if isinstance(optimizer, Phases) else None
        given: Any = optimizer
        if isinstance(optimizer, str):
            given = by_name.optimizer(optimizer, model)
        elif isinstance(optimizer, Phases):
            given, scheduler = self._first_phase(optimizer, scheduler, model)
        checks.check_parts(criterion, given, loader, callbacks, needs_loss=not own_loss)
        updater = together(given)
        checks.check_arguments(
            accumulate_in=(accumulate_in or "fp64", ("fp64",)),
            evaluate_in=(evaluate_in, ("whole", "batches")),
        )
        checks.check_parameters(model, criterion, updater, own_code=own_loss)

        for key, bound in (("norm", clip_grad_norm), ("value", clip_grad_value)):
            if bound is not None:
                check_bounds(f"clip_grad_{key}", bound, updater)
        self.updater = updater
        self._place(model, criterion, device, precision)
        self.loader = loader
        self._stepping = scheduler_per, scheduler_metric
        self._schedule(scheduler)
        self.metrics: dict[str, Metric] = {}
        if metrics is not None:
            self.metrics = check_metrics(by_name.metrics(metrics, criterion))
        self.evaluate_in = evaluate_in
        self.shows_progress = progress
        self.clip_grad_norm: Any = clip_grad_norm
        self.clip_grad_value: Any = clip_grad_value
        self.engine: Engine = EagerEngine(self)  # until fit settles the choice
        if not isinstance(validation, Validation | None):
            validation = Validation(validation)
        self.callbacks = [*([validation] if validation else []), *callbacks]

        self.progress = Progress()
        self.history = History()
        self.progress.lr = float(updater.param_groups[0]["lr"])
        self.rates: dict[str, float] = {}  # of the last update, of several optimizers
        # Set while a step is captured, or looked at, and so the trainer's from its start on.
        self.captured_step: Tensor | None = None  # the step, while it is captured as a graph
        self.outputs: list[tuple[Any, Any]] | None = None  # see Prequential

        self.microbatches = MicrobatchSize(microbatch_size, memory_limit, self.world)
        self.exact_gradient = ExactGradient(
            self, tuple(microbatch_allow), in_float64=accumulate_in == "fp64"
        )
        self.block_length = BlockLength()
        self._output_check = checks.OutputCheck()
        self.step_weights = loss_weights.StepWeights(self)
        self.terms = terms.StepTerms()
        self.called_rungs: set[str] = set()  # rungs that an own train_step has called
        self.loss_scale = LossScale(self.device) if precision == "fp16" else None
        self.guard = self._guard()
        self._listeners = Listeners(self.callbacks)
        self.choice = EngineChoice(self, engine, compile)

    def _guard(self) -> Guard:
        """What keeps updates of the present optimizer from doing harm."""
        if self.loss_scale is not None and self.needs_closure:
            text = "fp16 works without a closure; give another optimizer, or precision: bf16"
            raise ConfigError.of("precision", text)
        at_once = self.device.type == "cpu" or self.needs_closure or self.loss_scale is not None
        return Guard(self, deferred=not at_once)

    def _first_phase(self, phases: Phases, scheduler: Any, model: nn.Module) -> tuple[Any, Any]:
        if scheduler is not None:
            text = "has no place beside Phases, each of which has one of its own; leave it out"
            raise ConfigError.of("scheduler", text)
        phases.check(model)
        self._trained = [n for n, p in model.named_parameters() if p.requires_grad]  # in some phase
        return self._of_phase(0, model)

    def _of_phase(self, number: int, model: nn.Module) -> tuple[Any, Any]:
        """A phase's optimizer and schedule, made now; what it freezes stands still from now on."""
        assert self.phases is not None
        made: Any = self.phases[number].optimizer(self.phases.freeze(number, model, self._trained))
        schedule = self.phases[number].schedule
        return made, None if schedule is None else schedule(made)

    def enter_phase(self, number: int) -> None:
        """Go on with the optimizer, the schedule and the frozen layers of a phase, from 0."""
        self.engine.publish()
        self.guard.unwatch()
        optimizer, scheduler = self._of_phase(number, self.model)
        self.updater = together(optimizer)
        checks.check_parameters(
            self.model, self.loss, self.updater, own_code=self.has_own("compute_loss", "train_step")
        )
        self._schedule(scheduler)
        self.phase, self.rates = number, {}
        self.guard = self._guard()
        self.engine = EagerEngine(self)
        self.choice.of_run = None

    def _schedule(self, scheduler: Scheduler | Mapping[str, Scheduler] | None) -> None:
        """Step this schedule from now on, of the present optimizer."""
        in_phases = self.phases is not None
        self.schedule = stepper(scheduler, *self._stepping, self.updater, in_phases=in_phases)
        if not self.has_own_step:  # which may step what it likes
            check_scheduler_is_of(scheduler, self.updater)

    def _place(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor] | None,
        device: str | torch.device,
        precision: Precision | None,
    ) -> None:
        """Bring model and loss to the device and the dtype, alike on all ranks."""
        self.device = resolve_device(device)
        self.precision = precision
        self.model = model.to(self.device, parameter_dtype(precision, self.device))
        self._placement = Placement(self.device, self.dtype)
        self.loss = loss.to(self.device, self.dtype) if isinstance(loss, nn.Module) else loss
        self.world = World.current()
        self.is_sharded = is_sharded(model)
        if self.world.size > 1 and not self.is_sharded:
            self.world.copy_from_first([*model.parameters(), *model.buffers()])

    # ── the loop ────────────────────────────────────────────────────────────────────────────

    @first_guesses(
        by_place="is the trainer's: Trainer(…, loader=MiniBatchLoader((X, y), 32)).fit(100)",
        epochs="is called num_epochs here: fit(num_epochs=100), or fit(100)",
    )
    def fit(
        self,
        num_epochs: int,
        *,
        progress: bool | None = None,
        resume: str | Path | None = None,
    ) -> History:
        """Train until ``num_epochs`` epochs are done in total, and return the history.

        After ``fit(100)``, ``fit(150)`` trains 50 more; after a stop it continues where it was.
        Ctrl-C stops at the next safe point, with weights and progress in step, and then raises
        KeyboardInterrupt; a second Ctrl-C does so at once.

        progress: whether to show a bar on terminals and in notebooks; by default as set in the
        trainer.
        resume: a directory of :class:`gdtrain.Checkpoints`, or of a run; continues from its newest
        checkpoint, to the same bits. Raises CheckpointError if there is none, or it does not fit.

        Raises ModelError if model, loss and data do not fit, ConfigError for settings that have no
        effect or can't work, DataError for data that can't be read, ProcessError if another process
        has ended, and NonFiniteError if a loss or gradient is NaN or infinite; everything is then
        as before that update.
        """
        if self.loader is None:
            raise ModelError("loader: missing; a Trainer needs one to fit")
        if resume is not None:
            checks.check_resume(resume)
            public("Checkpoints").take_up(self, resume)
        num_epochs = checks.check_epochs(num_epochs)
        if 0 < num_epochs <= self.progress.epoch and self.told_of_end is None:
            logger.warning(
                "nothing to train: of %s, %d are done; to train longer, give a larger total",
                counted(num_epochs, "epoch"),
                self.progress.epoch,
            )
        if not self.stays_in_eval:
            as_in_fit(self)
        self.stays_in_eval = False
        self.check_separable()
        if self.world.size > 1:
            checks.check_same_data(self.world, self.loader)
        checks.check_rows(self.model, self.loader)
        self.placed.compare(self.loader.samples)
        self.choice.settle(num_epochs)
        self.num_epochs, self._ahead = num_epochs, EpochsAhead(self)
        self.should_stop, self.stop_reason = False, None
        self.is_fitting = True
        wanted = self.shows_progress if progress is None else progress
        bar = self._bar() if wanted else []
        self.callbacks += bar
        try:
            with interruptible(self.stop):
                self._fit(num_epochs)
        finally:
            self.is_fitting = False
            self.callbacks[:] = [one for one in self.callbacks if one not in bar]
        return self.history

    def _bar(self) -> list[Callback]:
        """The bar of a fit, if it can be seen, and there is no other."""
        kind = public("ProgressBar")
        if self.world.rank or not kind.can_be_seen():
            return []
        there = any(isinstance(callback, kind) for callback in self.callbacks)
        return [] if there else [kind(max_lines=0)]

    def _fit(self, num_epochs: int) -> None:
        try:
            self.emit("on_fit_start")
            self._tell_of_epochs()
            stopping = self._agree_to_stop()
            while self.progress.epoch < num_epochs and not stopping:
                until = num_epochs
                if self.phases is not None:
                    if (number := self.phases.number(self.progress.epoch)) != self.phase:
                        self.enter_phase(number)
                        self.choice.settle(num_epochs)
                    until = self.phases.end(self.progress.epoch, num_epochs)
                if self.has_own("_run_epoch"):
                    self._run_epoch()
                else:
                    self._run_epochs(until)
                stopping = self._agree_to_stop()
        except BaseException as error:
            self.engine.publish()
            self._end_after(error)
            raise
        self.engine.publish()
        if self.schedule.scheduler is not None:
            self.schedule.end_fit(self.history.epochs)
        self.emit("on_fit_end")

    def _end_after(self, error: BaseException) -> None:
        """Tell of the end of a fit that an error has ended: weights and progress are in step.

        What goes wrong at that is a note to the error, which is the first cause.
        """
        try:
            if self.progress.step_in_epoch:
                self._tell_of_epochs()
            self.emit("on_fit_end")
        except Exception as later:
            error.add_note(f"then, at the end of the fit: {type(later).__name__}: {later}")

    def _run_epoch(self) -> None:
        """Train to the end of the epoch, or to a stop."""
        self._run_epochs(self.progress.epoch + 1)

    def _run_epochs(self, until: int) -> None:
        """Train to the end of the first epoch with which a block ends, ``until`` at the latest."""
        assert self.loader is not None
        if self.loader.calls_order:
            self.engine.publish()  # an order may look at the model
        self.plan = present_plan(self)
        if self.callbacks and self.progress.step_in_epoch == 0:  # not again after a resume
            self.emit("on_epoch_start")
        for block in blocks(self, until, self.block_length, self._ahead):
            made = self._run_block(block).shape[0]
            if made and self.callbacks:
                self._tell_of_epochs()
                self.emit("on_safe_point")
            if made < len(block) or self.guard.broken_off:  # the guard kept it from doing harm
                raise diagnosis.non_finite(self, block, made - self.guard.broken_off)
            # Within an epoch several processes do when they agree on the next block.
            agrees_here = self.world.size == 1 or self.plan.is_over(self.progress.step_in_epoch)
            if agrees_here and self._agree_to_stop():
                return
        if not self.plan.is_over(self.progress.step_in_epoch):
            return  # stopped there, or while a stream was idle
        self._close_epoch()
        self._tell_of_epochs()

    def pass_epoch(self, plan_of: Callable[[int], Plan]) -> bool:
        """Continue with the next epoch in the middle of a block; return whether that is possible.

        Its batches have the same sizes as those before. Engines call this when all updates of an
        epoch have been made. plan_of: gives the plan of an epoch.
        """
        assert self.plan is not None
        if not may_go_on(self):
            return False
        plan = plan_of(self.progress.epoch + 1)
        if not plan.is_like(self.plan):
            return False
        block, progress = self.running, self.progress
        assert block is not None
        if self.world.size > 1:
            self._share_terms(block)
        progress.add(block, block.losses[block.added :], adds=loss_weights.adds_up(self))
        progress.read_clock()
        self._close_epoch()
        self.plan = plan
        return True

    def _share_terms(self, block: Block) -> None:
        """Bring together what the processes have noted of the updates whose losses come next."""
        if not self.has_own("compute_loss", "train_step"):
            return
        places = [place for place in block.terms if place >= block.added]
        noted = {p: map_tensors(block.terms[p], lambda t: t.cpu()) for p in places}
        everyone = self.world.gather_objects(noted)
        for place in sorted({place for rows in everyone for place in rows}):
            rows = [rows[place] for rows in everyone if place in rows]
            block.terms[place] = terms.summed(rows)

    def _close_epoch(self) -> None:
        """Count the epoch, keep its record, and let the schedule move on."""
        record = self.progress.close_epoch()
        record |= {f"lr_{name}": rate for name, rate in self.rates.items()}
        self.history.epochs.append(record)
        if self.callbacks or self.schedule.scheduler is not None:
            self.told_of_end, self._untold = [], self._untold + 1
        if self.schedule.scheduler is not None:
            if self.schedule.own_code:
                self.engine.publish()
            self.schedule.after_epoch()

    def _tell_of_epochs(self) -> None:
        """Tell of the epochs that have ended whoever has not been told.

        Who was told before an error, or before a snapshot, is not told again. ``on_epoch_end`` is
        for the moment between two epochs; records are told after it, too.
        """
        while (told := self.told_of_end) is not None:
            between = self.progress.step_in_epoch == 0
            epoch = self.progress.epoch if between else None
            callback = self.listeners.next_to_tell(epoch, told)
            if callback is None:
                if between and self.schedule.scheduler is not None:
                    self.schedule.after_validation(self.history.epochs, self.callbacks)
                self.told_of_end, self._untold = None, 0
                return
            self.engine.publish(callback)
            if self.listeners.is_due(callback, epoch):
                callback.on_epoch_end(self, self.history.epochs[-1])
            if self.listeners.of["on_records"] and callback.listens_to("on_records"):
                callback.on_records(self.history.epochs[-max(1, self._untold) :])
            told.append(callback)

    def _run_block(self, block: Block) -> Tensor:
        """Make a block's updates; return the losses of those that were made.

        What an error leaves made is closed as a shorter block, so that a next fit goes on there.
        """
        self.running, started, progress = block, time.perf_counter(), self.progress
        progress.start_clock()
        try:
            found = self.engine.run(block)
        except BaseException as error:
            if block.losses:
                self._close_block(block, stacked(block.losses))
            if (died := death_of_worker(error)) is not None:
                raise died from error
            raise
        if made := found.shape[0]:
            if self.world.size > 1:
                self._share_terms(block)
            self._close_block(block, found)
            self.block_length.observe(made, time.perf_counter() - started)
        return found

    def _close_block(self, block: Block, losses: Tensor) -> None:
        """Add up what the updates made have given; losses: of those, [len(block)] or fewer."""
        adds, done = loss_weights.adds_up(self), block.head(losses.shape[0])
        if not block.made:  # all at once, and nobody has looked since
            done.weights = [] if adds else self.step_weights.planned(done)
            self._count(done, losses, adds, goes_on=len(done) < len(block))
        self.progress.close(done, losses, adds=adds)

    def _count(self, block: Block, losses: Tensor, adds: bool, goes_on: bool) -> None:
        """Count updates that were made at once, and the epochs that have ended between them.

        goes_on: whether one more was tried after them.
        """
        whole, stop = block.plan.num_batches, block.stop - (not goes_on)
        if whole is not None and (epochs := stop // whole):
            assert self.loader is not None
            self.history.epochs += self.progress.pass_epochs(block, losses, epochs, adds=adds)
            if self.callbacks:
                self.told_of_end, self._untold = [], self._untold + epochs
            self.plan = self.loader.plan(self.progress.epoch)
        self.progress.count(
            len(block) - block.added, int(block.sizes_of(block.added, len(block)).sum())
        )

    def train_step(self, batch: Batch) -> Tensor:
        """Apply one update; return the batch-mean loss before it, shape [], detached."""
        if self.needs_closure:
            return closure_step(self, batch)
        loss = self.batch_gradient(batch)
        if self.callbacks:  # here and below: nobody's is no call, which a small model would feel
            self.emit("on_gradient", batch, loss)
        self.finish_gradient()
        work = gathered(self.updater)
        self.guard.check(loss, work)
        descend(self.updater, self.progress.made, work)
        return loss

    def batch_gradient(self, batch: Batch) -> Tensor:
        """Set ``.grad`` to the exact gradient of the batch's loss; return the loss, detached."""
        self.called_rungs.add("batch_gradient")
        return self.exact_gradient.compute(batch)

    def compute_loss(self, batch: Batch) -> Tensor | Mapping[str, Any]:
        """The loss of a batch (or microbatch), averaged over its samples, shape [].

        This is the method to override for research. By default it is ``loss(model(inputs),
        targets)``. It may return a mapping: ``"loss"``, and further numbers by name, such as the
        terms of the loss. These are logged for each step, averaged over the epoch like the loss
        (``train_<name>``), and evaluated (``val_<name>``).
        """
        output = self.forward(batch.inputs)
        if self.outputs is not None and torch.is_grad_enabled():
            self.outputs.append((map_tensors(output, Tensor.detach), batch.targets))
        return self.output_loss(output, batch.targets)

    def loss_weight(self, batch: Batch) -> float | Tensor:
        """What the loss of a batch is divided by, such as its samples: a number, or shape [].

        For J = (1/N) Σ l_i this is N. It weights the slices of a batch, and the batches of an epoch
        or an evaluation. Override it together with ``compute_loss``: for a mean over samples,
        ``return len(batch)``. The default knows the losses of PyTorch, whose mean may be over the
        targets that are not ignored, or over class weights; otherwise it is the number of samples.
        """
        mean = mean_of(self.loss, batch)
        if mean is None or (mean.adds and loss_weights.has_own_loss(self)):
            return len(batch)
        return mean.weight(batch)

    def forward(self, inputs: Any) -> Any:
        """The model's output; several input tensors become several arguments.

        With the loss ``model``, those of a dict become arguments by their names.
        """
        if isinstance(inputs, Mapping) and isinstance(self.loss, LossOfModel):
            return self.model(**inputs)
        return self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)

    def batch_loss(self, batch: Batch) -> Tensor:
        """:meth:`compute_loss` in the trainer's precision, with its graph for the gradient."""
        # A model may work in place, the data are the user's, and auto may have to try once more.
        if batch.is_view or self.microbatches.is_auto:
            batch = batch.copy()
        try:
            if self.precision not in ("bf16", "fp16"):
                loss: Any = self.compute_loss(batch)
            else:
                with autocast(self.precision, self.device):
                    loss = self.compute_loss(batch)
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            checks.explain(error, batch.inputs)
            raise
        return loss if type(loss) is Tensor else self.terms.loss_of(loss)

    # ── what research code calls ────────────────────────────────────────────────────────────

    def minimise(self, loss: Tensor, name: str | None = None) -> Tensor:
        """Make one optimizer's update from a loss, shape []; return the loss, detached.

        For a ``train_step`` with several losses: ``zero_grad``, ``backward``, clipping, a check for
        numbers that are not finite, ``step``. name: the name of the optimizer, if there are
        several; the loss is then logged under it.

        >>> import torch
        >>> from gdtrain import BatchLoader, Trainer
        >>> class Twice(Trainer):
        ...     def train_step(self, batch):
        ...         self.minimise(self.model(batch.inputs).square().mean(), "weight")
        ...         return self.minimise(self.model(batch.inputs).abs().mean(), "bias")
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizers = {n: torch.optim.SGD([p], lr=0.1) for n, p in model.named_parameters()}
        >>> trainer = Twice(model, None, optimizers, BatchLoader(torch.ones(4, 2)))
        >>> sorted(trainer.fit(2)[-1])[-3:]
        ['step', 'train_loss', 'weight']
        """
        if name is not None and name not in self.optimizers:
            known = ", ".join(self.optimizers)
            raise ModelError(
                f"minimise: {name!r} is no optimizer's name; it must be one of {known}"
            )
        optimizer = self.optimizer if name is None else self.optimizers[name]
        zero_gradients(optimizer)
        backward(scalar(loss))
        self.finish_gradient(name)
        self.guard.step(optimizer)
        if name is not None:
            self.log(name, loss.detach())
        return loss.detach()

    def check_separable(self) -> None:
        """Raise ModelError if batches are to be cut although a layer mixes their samples."""
        if self.microbatches or self.world.size > 1:
            self.exact_gradient.check()

    def stop(self, reason: str) -> None:
        """End the run at the next safe point; ``reason`` is kept in ``stop_reason``."""
        self.should_stop, self.stop_reason = True, reason

    def log(self, name: str, value: float | Tensor) -> None:
        """Log a number, shape [], for the current update, or for the last one between updates.

        The step's record has the number, and the epoch's record its mean over the updates that
        logged one; a number logged between two epochs belongs to the first. With several processes,
        their mean is logged; of an update in microbatches, the number of the last one, so return
        a mean over samples as a term of the loss instead. Call this in ``train_step`` and
        ``compute_loss``, and in callbacks listed before the logs. Raises ModelError for anything
        that is not one number.
        """
        noted = terms.number(name, value)
        if self.terms.under_way:
            self.terms.logged[name] = noted
        else:
            self.progress.log(name, noted, self.history.epochs[-1] if self.history.epochs else None)

    def read(
        self,
        loader: Loader,
        plan: Plan | None = None,
        start: int = 0,
        *,
        shared: bool = True,
        views: bool = False,
    ) -> Iterator[Batch]:
        """The loader's batches on the trainer's device and in its dtype, from number ``start``.

        plan: the plan of the batches; that of epoch 0 if left out. shared: with several processes,
        each reads its share of every batch. views: whether large batches of consecutive samples
        may be views of the data set instead of copies, which a model may change in place.
        """
        if plan is None:
            plan = loader.plan(0)
        if shared and self.world.size > 1:
            plan = plan.share(self.world.rank, self.world.size)
        batches = self.placed(loader.samples).read(plan, start)
        return batches if views else copies(batches)

    # ── below the loop ──────────────────────────────────────────────────────────────────────

    def _agree_to_stop(self) -> bool:
        """Whether any rank was asked to stop; the same answer on all of them."""
        alone = self.world.size == 1  # as mostly, and asked in every epoch
        return self.should_stop if alone else self.world.any(self.should_stop)

    def after_update(self) -> None:
        """Step the schedule, if it is stepped per update; engines call this after each update."""
        rate = self.updater.param_groups[0]["lr"]  # which a schedule may change in place
        self.progress.lr = rate.clone() if isinstance(rate, Tensor) else rate
        if isinstance(self.updater, Optimizers):
            self.rates = {n: float(o.param_groups[0]["lr"]) for n, o in self.updater.of.items()}
        if self.schedule.scheduler is not None and self.schedule.by_step:
            self.schedule.after_step()

    def finish_gradient(self, name: str | None = None) -> None:
        """Clip, then show the gradient to the callbacks. name: of the optimizer, of several."""
        self.called_rungs.add("finish_gradient")
        if self.clip_grad_norm is not None or self.clip_grad_value is not None:
            # Clipping would make what is infinite finite.
            self.guard.check(of=None if name is None else self.optimizers[name])
            clip_gradient(self, name)
        if self.callbacks:
            self.emit("on_before_update")

    def output_loss(self, output: Any, targets: Any) -> Tensor:
        if self.loss is None:
            raise ModelError(checks.NO_LOSS)
        return self._output_check(self.loss, output, targets, self.loader)

    def emit(self, event: str, *arguments: Any) -> None:
        """Tell the callbacks of one of their moments: those that listen to it, and are due.

        Each is looked up when it is its turn: one may add or remove others.
        """
        if self._listeners.callbacks == self.callbacks and not self._listeners.of[event]:
            return
        told: list[Callback] = []
        while waiting := [c for c in self.listeners.of[event] if not among(told, c)]:
            callback = waiting[0]
            told.append(callback)
            if event == "on_safe_point":
                if type(callback).is_due is not Callback.is_due:  # which may look, too
                    self.engine.publish(callback)
                if not callback.is_due(self.progress.step):
                    continue
            self.engine.publish(callback)  # before anybody looks
            getattr(callback, event)(self, *arguments)

    @property
    def listeners(self) -> Listeners:
        """Who listens to what; some may have been added since it was asked last."""
        if self._listeners.callbacks != self.callbacks:
            self._listeners = Listeners(self.callbacks)
        return self._listeners

    @property
    def step(self) -> Any:
        """Number of updates made so far; correct inside ``compute_loss`` too.

        An int; in a step that an engine captures, a tensor, shape [], int64, since it changes with
        each update: compute with it (``torch.where``); a branch on it is refused.
        """
        return self.progress.step if self.captured_step is None else self.captured_step

    def has_own(self, *rungs: str) -> bool:
        """Whether one of these methods is a subclass's, or was put into this trainer."""
        kind, own = type(self), vars(self)
        if kind is Trainer:  # as mostly, and asked in each block
            return not own.keys().isdisjoint(rungs)
        return any(getattr(kind, r) is not getattr(Trainer, r) or r in own for r in rungs)

    @property
    def has_own_step(self) -> bool:
        """Whether ``train_step`` is a subclass's; asked in every update."""
        return type(self).train_step is not _TRAIN_STEP or "train_step" in self.__dict__

    @property
    def has_own_weight(self) -> bool:
        """Whether ``loss_weight`` is a subclass's; asked in every update."""
        return type(self).loss_weight is not _LOSS_WEIGHT or "loss_weight" in self.__dict__


_TRAIN_STEP, _LOSS_WEIGHT = Trainer.train_step, Trainer.loss_weight
