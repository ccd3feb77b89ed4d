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
from gdtrain.training.engines.stream_window import window, window_steps
from gdtrain.training.engines.xla_program import Array, Call, StepShape

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer

# A chunk is what one compiled program has room for: so many steps of an epoch …
MAX_CHUNK_STEPS = 1 << 16
# … or so many of which each has a learning rate of its own …
MAX_SCHEDULED_STEPS = 1 << 12
# … and so many indices of samples.
MAX_CHUNK_INDICES = 1 << 22


class ScanEngine:
    """Runs blocks as one XLA program each, on the CPU.

    The weights are those of the eager engine up to rounding. While nobody looks they stay with
    XLA; :meth:`publish` brings them to the model and the optimizer, whose tensors count again
    from then on. XLA reads the data set where it is.
    """

    name = "scan"
    max_block_steps = MAX_CHUNK_STEPS

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._compiled: dict[Any, CompiledStep] = {}
        self._current: CompiledStep | None = None  # whose state is newer than that of the tensors
        self._places: tuple[Plan, int, Any] | None = None

    def prepare(self, plan: Plan) -> None:
        """Capture and compile what most steps of the plan need. Raises ModelError if it can't."""
        if plan.num_batches is None and not plan.remaining(0):
            return  # a stream of which nothing has come
        shape, _ = self._shape(plan, 0, 1)
        self._for_present_structure(plan, 0).program(shape)

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return the losses of those made, [len(block)] or fewer."""
        if self._current is None:
            self._current = self._for_present_structure(block.plan, block.start)
            self._current.take()
        plan, start = block.plan, block.start
        parts: list[Array] = []
        while start < block.stop:
            shape, end = self._shape(plan, start, block.stop)
            stop = min(end, block.stop)
            parts.append(self._run_part(plan, start, stop, shape))
            if len(parts[-1]) < stop - start:
                break
            start = stop
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def publish(self) -> None:
        """Bring the state to the tensors of model, loss and optimizer."""
        if self._current is not None:
            self._current.give()
            self._current = None

    # ── parts of blocks: steps of one size, within a chunk ──────────────────────────────────

    def _shape(self, plan: Plan, start: int, stop: int) -> tuple[StepShape, int]:
        """What runs the step ``start``, and the step before which its chunk ends.

        stop: the end of the block. A chunk of a stream begins where it is needed.
        """
        scheduled = self.trainer.schedule.by_step
        gathers = plan.indices is not None
        guarded = self.trainer.clip_grad_value is not None  # which would hide what is infinite
        if plan.num_batches is None:
            steps = self.max_block_steps = window_steps(plan)
            (last,) = plan.batch_sizes(stop - 1, stop)
            full_stop = stop if last == plan.batch_size else stop - 1
            if start >= full_stop:
                return StepShape(last, 1, False, False, guarded), stop
            end = min(full_stop, start + steps)
            if self._current is not None and self._current.fresh_groups:
                end = start + 1
            return StepShape(plan.batch_size, steps, False, scheduled, guarded), end
        full, left = divmod(plan.num_samples, plan.batch_size)
        if start >= full:
            return StepShape(left, 1, gathers, False, guarded), start + 1
        most = MAX_SCHEDULED_STEPS if scheduled else MAX_CHUNK_STEPS
        most = max(1, min(most, MAX_CHUNK_INDICES // plan.batch_size))
        steps = -(-full // -(-full // most))  # chunks of one length, as far as that goes
        self.max_block_steps = steps
        end = min(full, (start // steps + 1) * steps)
        if self._current is not None and self._current.fresh_groups:
            end = start + 1  # the first update with momentum has settings of its own
        return StepShape(plan.batch_size, steps, gathers, scheduled, guarded), end

    def _run_part(self, plan: Plan, start: int, stop: int, shape: StepShape) -> Array:
        assert self._current is not None
        is_stream = plan.num_batches is None
        first = start if is_stream else start // shape.steps * shape.steps
        first_sample = first * plan.batch_size
        places = None
        if is_stream:
            self._current.show(window(self._samples(), plan, start, stop))
        if shape.gathers:
            places = self._chunk(plan, first, shape, once=2 * (stop - start) > shape.steps)
        back = self.trainer.schedule.mark()
        rows = self._settings(stop - start, shape)
        shown = first_sample if is_stream else 0
        span = np.array([start - first, stop - first, first_sample, start - first, shown])
        losses, bad_loss = self._current.run(shape, Call(places, rows, span))
        if bad_loss is not None:
            self.trainer.guard.found = (bad_loss, None)
            back()
            self._settings(len(losses), shape)
        return losses

    def _settings(self, steps: int, shape: StepShape) -> Array:
        """The settings of the next steps, in one row or a row each; the schedule moves on."""
        assert self._current is not None
        self.trainer.optimizer._opt_called = True  # type: ignore[attr-defined]  # by schedulers
        trainer, current = self.trainer, self._current

        def row() -> list[float]:
            return current.step.settings_row(current.fresh_groups)

        if not shape.scheduled:
            rows = [row()]
            for _ in range(steps):
                trainer.after_update()
                if not trainer.schedule.by_step:
                    break
        else:
            rows = trainer.schedule.rows(steps, row)
            trainer.lr = rows[-1][0] if rows else trainer.lr
            rows += [rows[-1]] * (shape.steps - steps) if rows else []
        return np.asarray(rows, self._current.dtype)

    def _chunk(self, plan: Plan, first: int, shape: StepShape, once: bool) -> Any:
        """The indices of the samples of a chunk, [steps, size].

        once: nearly all of them are needed now. What several blocks will ask for is brought to
        XLA at the first.
        """
        assert self._current is not None
        if self._places is not None and self._places[0] is plan and self._places[1] == first:
            return self._places[2]
        start = first * plan.batch_size
        taken = plan.take(start, min(start + shape.steps * shape.size, plan.num_samples)).numpy()
        room = shape.steps * shape.size
        if len(taken) < room:
            taken = np.concatenate([taken, np.zeros(room - len(taken), np.int64)])
        places = taken[:room].reshape(shape.steps, shape.size)
        if once:
            return places
        self._places = plan, first, self._current.put(places)
        return self._places[2]

    # ── what is compiled ────────────────────────────────────────────────────────────────────

    def _samples(self) -> Samples:
        assert self.trainer.loader is not None
        return self.trainer.placed(self.trainer.loader.samples)

    def _for_present_structure(self, plan: Plan, start: int) -> CompiledStep:
        """What was compiled for the model and optimizer as they are, or is to be."""
        trainer = self.trainer
        assert trainer.loader is not None
        samples = trainer.placed(trainer.loader.samples)
        key = (samples, structure_of(trainer))
        if key not in self._compiled:
            if plan.num_batches is None:
                batch = next(trainer.read(trainer.loader, plan, start))
                samples = TensorSamples(window(samples, plan, start, start + 1))
            else:
                batch = next(trainer.read(trainer.loader, plan))
            assert isinstance(samples, TensorSamples)
            self._compiled[key] = CompiledStep(trainer, samples, batch)
        return self._compiled[key]
