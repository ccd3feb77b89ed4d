"""A captured step with its XLA programs, and the state that they hand from one to the next."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.samples import Samples, TensorSamples
from gdtrain.data.sources import rows_in_memory
from gdtrain.errors import ModelError
from gdtrain.training.engines.capturing.capture import (
    CapturedStep,
    StepOutline,
    capture,
    present_seed,
)
from gdtrain.training.engines.capturing.eager_pass import EagerPass
from gdtrain.training.engines.capturing.functional_step import FunctionalStep
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.engines.xla import shared
from gdtrain.training.engines.xla.cpu import cpu
from gdtrain.training.engines.xla.lowering.graph import DTYPES, is_lowered
from gdtrain.training.engines.xla.program import Array, Operands, Program, StepShape
from gdtrain.training.engines.xla.step_key import step_key
from gdtrain.training.engines.xla.window import Window
from gdtrain.training.losses.terms import Place
from gdtrain.training.run import Run

# So many programs are kept for steps that may come again.
_PROGRAMS = 32


@dataclass
class KnownStep:
    """A step that another trainer of the same structure has captured. See :class:`CapturedStep`."""

    outline: StepOutline
    operators: list[Any]
    constants: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.constants = [present_seed()] if self.outline.draws else []


class Programs:
    """The programs of a run, and the room that they work in, for all its steps that are alike."""

    def __init__(self) -> None:
        self.cpu = cpu()
        self._programs: OrderedDict[Any, Program] = OrderedDict()
        self._windows: dict[Any, Window] = {}
        self._columns: list[Any] = []
        self._samples: TensorSamples | None = None
        self._versions: list[int] = []

    def program(self, key: Any, make: Any) -> Program:
        """The program of this key, made if there is none."""
        if key not in self._programs:
            self._programs[key] = make()
            if len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def window(self, shape: StepShape, like: Sequence[Tensor], *, reads_indices: bool) -> Window:
        """Rows for what steps of this shape read; like: the columns that they are of."""
        forms = tuple((tensor.dtype, tensor.shape[1:]) for tensor in like)
        key = shape.steps, shape.size, forms, reads_indices
        if key not in self._windows:
            room = shape.steps * shape.size
            self._windows[key] = Window(like, room, reads_indices=reads_indices)
        return self._windows[key]

    def columns(self, samples: TensorSamples) -> list[Any]:
        """The data set as XLA reads it: in place, or in a copy where that is not aligned."""
        versions = [tensor._version for tensor in samples.tensors]
        if samples is not self._samples or versions != self._versions:
            with jax.enable_x64(True), jax.default_device(self.cpu):
                tensors = [tensor.contiguous() for tensor in samples.tensors]
                self._columns = [jax.dlpack.from_dlpack(tensor) for tensor in tensors]
            self._samples, self._versions = samples, versions
        return self._columns

    def forget_copies(self) -> None:
        """Copy the data set again, where it is copied: somebody may have written to it."""
        if self._samples is not None:
            read = [column.unsafe_buffer_pointer() for column in self._columns]
            if read != [tensor.data_ptr() for tensor in self._samples.tensors]:
                self._samples = None


class CompiledStep:
    """The step of model, loss and optimizer as they are, compiled for each size of batch.

    samples: all there are, or some like them, of a stream. size: of a batch, captured at once.
    earlier: what was compiled before; of it, graphs and programs are taken where they are those of
    the step still.
    Between :meth:`take` and :meth:`give` the state is XLA's.
    """

    def __init__(
        self,
        trainer: Run,
        samples: Samples,
        size: int,
        earlier: CompiledStep | None = None,
    ) -> None:
        self.trainer = trainer
        self.dtype = DTYPES[trainer.dtype]
        self.fresh_groups: tuple[int, ...] = ()  # whose momentum buffers are still to be made
        rows = rows_in_memory(samples)
        assert rows is not None
        self.samples, self.rows = samples, rows  # keep alive what XLA reads
        self.row_bytes = rows.nbytes // len(rows)
        self._step: FunctionalStep | None = None
        self._programs: Programs = Programs() if earlier is None else earlier._programs
        self._captured: dict[int, CapturedStep | KnownStep] = {}
        self._known: dict[int, CapturedStep | KnownStep] = {}
        if earlier is not None:
            self._known = earlier._known | earlier._captured
        self._changes: list[bool] = []  # of each tensor of the state, by a step of any size
        self._ready: dict[StepShape, tuple[Program, Operands]] = {}
        self._is_taken = self._made = False
        self._tensors: list[Tensor] = []
        self._state: list[Any] = []
        self.capture([size])

    @property
    def step(self) -> FunctionalStep:
        """The step itself, of whatever size."""
        assert self._step is not None
        return self._step

    @property
    def terms(self) -> list[Place]:
        """What stands beside the losses."""
        return next(iter(self._captured.values())).outline.terms

    @property
    def loss_dtype(self) -> str:
        """Of the losses, ``float32`` for instance."""
        return next(iter(self._captured.values())).outline.loss_dtype

    @property
    def draws(self) -> bool:
        """Whether the step draws random numbers."""
        return any(captured.outline.draws for captured in self._captured.values())

    def capture(self, sizes: Iterable[int]) -> None:
        """Capture the step for batches of these sizes. Raises EngineError if it can't be."""
        new = set(sizes) - self._captured.keys()
        if not new:
            return
        self._captured |= {size: self._capture(size) for size in sorted(new, reverse=True)}
        if any(captured.outline.terms != self.terms for captured in self._captured.values()):
            raise EngineError("the loss has other terms in batches of another size")
        each = [captured.outline.changes for captured in self._captured.values()]
        changes = [any(of_one) for of_one in zip(*each, strict=True)]
        if changes != self._changes:
            taken = self._is_taken
            if taken:
                self.give()
            self._changes = changes
            if taken:
                self.take()

    def _capture(self, size: int) -> CapturedStep | KnownStep:
        seen, batch = self._pass(size)
        if self._step is None:
            self._step = seen.step
        elif seen.step.settings != self.step.settings:
            raise EngineError(
                "the loss depends on other parameters, or forward leaves tensors of other shapes, "
                "in batches of another size"
            )
        known = self._known.get(size)
        if known is not None and known.operators == seen.operators:
            return known
        key = step_key(seen, batch)
        if key is not None and (outline := shared.outline(key)) is not None:
            return KnownStep(outline, seen.operators)
        captured = capture(seen, batch, is_lowered)
        if key is not None and len(captured.constants) == captured.outline.draws:
            shared.keep_outline(key, captured.outline)
        return captured

    def _pass(self, size: int) -> tuple[EagerPass, Batch]:
        places = torch.arange(size, device="cpu") % len(self.samples)
        batch = next(self.samples.read(Plan(0, size, size, places)))
        return EagerPass(self.trainer, batch), batch

    def _traced(self, size: int) -> CapturedStep:
        """The step of this size with its graph."""
        captured = self._captured[size]
        if isinstance(captured, KnownStep):
            captured = self._captured[size] = capture(*self._pass(size), is_lowered)
        return captured

    def program(self, shape: StepShape) -> Program:
        """What runs steps of this shape. Raises EngineError if the step can't be compiled."""
        return self._prepared(shape)[0]

    def window(self, shape: StepShape) -> Window:
        """What steps of this shape read."""
        reads = any(self._captured[size].outline.reads_indices for size in shape.sizes)
        like = () if shape.gathers else self.rows.tensors
        return self._programs.window(shape, like, reads_indices=reads or shape.gathers)

    def _prepared(self, shape: StepShape) -> tuple[Program, Operands]:
        if shape not in self._ready:
            self.capture(shape.sizes)
            captured = [self._captured[size] for size in shape.sizes]
            operands = self._operands(shape, captured)
            key = (*(one.outline.digest for one in captured), tuple(self._changes), shape)
            program = self._programs.program(key, lambda: self._compile(shape, operands))
            self._ready[shape] = program, operands
        return self._ready[shape]

    def _compile(self, shape: StepShape, operands: Operands) -> Program:
        state = _arrays(self._split()[0])
        row = np.array(self.step.settings_row(), self.dtype)
        steps = [self._captured[size].outline for size in shape.sizes]
        trained = len(self.step.trained)

        def trace() -> list[CapturedStep]:
            return [self._traced(size) for size in shape.sizes]

        try:
            with jax.enable_x64(True), jax.default_device(self._programs.cpu):
                return Program(steps, shape, self._changes, state, operands, row, trained, trace)
        except ModelError:
            raise
        except Exception as error:  # whatever a lowering or XLA may raise
            text = str(error).strip().split("\n")[0]
            known = isinstance(error, NotImplementedError)
            text = f"XLA has no {text}" if known else f"XLA: {type(error).__name__}: {text}"
            raise EngineError(text) from error

    def _operands(self, shape: StepShape, captured: Sequence[CapturedStep | KnownStep]) -> Operands:
        _, fixed = self._split()
        window = self.window(shape) if shape.windowed else None
        columns = (
            self._programs.columns(self.rows) if window is None or shape.gathers else window.columns
        )
        indices = None if window is None else window.indices
        constants = [_arrays(one.constants) for one in captured]
        return Operands(columns, indices, _arrays(fixed), constants)

    def _split(self) -> tuple[list[Tensor], list[Tensor]]:
        """The state's live tensors: those that steps change, and others."""
        pairs = list(zip(self.step.tensors().flat(), self._changes, strict=True))
        return [t for t, changes in pairs if changes], [t for t, changes in pairs if not changes]

    def forget_copies(self) -> None:
        """Read the data set again, where XLA has a copy of it."""
        self._programs.forget_copies()

    def take(self) -> None:
        """Start from the present values of the tensors."""
        self._tensors, _ = self._split()
        self._state = _arrays(self._tensors)
        self._ready.clear()
        self.fresh_groups = self.step.groups_without_momenta()
        self._is_taken, self._made = True, False

    def run(
        self, shape: StepShape, steps: int, first: int, number: int
    ) -> tuple[Array, float | None]:
        """The losses of the updates made, and that of the first one that must not be.

        Of a step with terms these stand beside the losses; see :meth:`Program.run`.

        first: the number of the first batch in its epoch. number: updates made before.

        The loop does not look at what it computes. A loss that is not finite shows in the
        losses, and a gradient that is not in the weights, where it stays. Only then is the first
        bad update looked for: by bisection, as the good ones must have the bits of any other run.
        """
        self._from = first, number
        before, bad_loss = self._state, None
        if shape.guarded:
            losses, bad_loss = self._run_guarded(shape, 0, steps)
        else:
            losses, sound = self._run_plain(shape, 0, steps)
            if not sound:
                losses, bad_loss = self._run_to_bad(shape, steps, before)
        if len(losses):
            self._made, self.fresh_groups = True, ()
        return losses, bad_loss

    def _run_to_bad(
        self, shape: StepShape, steps: int, before: list[Any]
    ) -> tuple[Array, float | None]:
        good, bad = 0, steps
        while bad - good > 1:
            middle = (good + bad) // 2
            self._state = before
            _, sound = self._run_plain(shape, 0, middle)
            good, bad = (middle, bad) if sound else (good, middle)
        self._state = before
        losses, _ = self._run_plain(shape, 0, good)
        # The next update's loss or gradient is not finite; or it is, and the weights overflow.
        rest, bad_loss = self._run_guarded(shape, good, steps)
        return np.concatenate([losses, rest]), bad_loss

    def _run_plain(self, shape: StepShape, start: int, stop: int) -> tuple[Array, bool]:
        """The losses, and whether they and the weights are finite."""
        seen = self._call(shape, start, stop)
        losses = seen[start:stop].copy()
        # A sum that is finite says it of all of them; finite numbers may have one that is not.
        own = losses_of(losses)
        finite = math.isfinite(own.sum()) or bool(np.isfinite(own).all())
        return losses, bool(seen[-1].flat[0]) and finite

    def _run_guarded(self, shape: StepShape, start: int, stop: int) -> tuple[Array, float | None]:
        guarded = replace(shape, guarded=True)
        if guarded != shape:
            self.program(guarded).rows[:] = self.program(shape).rows
        seen = self._call(guarded, start, stop)
        end = int(seen[-2].flat[0])
        return seen[start:end].copy(), None if end == stop else float(losses_of(seen)[end])

    def _call(self, shape: StepShape, start: int, stop: int) -> Array:
        program, operands = self._prepared(shape)
        self._state, losses = program.run(self._state, operands, (start, stop, *self._from))
        return losses

    def give(self) -> None:
        """Bring the state to the tensors, and to the optimizer what it has not had."""
        if self._made:
            for tensor, array in zip(self._tensors, self._state, strict=True):
                np.copyto(tensor.numpy(), np.asarray(array))
            momenta = len(self._tensors) - len(self.step.with_momentum)
            self.step.keep_momenta(self._tensors[momenta:])
            self.step.places.bind_copies()
        self._is_taken = self._made = False


def losses_of(seen: Array) -> Array:
    """The losses alone, of what :meth:`CompiledStep.run` gives."""
    return seen if seen.ndim == 1 else seen[:, 0]


def _arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """The tensors' memory, as arrays."""
    return [tensor.detach().numpy() for tensor in tensors]
