"""A captured step with its XLA programs, and the state that they hand from one to the next."""

from __future__ import annotations

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
from gdtrain.training.engines.xla_program import Array, Call, Operands, StepShape, compile_block

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class CompiledStep:
    """One structure of model, loss and optimizer, compiled for each shape of batch that comes.

    Between :meth:`take` and :meth:`give` the state is XLA's.
    """

    def __init__(self, trainer: Trainer, samples: TensorSamples, batch: Batch) -> None:
        self.trainer = trainer
        self.step = FunctionalStep.after_eager_pass(trainer, batch)
        self.dtype = DTYPES[trainer.dtype]
        self.fresh_groups: tuple[int, ...] = ()  # whose momentum buffers are still to be made
        self._cpu = jax.local_devices(backend="cpu")[0]
        self._samples = samples  # keeps alive what XLA reads
        self._columns: list[Any] = []
        self._versions: list[int] = []  # of the data that the columns are
        self._captured: dict[int, CapturedStep] = {}
        self._programs: dict[StepShape, Any] = {}
        self._losses: dict[StepShape, Any] = {}
        self._operands: dict[int, Operands] = {}  # of each batch size
        self._made = False
        self._tensors: list[Tensor] = []
        self._fixed: list[Any] = []
        self._state: list[Any] = []

    def program(self, shape: StepShape) -> Any:
        """What runs steps of this shape. Raises ModelError if the step can't be compiled."""
        if shape not in self._programs:
            self._share_data()
            row = np.array(self.step.settings_row(), self.dtype)
            state, fixed = self.step.tensors()
            captured = self._capture(shape.size, state, fixed, row)
            operands = Operands(self._columns, _arrays(fixed), _arrays(captured.constants))
            with jax.enable_x64(True), jax.default_device(self._cpu):
                try:
                    program, losses = compile_block(
                        captured, shape, _arrays(flat(state)), operands, row, len(state.trained)
                    )
                except (NotImplementedError, TypeError, ValueError) as error:
                    said = str(error).strip().split("\n")[0]
                    raise ModelError(f"XLA has no {said}") from error
            self._programs[shape], self._losses[shape] = program, losses
        return self._programs[shape]

    def _capture(self, size: int, state: State, fixed: list[Tensor], row: Array) -> CapturedStep:
        if size not in self._captured:
            places = torch.arange(size) % len(self._samples)
            batch = next(self._samples.read(Plan(0, size, size, places)))
            self._captured[size] = capture(
                self.step, state, fixed, torch.from_numpy(row), batch, is_lowered
            )
        return self._captured[size]

    def put(self, array: Array) -> Any:
        """The array where XLA has it, for several calls."""
        with jax.enable_x64(True):
            return jax.device_put(array, self._cpu)

    def show(self, tensors: Sequence[Tensor]) -> None:
        """From now on, read these instead of the samples' tensors, which are of their shapes."""
        self._columns = _arrays(tensors)
        self._operands.clear()

    def _share_data(self) -> None:
        """Let XLA read the data set; it copies what is not aligned, anew if that has changed."""
        versions = [tensor._version for tensor in self._samples.tensors]
        if versions != self._versions:
            with jax.enable_x64(True), jax.default_device(self._cpu):
                tensors = [tensor.contiguous() for tensor in self._samples.tensors]
                self._columns = [jax.dlpack.from_dlpack(tensor) for tensor in tensors]
            self._versions = versions

    def take(self) -> None:
        """Start from the present values of the tensors."""
        self._share_data()
        state, fixed = self.step.tensors()
        self._tensors, self._fixed = flat(state), _arrays(fixed)
        self._state = _arrays(self._tensors)
        self._operands.clear()
        self.fresh_groups = self.step.groups_without_momenta()
        self._made = False

    def run(self, shape: StepShape, call: Call) -> tuple[Array, float | None]:
        """The losses of the updates made, and that of the first one that must not be.

        The loop does not look at what it computes. A loss that is not finite shows in the
        losses, and a gradient that is not in the weights, where it stays. Only then is the first
        bad update looked for: by bisection, as the good ones must have the bits of any other run.
        """
        before, bad_loss = self._state, None
        if shape.guarded:
            losses, bad_loss = self._run_guarded(shape, call)
        else:
            losses, sound = self._call(shape, call)
            if not sound:
                losses, bad_loss = self._run_to_bad(shape, call, before)
        if len(losses):
            self._made, self.fresh_groups = True, ()
        return losses, bad_loss

    def _run_to_bad(
        self, shape: StepShape, call: Call, before: list[Any]
    ) -> tuple[Array, float | None]:
        start, stop = call.bounds
        good, bad = start, stop
        while bad - good > 1:
            middle = (good + bad) // 2
            self._state = before
            good, bad = (
                (middle, bad)
                if self._call(shape, call.between(start, middle))[1]
                else (good, middle)
            )
        self._state = before
        losses, _ = self._call(shape, call.between(start, good))
        # The next update's loss or gradient is not finite; or it is, and the weights overflow.
        rest, bad_loss = self._run_guarded(shape, call.between(good, stop))
        return np.concatenate([losses, rest]), bad_loss

    def _run_guarded(self, shape: StepShape, call: Call) -> tuple[Array, float | None]:
        shape = replace(shape, guarded=True)
        self._call(shape, call)
        seen = np.asarray(self._losses[shape])
        start, stop = call.bounds
        end = int(seen[-2])
        return seen[start:end].copy(), None if end == stop else float(seen[end])

    def _call(self, shape: StepShape, call: Call) -> tuple[Array, bool]:
        """Run the program; return the losses, and whether they and the weights are finite."""
        program = self.program(shape)
        operands = self._operands.get(shape.size)
        if operands is None:
            constants = _arrays(self._captured[shape.size].constants)
            operands = Operands(self._columns, self._fixed, constants)
            self._operands[shape.size] = operands
        with jax.enable_x64(True):
            self._state, losses = program(self._state, self._losses[shape], operands, call)
        self._losses[shape] = losses
        seen = np.asarray(losses)
        start, stop = call.bounds
        made = seen[start:stop].copy()
        return made, bool(seen[-1]) and bool(np.isfinite(made).all())

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
