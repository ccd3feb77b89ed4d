"""The engine that runs whole blocks in one call: the captured step in a loop compiled by XLA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.batch import Block, Plan
from gdtrain.data.samples import Samples, TensorSamples
from gdtrain.training.engines.compiled_step import CompiledStep
from gdtrain.training.engines.functional import structure_of
from gdtrain.training.engines.window import MAX_BATCH_BYTES, MAX_STEPS, rows_of, window_steps
from gdtrain.training.engines.xla_program import Array, StepShape

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class ScanEngine:
    """Runs blocks as one XLA program each, on the CPU; of long ones, a window of steps at a time.

    The weights are those of the eager engine up to rounding. While nobody looks they stay with
    XLA; :meth:`publish` brings them to the model and the optimizer, whose tensors count again
    from then on. XLA reads the data set where it is, in sequence; in any other order, what the
    steps of a window need is gathered for them at once.
    """

    name = "scan"
    max_block_steps = MAX_STEPS

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._compiled: dict[Any, CompiledStep] = {}
        self._current: CompiledStep | None = None  # whose state is newer than that of the tensors

    def prepare(self, plan: Plan) -> None:
        """Capture and compile what most steps of the plan need. Raises ModelError if it can't."""
        if plan.num_batches is None and not plan.remaining(0):
            return  # a stream of which nothing has come
        compiled = self._for_present_structure(plan, 0)
        compiled.program(self._shape(compiled, plan, 0, 1)[0])

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return the losses of those made, [len(block)] or fewer."""
        if self._current is None:
            self._current = self._for_present_structure(block.plan, block.start)
            self._current.take()
        plan, start = block.plan, block.start
        parts: list[Array] = []
        while start < block.stop:
            shape, stop = self._shape(self._current, plan, start, block.stop)
            parts.append(self._run_part(self._current, plan, start, stop, shape))
            if len(parts[-1]) < stop - start:
                break
            start = stop
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def publish(self) -> None:
        """Bring the state to the tensors of model, loss and optimizer."""
        if self._current is not None:
            self._current.give()
            self._current = None

    # ── parts of blocks: steps of one size, as many as a window holds ───────────────────────

    def _shape(
        self, compiled: CompiledStep, plan: Plan, start: int, stop: int
    ) -> tuple[StepShape, int]:
        """What runs the step ``start``, and the step before which it ends.

        stop: the end of the block.
        """
        scheduled = self.trainer.schedule.by_step
        windowed = plan.indices is not None or plan.num_batches is None
        guarded = self.trainer.clip_grad_value is not None  # which would hide what is infinite
        short = scheduled or plan.num_batches is None
        row_bytes = compiled.row_bytes
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
        if compiled.fresh_groups:
            end = start + 1  # the first update with momentum has settings of its own
        return StepShape(plan.batch_size, steps, windowed, scheduled, guarded, gathers), end

    def _run_part(
        self, compiled: CompiledStep, plan: Plan, start: int, stop: int, shape: StepShape
    ) -> Array:
        first_row = start * plan.batch_size
        if shape.windowed:
            window = compiled.window(shape)
            if plan.num_batches is None:
                window.hold(self._samples().together(plan, start, stop))
            else:
                chosen = plan.take(first_row, first_row + (stop - start) * shape.size)
                window.gather(compiled.samples, chosen)
            first_row = 0
        back, lr = self.trainer.schedule.mark(), self.trainer.progress.lr
        self._set(compiled, shape, stop - start)
        losses, bad_loss = compiled.run(shape, stop - start, first_row)
        if bad_loss is not None:
            self.trainer.guard.found = (bad_loss, None)
            back()
            self.trainer.progress.lr = lr
            self._set(compiled, shape, len(losses))
        return losses

    def _set(self, compiled: CompiledStep, shape: StepShape, steps: int) -> None:
        """Give the program the settings of the next steps; the schedule moves on."""
        trainer, rows = self.trainer, compiled.program(shape).rows
        trainer.optimizer._opt_called = True  # type: ignore[attr-defined]  # by schedulers

        def row() -> list[float]:
            return compiled.step.settings_row(compiled.fresh_groups)

        if shape.scheduled:
            given = trainer.schedule.rows(steps, row)
            if given:
                rows[:steps] = given
                trainer.progress.lr = given[-1][0]
            return
        rows[0] = row()
        for _ in range(steps):
            trainer.after_update()
            if not trainer.schedule.by_step:
                break

    # ── what is compiled ────────────────────────────────────────────────────────────────────

    def _samples(self) -> Samples:
        assert self.trainer.loader is not None
        return self.trainer.placed(self.trainer.loader.samples)

    def _for_present_structure(self, plan: Plan, start: int) -> CompiledStep:
        """What was compiled for the model and optimizer as they are, or is to be."""
        trainer, samples = self.trainer, self._samples()
        assert trainer.loader is not None
        key = (samples, structure_of(trainer))
        if key not in self._compiled:
            if plan.num_batches is None:
                batch = next(trainer.read(trainer.loader, plan, start))
                samples = TensorSamples(rows_of(batch))
            else:
                batch = next(trainer.read(trainer.loader, plan))
            assert isinstance(samples, TensorSamples)
            self._compiled[key] = CompiledStep(trainer, samples, batch)
        return self._compiled[key]
