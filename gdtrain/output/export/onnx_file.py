"""ONNX files, which onnxruntime runs without PyTorch.

A model of numbers has one input, ``inputs`` [rows, …]. One of a table with categories has an input
for each column by its name, [rows, 1]: float of a number, string of a category. The outputs are
``outputs`` and, for losses over classes that have some, ``probabilities``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gdtrain.data.tables.column import Column
from gdtrain.errors import DataError, MissingPackageError, ModelError
from gdtrain.output.export.raw_model import RawModel, captured, first_line, in_silence

SUFFIX = ".onnx"
INPUTS, OUTPUTS, PROBABILITIES = "inputs", "outputs", "probabilities"
_OPSET, _ML_OPSET = 18, 3


def require_onnx() -> None:
    """Raise MissingPackageError unless ONNX files can be written and run."""
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if find_spec(p) is None]
    if missing:
        raise MissingPackageError(
            f"ONNX files need {' and '.join(missing)}, not installed; pip install 'gdtrain[onnx]'"
        )


class _WithProbabilities(nn.Module):
    def __init__(self, model: RawModel, probabilities: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.probabilities = model, probabilities

    def forward(self, inputs: Tensor) -> Any:
        outputs = self.model(inputs)
        return outputs, self.probabilities(outputs.flatten(1))


def encoded(
    model: RawModel,
    rows: Tensor,
    facts: dict[str, Any],
    probabilities: Callable[[Tensor], Any] | None,
) -> bytes:
    """The model as a file; facts: kept in its metadata, a JSON text each."""
    columns = model.preprocessing.columns or []
    module: nn.Module = model
    names = [OUTPUTS]
    if probabilities is not None:
        module, names = _WithProbabilities(model, probabilities), [OUTPUTS, PROBABILITIES]
    proto = _translated(captured(module, rows), names)
    _forget_origin(proto)
    if _are_taken_by_name(columns):
        _take_columns(proto, columns)
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    data: bytes = proto.SerializeToString()
    return data


def _translated(program: torch.export.ExportedProgram, names: list[str]) -> Any:
    try:
        with in_silence():
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUTS],
                output_names=names,
                opset_version=_OPSET,
            )
    except Exception as error:  # whatever the translation of an operation raises
        raise ModelError(f"the model can't be written as ONNX: {first_line(error)}") from error
    return made.model_proto


def _forget_origin(proto: Any) -> None:
    """Leave out the traces of source files and their folders."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
    for part in (proto.functions, graph.initializer):
        for each in part:
            each.ClearField("metadata_props")


def _are_taken_by_name(columns: list[Column]) -> bool:
    """Whether the file's inputs are the columns of a table: for numbers and categories."""
    as_they_are = all(
        column.first_day is None and column.fill is None and not column.indicator
        for column in columns
    )
    return as_they_are and any(column.categories is not None for column in columns)


def _take_columns(proto: Any, columns: list[Column]) -> None:
    """Put in front of the graph what makes its rows of the columns of a table."""
    from onnx import TensorProto, helper

    graph = proto.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    number, (rows,) = graph.input[0].type.tensor_type.elem_type, graph.input
    dimension = rows.type.tensor_type.shape.dim[0].dim_param
    inputs, nodes, parts = [], [], []
    for place, column in enumerate(columns):
        if column.name in taken - {INPUTS}:
            raise DataError(f"column {column.name!r} has a name of the model's own; rename it")
        text = column.categories is not None
        kind = TensorProto.STRING if text else number
        inputs.append(helper.make_tensor_value_info(column.name, kind, [dimension, 1]))
        if column.categories is None:
            parts.append(column.name)
            continue
        names = [f"gdtrain/{place}/{step}" for step in ("hot", "flat", "number")]
        nodes += [
            # zeros=0: a category that was not there in training is an error, as for predict.
            helper.make_node(
                "OneHotEncoder",
                [column.name],
                [names[0]],
                domain="ai.onnx.ml",
                cats_strings=[category.encode() for category in column.categories],
                zeros=0,
            ),
            helper.make_node("Flatten", [names[0]], [names[1]], axis=1),
            helper.make_node("Cast", [names[1]], [names[2]], to=number),
        ]
        parts.append(names[2])
    joined = "gdtrain/rows"
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == rows.name:
                node.input[at] = joined
    nodes.append(helper.make_node("Concat", parts, [joined], axis=1))
    own = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *own])
    graph.input.extend(inputs)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", _ML_OPSET))


def reader(data: bytes, columns: list[Column] | None) -> Callable[[Tensor], Tensor]:
    """The file as onnxruntime runs it: outputs for raw rows, whose categories are encoded."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the runtime, which has none of its own to catch
        raise ModelError(f"onnxruntime does not run the file: {first_line(error)}") from error
    by_column = [each.name for each in session.get_inputs()] != [INPUTS]

    def run(rows: Tensor) -> Tensor:
        feed = _by_column(rows, columns or []) if by_column else {INPUTS: rows.numpy()}
        return torch.from_numpy(np.asarray(session.run([OUTPUTS], feed)[0]))

    return run


def _by_column(rows: Tensor, columns: list[Column]) -> dict[str, Any]:
    """Encoded rows [n, inputs] as the columns that they were made of."""
    feed, start = {}, 0
    for column in columns:
        width = len(column.categories or [""])
        part = rows[:, start : start + width].numpy()
        if column.categories is not None:
            part = np.array(column.categories, dtype=object)[part.argmax(1)][:, None]
        feed[column.name] = part
        start += width
    return feed
