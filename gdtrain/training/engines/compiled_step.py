"""A captured step with its XLA programs, and the state that they hand from one to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.samples import TensorSamples
from gdtrain.errors import ModelError
from gdtrain.training.engines.capture import CapturedStep, capture, flat
from gdtrain.training.engines.functional import FunctionalStep, State
from gdtrain.training.engines.lowering import DTYPES, is_lowered
from gdtrain.training.engines.window import Window
from gdtrain.training.engines.xla_cpu import cpu
from gdtrain.training.engines.xla_program import Array, Operands, Program, StepShape

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class CompiledStep:
    """One structure of model, loss and optimizer, compiled for each shape of batch that comes.

    samples: all there are, or some like them, of a stream.
    Between :meth:`take` and :meth:`give` the state is XLA's.
    """

    def __init__(self, trainer: Trainer, samples: TensorSamples, batch: Batch) -> None:
        self.trainer = trainer
        self.step = FunctionalStep.after_eager_pass(trainer, batch)
        self.dtype = DTYPES[trainer.dtype]
        self.fresh_groups: tuple[int, ...] = ()  # whose momentum buffers are still to be made
        self._cpu = cpu()
        self.samples = samples  # keeps alive what XLA reads
        self.row_bytes = samples.nbytes // len(samples)
        self._columns: list[Any] = []
        self._versions: list[int] = []  # of the data that the columns are
        self._captured: dict[int, CapturedStep] = {}
        self._windows: dict[tuple[int, int, bool], Window] = {}
        self._programs: dict[StepShape, Program] = {}
        self._operands: dict[StepShape, Operands] = {}
        self._made = False
        self._tensors: list[Tensor] = []
        self._fixed: list[Any] = []
        self._state: list[Any] = []

    def program(self, shape: StepShape) -> Program:
        """What runs steps of this shape. Raises ModelError if the step can't be compiled."""
        if shape not in self._programs:
            row = np.array(self.step.settings_row(), self.dtype)
            state, fixed = self.step.tensors()
            captured = self._capture(shape.size, state, fixed, row)
            with jax.enable_x64(True), jax.default_device(self._cpu):
                operands = self._operands_of(shape, _arrays(fixed))
                try:
                    self._programs[shape] = Program(
                        captured, shape, _arrays(flat(state)), operands, row, len(state.trained)
                    )
                except (NotImplementedError, TypeError, ValueError) as error:
                    said = str(error).strip().split("\n")[0]
                    raise ModelError(f"XLA has no {said}") from error
        return self._programs[shape]

    def window(self, shape: StepShape) -> Window:
        """What steps of this shape read."""
        self.program(shape)
        return self._windows[shape.steps, shape.size, shape.gathers]

    def _capture(self, size: int, state: State, fixed: list[Tensor], row: Array) -> CapturedStep:
        if size not in self._captured:
            places = torch.arange(size) % len(self.samples)
            batch = next(self.samples.read(Plan(0, size, size, places)))
            self._captured[size] = capture(
                self.step, state, fixed, torch.from_numpy(row), batch, is_lowered
            )
        return self._captured[size]

    def _operands_of(self, shape: StepShape, fixed: list[Any]) -> Operands:
        constants = _arrays(self._captured[shape.size].constants)
        if shape.windowed:
            room = shape.steps, shape.size, shape.gathers
            if room not in self._windows:
                reads = self._captured[shape.size].reads_indices
                like = () if shape.gathers else self.samples.tensors
                self._windows[room] = Window(
                    like, shape.steps * shape.size, reads_indices=reads or shape.gathers
                )
            window = self._windows[room]
            if shape.gathers:
                self._share_data()
                return Operands(self._columns, window.indices, fixed, constants)
            return Operands(window.columns, window.indices, fixed, constants)
        self._share_data()
        return Operands(self._columns, None, fixed, constants)

    def _share_data(self) -> None:
        """Let XLA read the data set; it copies what is not aligned, anew if that has changed."""
        versions = [tensor._version for tensor in self.samples.tensors]
        if versions != self._versions:
            with jax.enable_x64(True), jax.default_device(self._cpu):
                tensors = [tensor.contiguous() for tensor in self.samples.tensors]
                self._columns = [jax.dlpack.from_dlpack(tensor) for tensor in tensors]
            self._versions = versions

    def take(self) -> None:
        """Start from the present values of the tensors."""
        state, fixed = self.step.tensors()
        self._tensors, self._fixed = flat(state), _arrays(fixed)
        self._state = _arrays(self._tensors)
        self._operands.clear()
        self.fresh_groups = self.step.groups_without_momenta()
        self._made = False

    def run(self, shape: StepShape, steps: int, first_row: int) -> tuple[Array, float | None]:
        """The losses of the updates made, and that of the first one that must not be.

        first_row: where the samples begin, among those that the shape's program reads.

        The loop does not look at what it computes. A loss that is not finite shows in the
        losses, and a gradient that is not in the weights, where it stays. Only then is the first
        bad update looked for: by bisection, as the good ones must have the bits of any other run.
        """
        before, bad_loss = self._state, None
        if shape.guarded:
            losses, bad_loss = self._run_guarded(shape, 0, steps, first_row)
        else:
            losses, sound = self._run_plain(shape, 0, steps, first_row)
            if not sound:
                losses, bad_loss = self._run_to_bad(shape, steps, first_row, before)
        if len(losses):
            self._made, self.fresh_groups = True, ()
        return losses, bad_loss

    def _run_to_bad(
        self, shape: StepShape, steps: int, first_row: int, before: list[Any]
    ) -> tuple[Array, float | None]:
        good, bad = 0, steps
        while bad - good > 1:
            middle = (good + bad) // 2
            self._state = before
            _, sound = self._run_plain(shape, 0, middle, first_row)
            good, bad = (middle, bad) if sound else (good, middle)
        self._state = before
        losses, _ = self._run_plain(shape, 0, good, first_row)
        # The next update's loss or gradient is not finite; or it is, and the weights overflow.
        rest, bad_loss = self._run_guarded(shape, good, steps, first_row)
        return np.concatenate([losses, rest]), bad_loss

    def _run_plain(
        self, shape: StepShape, start: int, stop: int, first_row: int
    ) -> tuple[Array, bool]:
        """The losses, and whether they and the weights are finite."""
        seen = self._call(shape, start, stop, first_row)
        losses = seen[start:stop].copy()
        # A sum that is finite says it of all of them; finite numbers may have one that is not.
        finite = math.isfinite(losses.sum()) or bool(np.isfinite(losses).all())
        return losses, bool(seen[-1]) and finite

    def _run_guarded(
        self, shape: StepShape, start: int, stop: int, first_row: int
    ) -> tuple[Array, float | None]:
        guarded = replace(shape, guarded=True)
        if guarded != shape:
            self.program(guarded).rows[:] = self.program(shape).rows
        seen = self._call(guarded, start, stop, first_row)
        end = int(seen[-2])
        return seen[start:end].copy(), None if end == stop else float(seen[end])

    def _call(self, shape: StepShape, start: int, stop: int, first_row: int) -> Array:
        program = self.program(shape)
        operands = self._operands.get(shape)
        if operands is None:
            operands = self._operands[shape] = self._operands_of(shape, self._fixed)
        self._state, losses = program.run(self._state, operands, start, stop, first_row)
        return losses

    def give(self) -> None:
        """Bring the state to the tensors, and to the optimizer what it has not had."""
        if self._made:
            for tensor, array in zip(self._tensors, self._state, strict=True):
                np.copyto(tensor.numpy(), np.asarray(array))
            momenta = len(self._tensors) - len(self.step.with_momentum)
            self.step.keep_momenta(self._tensors[momenta:])


def _arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """The tensors' memory, as arrays."""
    return [tensor.detach().numpy() for tensor in tensors]
