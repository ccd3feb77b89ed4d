"""Tables with many categories: numbers of categories in memory, ones and zeros by the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.files.converted import PASS_ROWS, Moments
from gdtrain.data.samples import TensorSamples, TransformedSamples
from gdtrain.data.tables.preparation import (
    Column,
    PreparedData,
    Preprocessing,
    inputs_of,
    sample_shape,
)
from gdtrain.data.tables.table import LoadedTable


@dataclass(frozen=True)
class _OneHot:
    """Makes the cells of a batch the inputs that the model takes."""

    columns: list[Column]
    done: Preprocessing

    def __call__(self, batch: Batch) -> Batch:
        if batch.inputs is None:  # targets alone
            return batch
        inputs = self.done.apply(inputs_of(batch.inputs.numpy(), self.columns))
        return Batch(inputs, batch.targets, batch.indices)


def prepare_sparse(
    table: LoadedTable,
    targets: Tensor,
    parts: tuple[Tensor, Tensor, Tensor],
    done: Preprocessing,
    *,
    standardize: bool,
    shape: list[int] | None,
) -> PreparedData:
    """The samples of all parts, and what is done to them as they are read.

    The same as :func:`gdtrain.data.tables.preparation.prepare` does in memory. targets: as the loss
    takes them, standardised if they are to be. done: what was done to these.
    """
    columns, cells = table.learnt(parts[0]), torch.from_numpy(table.cells)
    width = sum(column.width for column in columns)
    plain = replace(done, columns=columns, input_shape=[width])
    training, *held_out = (TensorSamples((cells[rows], targets[rows])) for rows in parts)
    if standardize:
        moments = Moments("inputs")
        samples = TransformedSamples(training, _OneHot(columns, plain))
        size = min(len(samples), max(1, PASS_ROWS * 8 // width))
        for batch in samples.read(Plan(0, len(samples), size, None)):
            moments.add(batch.inputs)
        mean, std = moments.usable()
        plain = replace(plain, mean=mean, std=std)
    ready = _OneHot(columns, replace(plain, input_shape=sample_shape([width], shape)))
    validation, test = (TransformedSamples(each, ready) if len(each) else None for each in held_out)
    trained = TransformedSamples(training, ready)
    return PreparedData(trained, validation, ready.done, table.notes, test)
