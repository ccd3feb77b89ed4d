"""Room of one size for what a stream hands over, so that one compiled program reads it all."""

from __future__ import annotations

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.samples import Samples
from gdtrain.errors import ModelError

# Steps of a window, and samples: what waits for a block is a few megabytes at most.
MAX_STEPS = 1 << 12
MAX_SAMPLES = 1 << 16


def window_steps(plan: Plan) -> int:
    """How many batches of a stream's plan a window holds."""
    return max(1, min(MAX_STEPS, MAX_SAMPLES // plan.batch_size))


def window(samples: Samples, plan: Plan, first: int, last: int) -> list[Tensor]:
    """The batches ``first`` … ``last - 1``: inputs and, last, targets, a sample a row.

    Each has room for :func:`window_steps` batches; what is left over repeats the first sample.
    Raises ModelError for samples that are not rows of tensors.
    """
    batch = samples.together(plan, first, last)
    room = window_steps(plan) * plan.batch_size
    return [_padded(tensor, room) for tensor in _columns(batch)]


def _columns(batch: Batch) -> list[Tensor]:
    inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
    columns = [*inputs, batch.targets]
    if not all(isinstance(column, Tensor) and len(column) == len(batch) for column in columns):
        raise ModelError("the stream's samples are not rows of tensors")
    return columns


def _padded(tensor: Tensor, room: int) -> Tensor:
    made = torch.empty(room, *tensor.shape[1:], dtype=tensor.dtype)
    made[: len(tensor)] = tensor
    made[len(tensor) :] = tensor[:1]
    return made
