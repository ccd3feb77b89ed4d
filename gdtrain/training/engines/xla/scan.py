"""The engine that runs whole blocks in one call: the captured step in a loop compiled by XLA."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from gdtrain.data.batch import Block, Plan
from gdtrain.data.samples import Samples, TensorSamples
from gdtrain.errors import ModelError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.engines.compiled_engine import CompiledEngine
from gdtrain.training.engines.eager_pass import unread
from gdtrain.training.engines.hooks import note_step
from gdtrain.training.engines.xla.compiled_step import CompiledStep
from gdtrain.training.engines.xla.program import Array, StepShape
from gdtrain.training.engines.xla.window import MAX_BATCH_BYTES, MAX_STEPS, rows_of, window_steps
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

    def prepare(self, plan: Plan) -> None:
        """Capture and compile what most steps of the plan need. Raises ModelError if it can't."""
        if plan.num_batches is None and not plan.remaining(0):
            return  # a stream of which nothing has come
        step = self._present(plan, 0)
        step.capture(plan.batch_sizes(number, number + 1)[0] for number in plan.ends())
        step.program(self._shape(step, plan, 0, 1)[0])

    def publish(self, looker: Callback | None = None) -> None:
        """Bring the state to the tensors of model, loss and optimizer."""
        super().publish(looker)
        if self._is_taken:
            assert self._step is not None
            self._step.give()
            self._is_taken = False

    def _run_parts(self, block: Block, parts: list[Tensor]) -> None:
        plan, start = block.plan, block.start
        step = self._ready(block)
        while start < block.stop:
            shape, stop = self._shape(step, plan, start, block.stop)
            losses = self._run_part(step, plan, start, stop, shape, start - block.start)
            parts.append(torch.from_numpy(losses))
            if len(losses) < stop - start:
                break
            start = stop

    def _ready(self, block: Block) -> CompiledStep:
        """The step that makes the block's updates, with the state."""
        plan = block.plan
        if not self._is_taken:
            self._step = self._present(plan, block.start)
        assert self._step is not None
        ends = (block.start, block.stop - 1)
        self._step.capture([plan.batch_sizes(number, number + 1)[0] for number in ends])
        if not self._is_taken:
            self._step.take()
            self._is_taken = True
        return self._step

    # ── parts of blocks: steps of one size, as many as a window holds ───────────────────────

    def _shape(
        self, step: CompiledStep, plan: Plan, start: int, stop: int
    ) -> tuple[StepShape, int]:
        """What runs the step ``start``, and the step before which it ends.

        stop: the end of the block.
        """
        scheduled = self.trainer.schedule.by_step
        windowed = plan.indices is not None or plan.num_batches is None
        guarded = self.trainer.clip_grad_value is not None  # which would hide what is infinite
        short = scheduled or plan.num_batches is None
        row_bytes = step.row_bytes
        gathers = plan.indices is not None and row_bytes * plan.batch_size >= MAX_BATCH_BYTES
        most = window_steps(plan, 8 if gathers else row_bytes, short=short)
        if plan.num_batches is None:
            (left,) = plan.batch_sizes(stop - 1, stop)
            full, steps = stop if left == plan.batch_size else stop - 1, most
        else:
            full, left = divmod(plan.num_samples, plan.batch_size)
            steps = -(-full // -(-full // most)) if full else 0  # windows of one length
        if start >= full:
            return StepShape(left, 1, windowed, False, guarded, gathers), start + 1
        end = min(full, stop, start + steps)
        if step.fresh_groups:
            end = start + 1  # the first update with momentum has settings of its own
        return StepShape(plan.batch_size, steps, windowed, scheduled, guarded, gathers), end

    def _run_part(
        self, step: CompiledStep, plan: Plan, start: int, stop: int, shape: StepShape, made: int
    ) -> Array:
        """made: the updates of the block before these, which are not counted yet."""
        first_row = start * plan.batch_size
        if shape.windowed:
            window = step.window(shape)
            if plan.num_batches is None:
                window.hold(self._samples().together(plan, start, stop))
            else:
                chosen = plan.take(first_row, first_row + (stop - start) * shape.size)
                window.gather(step.samples, chosen)
            first_row = 0
        back, lr = self.trainer.schedule.mark(), self.trainer.progress.lr
        count = stop - start
        try:
            self._set(step, shape, count)
            number = self.trainer.progress.step + made
            losses, bad_loss = step.run(shape, count, first_row, number)
        except BaseException:  # none of these updates has been made
            back()
            self.trainer.progress.lr = lr
            raise
        if bad_loss is not None:
            self.trainer.guard.found = (bad_loss, None)
            back()
            self.trainer.progress.lr = lr
            self._set(step, shape, len(losses))
        return losses

    def _set(self, step: CompiledStep, shape: StepShape, steps: int) -> None:
        """Give the program the settings of the next steps; the schedule moves on."""
        trainer, rows = self.trainer, step.program(shape).rows
        note_step(trainer.optimizer)

        def row() -> list[float]:
            return step.step.settings_row(step.fresh_groups)

        if not trainer.schedule.by_step:
            rows[0] = row()
            trainer.after_update()
            return
        with unread(trainer):
            if shape.scheduled:
                given = trainer.schedule.rows(steps, row)
                if given:
                    rows[:steps] = given
                    trainer.progress.lr = given[-1][0]
                return
            rows[0] = row()
            for _ in range(steps):
                trainer.after_update()

    # ── what is compiled ────────────────────────────────────────────────────────────────────

    def _present(self, plan: Plan, start: int) -> CompiledStep:
        """What is compiled for model, loss and optimizer as they are. Raises ModelError."""
        samples, is_current = self._samples(), self._is_current()
        if self._step is None or samples is not self._samples_of_step or not is_current:
            self._step = self._compiled(samples, plan, start)
            self._samples_of_step = samples
            self._note_capture()
            self._tell_of_draws(self._step)
        if self._may_differ:
            self._step.forget_copies()
            self._may_differ = False
        return self._step

    def _tell_of_draws(self, step: CompiledStep) -> None:
        """Say once what a step draws from. Raises ModelError where nobody asked for the engine."""
        if not step.draws or self._has_told:
            return
        if self.trainer.choice.wanted == "auto":
            raise ModelError("the step draws random numbers, and XLA would draw others")
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
        assert isinstance(samples, TensorSamples)
        (size,) = plan.batch_sizes(start, start + 1)
        return CompiledStep(trainer, samples, size, self._step)
