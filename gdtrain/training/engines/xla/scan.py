"""The engine that runs whole blocks in one call: the captured step in a loop compiled by XLA."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Block, Plan
from gdtrain.data.samples import Samples, TensorSamples
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.descent import note_step
from gdtrain.training.engines.capturing.compiled_engine import CompiledEngine
from gdtrain.training.engines.capturing.eager_pass import unread
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.engines.xla.compiled_step import CompiledStep, losses_of
from gdtrain.training.engines.xla.program import Array, StepShape
from gdtrain.training.engines.xla.window import (
    MAX_BATCH_BYTES,
    MAX_STEPS,
    Window,
    rows_of,
    window_steps,
)
from gdtrain.training.losses.terms import of_row
from gdtrain.training.run import Run

logger = logging.getLogger("gdtrain")


class ScanEngine(CompiledEngine):
    """Runs blocks as one XLA program each, on the CPU; of long ones, a window of steps at a time.

    The weights are those of the eager engine up to rounding. While nobody looks they stay with
    XLA; :meth:`publish` brings them to the model and the optimizer, whose tensors count again
    from then on. XLA reads the data set where it is, in sequence; in any other order, what the
    steps of a window need is gathered for them at once.
    """

    name = "scan"
    max_block_steps = MAX_STEPS

    def __init__(self, trainer: Run) -> None:
        super().__init__(trainer)
        self._step: CompiledStep | None = None
        self._samples_of_step: Samples | None = None
        self._is_taken = False  # whether the step has a state that is newer than the tensors
        self._has_told = False  # that the step draws
        self._passed = 0  # ends of epochs in this block at which the schedule has moved on

    @property
    def reaches_over_epochs(self) -> bool:
        return True

    def prepare(self, plan: Plan) -> None:
        """Capture and compile what most steps of the plan need. Raises EngineError if it can't."""
        if plan.num_batches is None and not plan.remaining(0):
            return  # a stream of which nothing has come
        step = self._present(plan, 0)
        step.program(self._shape(step, plan))

    def publish(self, looker: Callback | None = None) -> None:
        """Bring the state to the tensors of model, loss and optimizer."""
        super().publish(looker)
        if self._is_taken:
            assert self._step is not None
            self._step.give()
            self._is_taken = False

    def _run_parts(self, block: Block, parts: list[Tensor]) -> None:
        step, made = self._ready(block), 0
        self._passed = 0
        while made < len(block):
            shape, steps = self._next(step, block, made)
            losses = self._run_part(step, block, made, steps, shape)
            if step.terms:
                block.terms |= {
                    made + place: of_row(step.terms, row)
                    for place, row in enumerate(losses[:, 1:].tolist())
                }
                losses = losses_of(losses).astype(step.loss_dtype)
            parts.append(torch.from_numpy(losses))
            made += len(losses)
            if len(losses) < steps:
                return

    def _ready(self, block: Block) -> CompiledStep:
        """The step that makes the block's updates, with the state."""
        if not self._is_taken:
            self._step = self._present(block.plan, block.start)
        assert self._step is not None
        self._step.capture(_sizes(block.plan, block.start, block.stop))
        if not self._is_taken:
            self._step.take()
            self._is_taken = True
        return self._step

    # ── parts of blocks: as many steps as a window holds ────────────────────────────────────

    def _shape(self, step: CompiledStep, plan: Plan) -> StepShape:
        """What runs the plan's steps, and those of later epochs that are alike."""
        schedule, is_stream = self.trainer.schedule, plan.num_batches is None
        scheduled: Any = "call" if schedule.scheduler is None else schedule.per
        windowed = plan.indices is not None or is_stream
        guarded = self.trainer.clip_grad_value is not None  # which would hide what is infinite
        row_bytes = step.row_bytes
        gathers = plan.indices is not None and row_bytes * plan.batch_size >= MAX_BATCH_BYTES
        held = 0 if not windowed else 8 if gathers else row_bytes
        steps = window_steps(plan, held, short=is_stream or scheduled == "step")
        full, left = divmod(plan.num_samples, plan.batch_size)
        return StepShape(
            plan.batch_size,
            steps,
            windowed,
            scheduled,
            full=None if is_stream else full,
            left=0 if is_stream else left,
            guarded=guarded,
            gathers=gathers,
        )

    def _next(self, step: CompiledStep, block: Block, made: int) -> tuple[StepShape, int]:
        """What runs the block's next steps, and how many of them; made: those before."""
        shape, steps = self._shape(step, block.plan), len(block) - made
        if block.plan.num_batches is None:  # the last batch of a stream may be shorter
            (last,) = block.plan.batch_sizes(block.stop - 1, block.stop)
            if last < shape.size:
                steps -= steps > 1
                shape = shape if len(block) - made > 1 else replace(shape, size=last, steps=1)
        if step.fresh_groups:
            steps = 1  # the first update with momentum has settings of its own
        return shape, min(steps, shape.steps)

    def _run_part(
        self, step: CompiledStep, block: Block, made: int, steps: int, shape: StepShape
    ) -> Array:
        """The losses of so many steps of a block, or fewer; made: those before, not counted yet."""
        if shape.windowed:
            self._fill(step.window(shape), step, block, made, steps)
        first = 0 if shape.full is None else (block.start + made) % shape.in_epoch
        undo, number = self._mark(block, made, steps), self.trainer.progress.step + made
        try:
            rates = self._set(step, shape, block, made, steps)
            losses, bad_loss = step.run(shape, steps, first, number)
        except BaseException:  # none of these updates has been made
            undo()
            raise
        if bad_loss is not None:
            self.trainer.guard.found = (bad_loss, None)
            undo()
            rates = self._set(step, shape, block, made, len(losses), bad=True)
        block.rates += rates
        return losses

    def _fill(
        self, window: Window, step: CompiledStep, block: Block, made: int, steps: int
    ) -> None:
        """Bring what the steps read into the window."""
        start, plan = block.start + made, block.plan
        if plan.num_batches is None:
            window.hold(self._samples().together(plan, start, start + steps))
            return
        window.gather(step.rows, self._draws(plan, start, start + steps))

    def _draws(self, plan: Plan, start: int, stop: int) -> Tensor:
        """The samples of the batches ``start`` … ``stop - 1``, counted on over epochs."""
        loader, in_epoch = self.trainer.loader, len(plan)
        assert loader is not None
        epochs = range(start // in_epoch, -(-stop // in_epoch))
        first = plan.first_draw(start - epochs[0] * in_epoch)
        last = (len(epochs) - 1) * plan.num_samples
        last += min(plan.num_samples, plan.first_draw(stop - epochs[-1] * in_epoch))
        if len(epochs) == 1 and epochs[0] == 0:
            return plan.take(first, last)
        later = [plan.epoch + epoch for epoch in epochs if epoch]
        drawn = loader.draws_of(range(later[0], later[-1] + 1))
        if epochs[0] == 0:
            drawn = torch.cat([plan.take(0, plan.num_samples), drawn])
        return drawn[first:last]

    # ── settings ────────────────────────────────────────────────────────────────────────────

    def _mark(self, block: Block, made: int, steps: int) -> Callable[[], None]:
        """How to come back here, should the next steps not be made after all."""
        trainer, lr, passed = self.trainer, self.trainer.progress.lr, self._passed
        reaches_over = block.epoch(made + steps) > block.plan.epoch + passed
        back = trainer.schedule.mark(over_epochs=reaches_over)

        def undo() -> None:
            back()
            trainer.progress.lr, self._passed = lr, passed

        return undo

    def _set(
        self,
        step: CompiledStep,
        shape: StepShape,
        block: Block,
        made: int,
        steps: int,
        bad: bool = False,
    ) -> list[tuple[int, float]]:
        """Give the program the settings of the next steps; the schedule moves on.

        made: the block's steps before them. bad: one more was tried after them. Returns the
        learning rates, each with the number of the block's steps before it.
        """
        trainer, rows = self.trainer, step.program(shape).rows
        note_step(trainer.optimizer)

        def row() -> list[float]:
            return step.step.settings_row(step.fresh_groups)

        if shape.scheduled == "step":
            with unread(trainer):
                given = trainer.schedule.rows(steps, row)
            starts = list(range(made, made + steps))
        else:
            given = self._rows_of_epochs(block, made, made + steps + bad - 1, row)
            later = -(block.start + made) % shape.in_epoch or shape.in_epoch
            starts = [made, *range(made + later, made + steps + bad, shape.in_epoch)]
        if given:
            rows[: len(given)] = given
        rates = [(s, v[0]) for s, v in zip(starts, given, strict=False) if s < made + steps]
        if rates:
            trainer.progress.lr = rates[-1][1]
        return rates

    def _rows_of_epochs(
        self, block: Block, first: int, last: int, row: Callable[[], list[float]]
    ) -> list[list[float]]:
        """The settings of each epoch in which steps ``first`` … ``last`` of a block are.

        Where epochs have no settings of their own, those of the first one.
        """
        schedule, before = self.trainer.schedule, block.epoch(first) - block.plan.epoch
        passes = block.epoch(last) - block.plan.epoch - before
        if schedule.scheduler is None:
            return [row()]
        for _ in range(before - self._passed):
            schedule.after_epoch()
        self._passed = before + passes
        return [*schedule.rows(passes, row), row()]

    # ── what is compiled ────────────────────────────────────────────────────────────────────

    def _present(self, plan: Plan, start: int) -> CompiledStep:
        """What is compiled for model, loss and optimizer as they are. Raises EngineError."""
        samples, is_current = self._samples(), self._is_current()
        if self._step is None or samples != self._samples_of_step or not is_current:
            self._step = self._compiled(samples, plan, start)
            self._samples_of_step = samples
            self._note_capture()
            self._tell_of_draws(self._step)
        if self._may_differ:
            self._step.forget_copies()
            self._may_differ = False
        return self._step

    def _tell_of_draws(self, step: CompiledStep) -> None:
        """Say once what a step draws from. Raises EngineError where nobody asked for the engine."""
        if not step.draws or self._has_told:
            return
        if self.trainer.choice.wanted == "auto":
            raise EngineError("the step draws random numbers, and XLA would draw others")
        logger.warning(
            "engine: scan draws its random numbers (dropout's masks) from a stream of its own, a "
            "function of the seed and the step; they are not those of eager"
        )
        self._has_told = True

    def _compiled(self, samples: Samples, plan: Plan, start: int) -> CompiledStep:
        trainer = self.trainer
        assert trainer.loader is not None
        if plan.num_batches is None:
            samples = TensorSamples(rows_of(next(trainer.read(trainer.loader, plan, start))))
        (size,) = plan.batch_sizes(start, start + 1)
        return CompiledStep(trainer, samples, size, self._step)


def _sizes(plan: Plan, start: int, stop: int) -> list[int]:
    """Of the batches that a program for these has to know; of a stream, of the first and last."""
    if plan.num_batches is not None:
        return plan.batch_sizes(0, plan.num_batches)[:: plan.num_batches - 1 or 1]
    return [plan.batch_sizes(number, number + 1)[0] for number in sorted({start, stop - 1})]
