"""A block of steps as one XLA program: the captured step in a loop that ends at a bad update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from gdtrain.training.engines.capture import CapturedStep
from gdtrain.training.engines.lowering import run_graph

Array = np.ndarray[Any, np.dtype[Any]]


class Operands(NamedTuple):
    """What a program reads and does not change.

    columns: the data set, inputs and then targets, each [n, …]. fixed: parameters that are not
    trained. constants: of the captured graph.
    """

    columns: list[Any]
    fixed: list[Any]
    constants: list[Any]


@dataclass(frozen=True)
class StepShape:
    """What a program is compiled for.

    size: samples of a batch. steps: room for the losses of so many steps, and for their rows of
    indices and settings. gathers: batches are named by rows of indices, not consecutive.
    scheduled: each step has a row of settings of its own. guarded: end before an update whose
    loss or gradient is not finite.
    """

    size: int
    steps: int
    gathers: bool
    scheduled: bool
    guarded: bool = False


class Call(NamedTuple):
    """What changes from call to call.

    places: [steps, size] indices of samples, or None. rows: [steps or 1, settings].
    span: the steps to make, from ``span[0]`` to before ``span[1]``, of a chunk whose first
    sample is ``span[2]``; the step to which the first row belongs; and the number of the sample
    with which the columns begin.
    """

    places: Any
    rows: Any
    span: Any

    @property
    def bounds(self) -> tuple[int, int]:
        """The steps to make: the first, and the one before which to end."""
        return int(self.span[0]), int(self.span[1])

    def between(self, start: int, stop: int) -> Call:
        """The same for some of the steps."""
        return Call(self.places, self.rows, np.array([start, stop, *self.span[2:]]))


def compile_block(
    captured: CapturedStep,
    shape: StepShape,
    state: Sequence[Any],
    operands: Operands,
    row: Array,
    trained: int,
) -> tuple[Any, Array]:
    """The program ``(state, losses, operands, call) -> (state, losses)``, and its first losses.

    losses: [steps + 2]; of the steps made, their losses at their places, and at the end how far
    the loop came, and 1 if the trained parameters, which come first in the state, are finite,
    else 0. Losses given to it are used up.
    """
    nodes = next(iter(reversed(captured.graph.graph.nodes))).args[0]
    loss_dtype = np.dtype(str(nodes[-2].meta["val"].dtype).removeprefix("torch."))

    def block(state: list[Any], losses: Any, operands: Operands, call: Call) -> tuple[Any, Any]:
        start, stop, first_sample, first_row, shown = call.span

        def step(i: Any, state: list[Any]) -> tuple[list[Any], Any, Any]:
            batch = _batch(operands.columns, call.places, i, shape.size, first_sample, shown)
            row = call.rows[i - first_row] if shape.scheduled else call.rows[0]
            arguments = [*state, *operands.fixed, row, *batch]
            *new, loss, finite = run_graph(captured.graph, arguments, operands.constants)
            return new, loss, finite

        def plain(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            i, state, losses = carry
            state, loss, _ = step(i, state)
            return i + 1, state, lax.dynamic_update_index_in_dim(losses, loss, i, 0)

        def guarded(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            (i, state, losses), _ = carry
            new, loss, finite = step(i, state)
            kept = [
                jnp.where(finite, after, before) for after, before in zip(new, state, strict=True)
            ]
            losses = lax.dynamic_update_index_in_dim(losses, loss, i, 0)
            return (i + finite, kept, losses), finite

        begun = (start, list(state), losses)
        if shape.guarded:
            (done, state, losses), _ = lax.while_loop(
                lambda carry: (carry[0][0] < stop) & carry[1], guarded, (begun, jnp.bool_(True))
            )
        else:
            done, state, losses = lax.while_loop(lambda carry: carry[0] < stop, plain, begun)
        sound = jnp.stack([jnp.isfinite(array).all() for array in state[:trained]]).all()
        ends = jnp.stack([done, sound]).astype(losses.dtype)
        return state, lax.dynamic_update_slice_in_dim(losses, ends, shape.steps, 0)

    call = Call(
        np.zeros((shape.steps, shape.size), np.int64) if shape.gathers else None,
        np.zeros((shape.steps if shape.scheduled else 1, len(row)), row.dtype),
        np.zeros(5, np.int64),
    )
    losses = np.zeros(shape.steps + 2, loss_dtype)
    options: dict[str, str | bool] = {"xla_cpu_multi_thread_eigen": torch.get_num_threads() > 1}
    lowered = jax.jit(block, donate_argnums=(1,)).lower(state, losses, operands, call)
    return lowered.compile(compiler_options=options), losses


def _batch(
    columns: list[Any], places: Any, step: Any, size: int, first_sample: Any, shown: Any
) -> list[Any]:
    """The batch's tensors in the order of a captured graph: inputs, targets, indices."""
    if places is None:
        first = first_sample + step * size
        rows = [lax.dynamic_slice_in_dim(column, first - shown, size) for column in columns]
        return _in_order(rows, first + jnp.arange(size))
    chosen = lax.dynamic_index_in_dim(places, step, keepdims=False)
    if size == 1:  # a slice is much faster than a gather of one
        rows = [lax.dynamic_slice_in_dim(column, chosen[0], 1) for column in columns]
    else:
        rows = [column.at[chosen].get(mode="promise_in_bounds") for column in columns]
    return _in_order(rows, chosen)


def _in_order(rows: list[Any], indices: Any) -> list[Any]:
    return [*rows, indices] if len(rows) > 1 else [*rows, None, indices]  # data without targets
