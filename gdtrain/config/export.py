"""A finished run in the file format of another program, checked against its own predictions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gdtrain.config.load_run import TrainedRun
from gdtrain.data.tables.preparation import Column
from gdtrain.errors import ModelError
from gdtrain.output.export import onnx_file, torch_export
from gdtrain.output.export.raw_model import RawModel

Format = Literal["torch_export", "onnx"]
SUFFIXES: dict[str, str] = {"torch_export": torch_export.SUFFIX, "onnx": onnx_file.SUFFIX}
_ROWS = 100
# How far the file may be from predict, relative to the largest output: files compute in the
# dtype of the weights, and predict under bf16 and fp16 in these.
_TOLERANCE = {"bf16": 3e-2, "fp16": 3e-3}


def exported(run: TrainedRun, kind: Format) -> bytes:
    """The file's content: preprocessing and model in one.

    It is read back, and must predict for a hundred rows what the run does. Raises ModelError if the
    model can't be written in this format, and MissingPackageError if a package for it is missing.
    """
    rows = example_rows(run)
    model = RawModel(run.model, run.preprocessing)
    facts = {
        "columns": [column.name for column in run.preprocessing.columns or []] or None,
        "class_names": run.class_names,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    if kind == "torch_export":
        data = torch_export.encoded(model, rows, facts)
        predict = torch_export.reader(data)
    else:
        onnx_file.require_onnx()
        likely = run.config.loss.probabilities
        outputs = torch.zeros(1, run.preprocessing.num_outputs or 1, device="cpu")
        has_some = likely(outputs) is not None
        ignored = getattr(run.config.data, "unknown_category", "error") == "ignore"
        data = onnx_file.encoded(model, rows, facts, likely if has_some else None, ignored)
        predict = onnx_file.reader(data, run.preprocessing.columns)
    for part in (rows, rows[:1]):
        _compare(predict(part), run.predict(part), _TOLERANCE.get(run.config.precision, 1e-5))
    return data


def _compare(given: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (given.double() - expected.double()).abs().max().item()
    scale = max(1.0, expected.double().abs().max().item())
    if not error <= tolerance * scale:
        raise ModelError(
            f"the exported model gives other predictions than the run: they differ by {error:.2g} "
            f"where {tolerance * scale:.2g} is allowed; nothing is written"
        )


def example_rows(run: TrainedRun) -> Tensor:
    """A hundred raw rows like those of training, by what preprocessing says of these.

    Of the mean and deviation of each number, where known. Whole numbers 0 and 1 for a model that
    takes no others.
    """
    done = run.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = [torch.Size(done.input_shape).numel()] if run.config.data.shape else done.input_shape
    rows = torch.randn(_ROWS, *shape, generator=generator, dtype=torch.float64, device="cpu")
    if done.mean:
        flat = rows.flatten(1)
        rows = (flat * flat.new_tensor(done.std) + flat.new_tensor(done.mean)).reshape(rows.shape)
    if done.columns is not None:
        rows = _with_columns(rows, done.columns)
    rows = rows.to(torch.float64 if run.config.precision == "fp64" else torch.float32)
    try:
        run.predict(rows)
    except (RuntimeError, IndexError, TypeError):  # an embedding, say
        rows = (rows > rows.mean()).long()
    return rows


def _with_columns(rows: Tensor, columns: list[Column]) -> Tensor:
    """The rows as tables have them: a category in turn, and every seventh cell missing."""
    start, missing = 0, torch.arange(len(rows), device="cpu") % 7 == 3
    for column in columns:
        part = rows[:, start : start + column.width]
        start += column.width
        if column.categories is not None:
            count = len(column.categories)
            places = torch.arange(len(rows), device="cpu") % count
            if column.fill is not None:
                places[missing] = column.categories.index(str(column.fill))
            part[:, :count] = torch.nn.functional.one_hot(places, count).double()
        elif column.fill is not None:
            part[missing, 0] = float(column.fill) - (column.first_day or 0.0)
        if column.indicator:
            part[:, -1] = missing.double()
    return rows
