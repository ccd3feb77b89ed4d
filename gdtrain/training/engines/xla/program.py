"""Many steps as one XLA program: the captured step in a loop over batches and over epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from gdtrain.training.engines.capturing.capture import CapturedStep, StepOutline
from gdtrain.training.engines.xla.lowering.graph import run_step
from gdtrain.training.engines.xla.shared import Block, compiled
from gdtrain.training.engines.xla.window import shared

# What is small goes without a library of products: so many samples, multiplications for a tensor
# of the state, and numbers of a batch. An update of 16-32-10 by 8 samples takes a third of the time
# so, one of 64-64-64-10 by 64 a tenth more, and one of 2-4-1 by 500 a third more.
_SMALL_SIZE, _SMALL_PRODUCT, _SMALL_BATCH = 64, 1 << 16, 1 << 14
# Matrices are transposed if their rows are then so many numbers, or a multiple, and either samples
# are few or they are large: 13-32-1 by 64 samples takes three times as long by a transpose.
_VECTOR, _FEW, _LARGE = 16, 16, 1 << 11

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[int, "_Place", list[Any]], tuple[list[Any], Any, Any]]


class Operands(NamedTuple):
    """What a program reads and does not change.

    columns: inputs and, last, targets, a sample a row. indices: [rows] int64, the samples'
    numbers, or None where they are those of the rows. fixed: what of the state no step changes.
    constants: of the captured graph of each size of batch.
    """

    columns: list[Any]
    indices: Any
    fixed: list[Any]
    constants: list[list[Any]]


@dataclass(frozen=True)
class StepShape:
    """What a program is compiled for.

    size: samples of a batch. steps: room for the losses of so many steps. windowed: a window says
    which rows; they are its own or, if the program gathers, those of the data set that its indices
    name. scheduled: what has a row of settings of its own: each ``step``, each ``epoch``, or the
    whole ``call``. full: how many batches of that size an epoch has; None on a stream, where nobody
    knows. left: samples of the batch after them, or 0. guarded: end before an update whose loss or
    gradient is not finite.
    """

    size: int
    steps: int
    windowed: bool
    scheduled: Literal["step", "epoch", "call"]
    full: int | None = None
    left: int = 0
    guarded: bool = False
    gathers: bool = False

    @property
    def sizes(self) -> list[int]:
        """The sizes of batches."""
        return [self.size, self.left] if self.left else [self.size]

    @property
    def in_epoch(self) -> int:
        """Batches of an epoch; of a stream more than there can be."""
        return (1 << 62 if self.full is None else self.full) + (self.left > 0)

    @property
    def rows(self) -> int:
        """Room for so many rows of settings."""
        if self.scheduled == "call":
            return 1
        return self.steps if self.scheduled == "step" else self.steps // self.in_epoch + 2

    def epoch(self, first: int, step: int) -> int:
        """In which epoch of a call step ``step`` is, both from 0; see :meth:`Program.run`."""
        return (first + step) // self.in_epoch


class _Call(NamedTuple):
    """What changes from call to call.

    rows: [rows, settings]. span: the steps to make, from ``span[0]`` to before ``span[1]``, the
    number of step 0's batch in its epoch, and the updates made before step 0.
    """

    rows: Any
    span: Any


class Program:
    """Makes steps of one shape.

    steps: the outline of the step, for batches of each size. changes: for each tensor of the
    captured state, whether it is in ``state``, or fixed. trace: gives the steps themselves, if
    nobody has compiled such a program yet. rows: [rows, settings], to be set before a call.
    """

    def __init__(
        self,
        steps: Sequence[StepOutline],
        shape: StepShape,
        changes: Sequence[bool],
        state: Sequence[Any],
        operands: Operands,
        row: Array,
        trained: int,
        trace: Callable[[], Sequence[CapturedStep]],
    ) -> None:
        rows = torch.from_numpy(np.tile(row, (shape.rows, 1))).clone()
        span = torch.zeros(4, dtype=torch.int64, device="cpu")
        self.shape = shape
        self.rows: Array = rows.numpy()
        self._span: Array = span.numpy()
        self._call = _Call(shared(rows), shared(span))
        terms, dtype = len(steps[0].terms), steps[0].loss_dtype
        room = shape.steps + 2
        self._losses: Any = np.zeros((room, 1 + terms)) if terms else np.zeros(room, dtype)
        transposed = _kept_transposed(shape, steps, changes, state)
        calls_library = not (_is_small(shape, state, operands) or _is_most(transposed, state))
        self._compiled = compiled(
            [[step.digest for step in steps], shape, list(changes), trained],
            lambda: _block(trace(), shape, changes, transposed, trained),
            (list(state), self._losses, operands, self._call),
            calls_library=calls_library,
        )

    def run(
        self, state: list[Any], operands: Operands, span: tuple[int, int, int, int]
    ) -> tuple[list[Any], Array]:
        """Make the steps from ``span[0]`` to before ``span[1]``.

        span: and the number of step 0's batch in its epoch, with which a window begins, and the
        updates made before that step. Later steps may be in later epochs.
        Returns the state after them and, until the next call, the losses: [steps + 2], of the
        steps made at their places, and at the end how far the loop came, and 1 if the trained
        parameters are finite, else 0. Of a step with terms [steps + 2, 1 + terms], float64: those
        of each step stand beside its loss.
        """
        self._span[:] = span
        with jax.enable_x64(True):
            state, self._losses = self._compiled(state, self._losses, operands, self._call)
        return state, np.asarray(self._losses)


def _is_small(shape: StepShape, state: Sequence[Any], operands: Operands) -> bool:
    """Whether a batch is small, and its product with each tensor of the state."""
    largest = max((array.size for array in state), default=0)
    of_sample = sum(math.prod(column.shape[1:]) for column in operands.columns)
    is_small = shape.size * largest <= _SMALL_PRODUCT and shape.size * of_sample <= _SMALL_BATCH
    return is_small and shape.size <= _SMALL_SIZE


def _kept_transposed(
    shape: StepShape, steps: Sequence[StepOutline], changes: Sequence[bool], state: Sequence[Any]
) -> list[bool]:
    """Which tensors of ``state`` a program keeps transposed: those that products gain by."""
    by_all = (all(each) for each in zip(*(step.transposed for step in steps), strict=True))
    able = [is_able for is_able, changes_it in zip(by_all, changes, strict=True) if changes_it]
    return [
        is_able and len(array) % _VECTOR == 0 and (shape.size <= _FEW or array.size >= _LARGE)
        for is_able, array in zip(able, state, strict=True)
    ]


def _is_most(transposed: Sequence[bool], state: Sequence[Any]) -> bool:
    """Whether most numbers of the state are kept transposed; the library is for other products."""
    sizes = [array.size for array in state]
    most = sum(size for size, is_so in zip(sizes, transposed, strict=True) if is_so)
    return bool(2 * most > sum(sizes))


def _block(
    captured: Sequence[CapturedStep],
    shape: StepShape,
    changes: Sequence[bool],
    transposed: Sequence[bool],
    trained: int,
) -> Block:
    """``(state, losses, operands, call) -> (state, losses)``; the trained come first in the state.

    Losses given to it are used up. transposed: which of the state to keep so from step to step.
    """
    of_state = iter(transposed)
    in_graph = [changes_it and next(of_state) for changes_it in changes]

    def turn(state: Sequence[Any]) -> list[Any]:
        pairs = zip(state, transposed, strict=True)
        return [array.T if is_so else array for array, is_so in pairs]

    def block(state: list[Any], losses: Any, operands: Operands, call: _Call) -> tuple[Any, Any]:
        start, stop, first, number = call.span

        def step(kind: int, at: _Place, state: list[Any]) -> tuple[list[Any], Any, Any]:
            """One update by a batch of the size of this kind."""
            batch = _batch(operands, at.row, shape, shape.sizes[kind])
            changing, fixed = iter(turn(state)), iter(operands.fixed)
            whole = [next(changing if changes_it else fixed) for changes_it in changes]
            settings, made = _slice(call.rows, at.settings, 1)[0], number + at.step
            constants = operands.constants[kind]
            results = run_step(captured[kind], whole, settings, made, batch, constants, in_graph)
            new, (loss, finite, *terms) = results[: len(changes)], results[len(changes) :]
            if terms:
                loss = jnp.stack([loss.astype(np.float64), *terms])
            pairs = zip(new, changes, strict=True)
            return turn([after for after, changes_it in pairs if changes_it]), loss, finite

        carry = _Carry(start, turn(state), losses, jnp.bool_(True))
        done, turned, losses, _ = _epochs(step, carry, stop, first, shape)
        state = turn(turned)
        finite = [jnp.isfinite(array).all() for array in state[:trained]]
        sound = jnp.stack([jnp.bool_(True), *finite]).all()
        ends = jnp.stack([done, sound]).astype(losses.dtype)
        ends = jnp.broadcast_to(ends.reshape(2, *[1] * (losses.ndim - 1)), (2, *losses.shape[1:]))
        return state, lax.dynamic_update_slice_in_dim(losses, ends, shape.steps, 0)

    return block


class _Place(NamedTuple):
    """Where a step stands: in the call, in the columns, and in the rows of settings."""

    step: Any
    row: Any
    settings: Any


class _Epoch(NamedTuple):
    """Of a call: its number there, and the step with which it begins, < 0 of one begun before."""

    number: Any
    begin: Any


class _Carry(NamedTuple):
    """What goes from step to step; finite: whether the last loss and gradient were."""

    step: Any
    state: list[Any]
    losses: Any
    finite: Any


def _epochs(step: Step, carry: _Carry, stop: Any, first: Any, shape: StepShape) -> _Carry:
    """Make the steps before ``stop``, epoch after epoch; step 0 is batch ``first`` of its epoch."""
    if shape.in_epoch == 1:  # no loop in a loop
        return _steps(step, 0, carry, stop, lambda i: _Epoch(first + i, i), shape)
    full = shape.in_epoch - (shape.left > 0)

    def one(carry: _Carry) -> _Carry:
        number = lax.div(first + carry.step, jnp.int64(shape.in_epoch))
        epoch = _Epoch(number, number * shape.in_epoch - first)
        for kind, batches in enumerate((full, shape.in_epoch)[: len(shape.sizes)]):
            end = jnp.minimum(stop, epoch.begin + batches)
            carry = _steps(step, kind, carry, end, lambda _: epoch, shape)
        return carry

    return _while(one, carry, stop, shape)


def _steps(
    step: Step,
    kind: int,
    carry: _Carry,
    stop: Any,
    epoch: Callable[[Any], _Epoch],
    shape: StepShape,
) -> _Carry:
    """Make the steps before ``stop``, all by batches of one size.

    Of a guarded shape, up to the first whose loss or gradient is not finite, which is not made.
    """

    def one(carry: _Carry) -> _Carry:
        i, state, losses, _ = carry
        new, loss, finite = step(kind, _place(i, epoch(i), shape), state)
        losses = lax.dynamic_update_index_in_dim(losses, loss, i, 0, allow_negative_indices=False)
        if not shape.guarded:
            return _Carry(i + 1, new, losses, carry.finite)
        kept = [jnp.where(finite, after, before) for after, before in zip(new, state, strict=True)]
        return _Carry(i + finite, kept, losses, finite)

    return _while(one, carry, stop, shape)


def _while(one: Callable[[_Carry], _Carry], carry: _Carry, stop: Any, shape: StepShape) -> _Carry:
    def goes_on(carry: _Carry) -> Any:
        before = carry.step < stop
        return before & carry.finite if shape.guarded else before

    ended: _Carry = lax.while_loop(goes_on, one, carry)
    return ended


def _place(i: Any, epoch: _Epoch, shape: StepShape) -> _Place:
    """Of step ``i`` of a call."""
    row = (i if shape.windowed else i - epoch.begin) * shape.size
    if shape.windowed and shape.left:
        row -= epoch.number * (shape.size - shape.left)
    settings = {"step": i, "epoch": epoch.number, "call": 0}[shape.scheduled]
    return _Place(i, row, settings)


def _batch(operands: Operands, first: Any, shape: StepShape, size: int) -> list[Any]:
    """The batch's tensors in the order of a captured graph: inputs, targets, indices."""
    if operands.indices is None:
        indices = first + jnp.arange(size)
    else:
        indices = _slice(operands.indices, first, size)
    if shape.gathers:
        rows = [c.at[indices].get(mode="promise_in_bounds") for c in operands.columns]
    else:
        rows = [_slice(column, first, size) for column in operands.columns]
    return [*rows, indices]


def _slice(array: Any, first: Any, size: int) -> Any:
    if array.shape[0] == size:
        return array
    return lax.dynamic_slice_in_dim(array, first, size, allow_negative_indices=False)
