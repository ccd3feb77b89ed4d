"""A model together with what was done to its data: raw rows in, predictions out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.tables.preparation import Preprocessing
from gdtrain.errors import ModelError

Shapes = dict[str, Any]


class RawModel(nn.Module):
    """Outputs [n, …] for raw rows [n, …], in the targets' own units, by tensor operations alone.

    model: in eval mode. preprocessing: what was done to the training data.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.eval()

    def forward(self, inputs: Tensor) -> Any:
        rows = self.preprocessing.apply(inputs)
        if rows.is_floating_point():
            rows = rows.to(next(self.model.parameters()).dtype)
        return self.preprocessing.restore_targets(self.model(rows))


def captured(module: nn.Module, rows: Tensor) -> torch.export.ExportedProgram:
    """The module as a graph of operations, for any number of rows.

    rows: examples, at least two. Raises ModelError for a model whose ``forward`` is no such graph.
    """
    shapes: Shapes = {"inputs": {0: torch.export.Dim("rows")}}
    try:
        with torch.no_grad(), in_silence():
            return torch.export.export(module, (rows,), dynamic_shapes=shapes)
    except Exception as error:  # whatever its forward and the compiler make of each other
        raise ModelError(
            f"the model can't be exported: {first_line(error)}; its forward must be a graph of "
            "tensor operations, the same for every batch"
        ) from error


@contextmanager
def in_silence() -> Iterator[None]:
    """Keep what the compiler and exporters print to themselves: programs, remarks, warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:;")
