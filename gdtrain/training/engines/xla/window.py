"""Room for the samples of some steps, one after the other, in memory that XLA reads as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.samples import TensorSamples
from gdtrain.training.engines.engine import EngineError

# A window holds at most so many steps, that their losses can be looked at now and then …
MAX_STEPS = 1 << 18
# … or so many if each has a learning rate of its own, or arrives when it likes …
MAX_SHORT_STEPS = 1 << 12
# … and so many bytes of samples, which had better stay in a core's cache until they are used.
MAX_BYTES = 1 << 21
# Batches of as many bytes are gathered by the program, each for its step: they would not stay.
MAX_BATCH_BYTES = 1 << 16


def window_steps(plan: Plan, row_bytes: int, *, short: bool) -> int:
    """How many of the plan's full batches a window holds."""
    most = MAX_SHORT_STEPS if short else MAX_STEPS
    return max(1, min(most, MAX_BYTES // max(1, row_bytes * plan.batch_size)))


class Window:
    """Rows for so many samples, which are filled again for each call of a program.

    columns: inputs and, last, targets, as in ``like``, each [room, …]. indices: [room] int64,
    the samples' numbers, set if a step reads them. What XLA has of both is the same memory.
    """

    def __init__(self, like: Sequence[Tensor], room: int, *, reads_indices: bool) -> None:
        self._columns = [torch.zeros(room, *t.shape[1:], dtype=t.dtype, device="cpu") for t in like]
        self._indices = torch.zeros(room, dtype=torch.int64, device="cpu")
        self._reads_indices = reads_indices
        self.columns = [shared(column) for column in self._columns]
        self.indices = shared(self._indices)

    def gather(self, samples: TensorSamples, chosen: Tensor) -> None:
        """Read the chosen samples, [k] int64, to the first rows."""
        count = len(chosen)
        if self._columns:
            samples.gather(chosen, [column[:count] for column in self._columns])
        if self._reads_indices:
            self._indices[:count] = chosen

    def hold(self, batch: Batch) -> None:
        """Copy what has arrived to the first rows."""
        count = len(batch)
        for column, arrived in zip(self._columns, rows_of(batch), strict=True):
            column[:count] = arrived
        if self._reads_indices:
            self._indices[:count] = batch.indices


def rows_of(batch: Batch) -> list[Tensor]:
    """Inputs and, last, targets. Raises EngineError for samples that are not rows of tensors."""
    inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
    columns = [*inputs, batch.targets]
    if not all(isinstance(column, Tensor) and len(column) == len(batch) for column in columns):
        raise EngineError("the stream's samples are not rows of tensors")
    return columns


def shared(tensor: Tensor) -> Any:
    """The tensor's memory as a jax array, which sees what is written there between calls."""
    with jax.enable_x64(True):
        array = jax.dlpack.from_dlpack(tensor)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr(), "torch aligns what XLA wants aligned"
    return array
