"""A block of steps as one XLA program: the captured step in a loop that ends at a bad update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from gdtrain.training.engines.capture import CapturedStep
from gdtrain.training.engines.xla.lowering.graph import run_step
from gdtrain.training.engines.xla.window import shared

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[Any, list[Any]], tuple[list[Any], Any, Any]]


class Operands(NamedTuple):
    """What a program reads and does not change.

    columns: inputs and, last, targets, a sample a row. indices: [rows] int64, the samples'
    numbers, or None where they are those of the rows. fixed: what of the state no step changes.
    constants: of the captured graph.
    """

    columns: list[Any]
    indices: Any
    fixed: list[Any]
    constants: list[Any]


@dataclass(frozen=True)
class StepShape:
    """What a program is compiled for.

    size: samples of a batch. steps: room for the losses of so many steps. windowed: a window says
    which rows; they are its own or, if the program gathers, those of the data set that its indices
    name. scheduled: each step has a row of settings of its own. guarded: end before an update whose
    loss or gradient is not finite.
    """

    size: int
    steps: int
    windowed: bool
    scheduled: bool
    guarded: bool = False
    gathers: bool = False


class _Call(NamedTuple):
    """What changes from call to call.

    rows: [steps or 1, settings]. span: the steps to make, from ``span[0]`` to before ``span[1]``,
    the row of the columns with which the batch of step 0 begins, and the updates made before it.
    """

    rows: Any
    span: Any


class Program:
    """Makes steps of one shape.

    changes: for each tensor of the captured state, whether it is in ``state``, or fixed.
    rows: [steps or 1, settings], to be set before a call.
    """

    def __init__(
        self,
        captured: CapturedStep,
        shape: StepShape,
        changes: Sequence[bool],
        state: Sequence[Any],
        operands: Operands,
        row: Array,
        trained: int,
    ) -> None:
        rows = torch.from_numpy(np.tile(row, (shape.steps if shape.scheduled else 1, 1))).clone()
        span = torch.zeros(4, dtype=torch.int64)
        self.shape = shape
        self.rows: Array = rows.numpy()
        self._span: Array = span.numpy()
        self._call = _Call(shared(rows), shared(span))
        results = next(iter(reversed(captured.graph.graph.nodes))).args[0]
        loss_dtype = np.dtype(str(results[-2].meta["val"].dtype).removeprefix("torch."))
        self._losses: Any = np.zeros(shape.steps + 2, loss_dtype)
        block = _block(captured, shape, changes, trained)
        lowered = jax.jit(block, donate_argnums=(1,)).lower(
            state, self._losses, operands, self._call
        )
        options: dict[str, str | bool] = {"xla_cpu_multi_thread_eigen": torch.get_num_threads() > 1}
        self._compiled = lowered.compile(compiler_options=options)

    def run(
        self, state: list[Any], operands: Operands, span: tuple[int, int, int, int]
    ) -> tuple[list[Any], Array]:
        """Make the steps from ``span[0]`` to before ``span[1]``.

        span: and the row of the columns where the batch of step 0 begins, and the updates made
        before that step.
        Returns the state after them and, until the next call, the losses: [steps + 2], of the
        steps made at their places, and at the end how far the loop came, and 1 if the trained
        parameters are finite, else 0.
        """
        self._span[:] = span
        with jax.enable_x64(True):
            state, self._losses = self._compiled(state, self._losses, operands, self._call)
        return state, np.asarray(self._losses)


def _block(
    captured: CapturedStep, shape: StepShape, changes: Sequence[bool], trained: int
) -> Callable[..., Any]:
    """``(state, losses, operands, call) -> (state, losses)``; the trained come first in the state.

    Losses given to it are used up.
    """

    def block(state: list[Any], losses: Any, operands: Operands, call: _Call) -> tuple[Any, Any]:
        start, stop, first_row, number = call.span

        def step(i: Any, state: list[Any]) -> tuple[list[Any], Any, Any]:
            batch = _batch(operands, first_row + i * shape.size, shape)
            row = _slice(call.rows, i, 1)[0] if shape.scheduled else call.rows[0]
            changing, fixed = iter(state), iter(operands.fixed)
            whole = [next(changing if changes_it else fixed) for changes_it in changes]
            results = run_step(captured, whole, row, number + i, batch, operands.constants)
            *new, loss, finite = results
            pairs = zip(new, changes, strict=True)
            return [after for after, changes_it in pairs if changes_it], loss, finite

        loop = _guarded_loop if shape.guarded else _plain_loop
        done, state, losses = loop(step, start, stop, list(state), losses)
        finite = [jnp.isfinite(array).all() for array in state[:trained]]
        sound = jnp.stack([jnp.bool_(True), *finite]).all()
        ends = jnp.stack([done, sound]).astype(losses.dtype)
        return state, lax.dynamic_update_slice_in_dim(losses, ends, shape.steps, 0)

    return block


def _plain_loop(step: Step, start: Any, stop: Any, state: list[Any], losses: Any) -> Any:
    """Make the steps; return where it ended, the state, and the losses."""

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, state, losses = carry
        state, loss, _ = step(i, state)
        return i + 1, state, _put(losses, loss, i)

    return lax.while_loop(lambda carry: carry[0] < stop, body, (start, state, losses))


def _guarded_loop(step: Step, start: Any, stop: Any, state: list[Any], losses: Any) -> Any:
    """The same, up to the first step whose loss or gradient is not finite, which is not made."""

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        (i, state, losses), _ = carry
        new, loss, finite = step(i, state)
        kept = [jnp.where(finite, after, before) for after, before in zip(new, state, strict=True)]
        return (i + finite, kept, _put(losses, loss, i)), finite

    begun = ((start, state, losses), jnp.bool_(True))
    ended, _ = lax.while_loop(lambda carry: (carry[0][0] < stop) & carry[1], body, begun)
    return ended


def _batch(operands: Operands, first: Any, shape: StepShape) -> list[Any]:
    """The batch's tensors in the order of a captured graph: inputs, targets, indices."""
    size = shape.size
    if operands.indices is None:
        indices = first + jnp.arange(size)
    else:
        indices = _slice(operands.indices, first, size)
    if shape.gathers:
        rows = [c.at[indices].get(mode="promise_in_bounds") for c in operands.columns]
    else:
        rows = [_slice(column, first, size) for column in operands.columns]
    return [*rows, indices] if len(rows) > 1 else [*rows, None, indices]  # data without targets


def _slice(array: Any, first: Any, size: int) -> Any:
    return lax.dynamic_slice_in_dim(array, first, size, allow_negative_indices=False)


def _put(losses: Any, loss: Any, place: Any) -> Any:
    return lax.dynamic_update_index_in_dim(losses, loss, place, 0, allow_negative_indices=False)
