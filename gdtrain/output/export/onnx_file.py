"""ONNX files, which onnxruntime runs without PyTorch.

A model of numbers has one input, ``inputs`` [rows, …]. One of a table with categories, dates or
missing cells has an input for each column by its name, [rows, 1]: float of a number; double of a
date, in days since 1970-01-01; string of a category. Missing are NaN and the empty string. The
outputs are
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

from gdtrain.data.tables.preparation import Column
from gdtrain.errors import DataError, MissingPackageError, ModelError
from gdtrain.output.export.raw_model import RawModel, captured, first_line, in_silence

SUFFIX = ".onnx"
INPUTS, OUTPUTS, PROBABILITIES = "inputs", "outputs", "probabilities"
_OPSET, _ML_OPSET, _ML = 18, 3, "ai.onnx.ml"


def require_onnx() -> None:
    """Raise MissingPackageError unless ONNX files can be written and run."""
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if find_spec(p) is None]
    if missing:
        *others, last = missing
        names = f"{', '.join(others)} and {last}" if others else last
        verb = "are" if others else "is"
        raise MissingPackageError(
            f"export to ONNX needs {names}, which {verb} not installed; pip install 'gdtrain[onnx]'"
        )


def is_plain(column: Column) -> bool:
    """Whether a column is its number as it stands."""
    return column.kind == "number" and column.fill is None and not column.indicator


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
    ignore_unknown: bool = False,
) -> bytes:
    """The model as a file; facts: kept in its metadata, a JSON text each.

    ignore_unknown: categories that do not occur in the training data are all zeros, else an
    error.
    """
    columns = model.preprocessing.columns or []
    module: nn.Module = model
    names = [OUTPUTS]
    if probabilities is not None:
        module, names = _WithProbabilities(model, probabilities), [OUTPUTS, PROBABILITIES]
    proto = _translated(captured(module, rows), names)
    _forget_origin(proto)
    if not all(map(is_plain, columns)):
        _take_columns(proto, columns, ignore_unknown)
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


def _take_columns(proto: Any, columns: list[Column], ignore_unknown: bool) -> None:
    """Put in front of the graph what makes its rows of the columns of a table."""
    from onnx import helper

    graph = proto.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    number, (rows,) = graph.input[0].type.tensor_type.elem_type, graph.input
    front = _Front(number, rows.type.tensor_type.shape.dim[0].dim_param, ignore_unknown)
    for place, column in enumerate(columns):
        if column.name in taken - {INPUTS}:
            raise DataError(f"column {column.name!r} has a name of the model's own; rename it")
        front.add(column, f"gdtrain/{place}")
    joined = "gdtrain/rows"
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == rows.name:
                node.input[at] = joined
    own = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*front.nodes, helper.make_node("Concat", front.parts, [joined], axis=1)])
    graph.node.extend(own)
    graph.input.extend(front.inputs)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", _ML_OPSET))


class _Front:
    """Nodes that make inputs of a model of the columns of a table, as training did.

    number: ONNX's name of the dtype of numbers. dimension: of the rows. ignore_unknown: a category
    that does not occur in the training data is all zeros, and else an error.
    """

    def __init__(self, number: int, dimension: str, ignore_unknown: bool) -> None:
        self.number, self.dimension, self.ignore_unknown = number, dimension, ignore_unknown
        self.inputs: list[Any] = []
        self.nodes: list[Any] = []
        self.parts: list[str] = []

    def add(self, column: Column, name: str) -> None:
        """Take in a column; name: of what is made of it."""
        from onnx import TensorProto, helper

        kinds = {"number": self.number, "date": TensorProto.DOUBLE, "category": TensorProto.STRING}
        shape: list[Any] = [self.dimension, 1]
        self.inputs.append(helper.make_tensor_value_info(column.name, kinds[column.kind], shape))
        if column.categories is None:
            self._add_number(column, name)
        else:
            self._add_category(column, column.categories, name)

    def _add_number(self, column: Column, name: str) -> None:
        """A number, or days since 1970-01-01 in float64; NaN where it is missing."""
        from onnx import TensorProto

        value = column.name
        if column.first_day is not None:
            first = self._constant(column.first_day, TensorProto.DOUBLE, f"{name}/first_day")
            value = self._node("Sub", [value, first], f"{name}/since")
            value = self._cast(value, f"{name}/days")
        if column.fill is not None or column.indicator:
            missing = self._node("IsNaN", [value], f"{name}/missing")
        if column.fill is not None:
            fill = float(column.fill) - (column.first_day or 0.0)
            constant = self._constant(fill, self.number, f"{name}/fill")
            value = self._node("Where", [missing, constant, value], f"{name}/filled")
        self.parts.append(value)
        if column.indicator:
            self.parts.append(self._cast(missing, f"{name}/indicator"))

    def _add_category(self, column: Column, categories: list[str], name: str) -> None:
        """A text; empty where it is missing."""
        value, texts = column.name, [category.encode() for category in categories]
        if column.fill is not None:
            filled = [*texts, str(column.fill).encode()]
            value = self._map([*texts, b""], "values_strings", filled, value, f"{name}/filled")
        settings: dict[str, Any] = {"cats_strings": texts, "zeros": int(self.ignore_unknown)}
        hot = self._node("OneHotEncoder", [value], f"{name}/hot", domain=_ML, **settings)
        flat = self._node("Flatten", [hot], f"{name}/flat", axis=1)
        self.parts.append(self._cast(flat, f"{name}/number"))
        if column.indicator:
            found = self._map([b""], "values_floats", [1.0], column.name, f"{name}/missing")
            self.parts.append(self._cast(found, f"{name}/indicator"))

    def _map(self, keys: list[bytes], kind: str, values: list[Any], given: str, name: str) -> str:
        default: dict[str, Any] = {"default_string": "\0"}  # which is no category
        if kind == "values_floats":
            default = {"default_float": 0.0}
        table = {"domain": _ML, "keys_strings": keys, kind: values, **default}
        return self._node("LabelEncoder", [given], name, **table)

    def _cast(self, given: str, name: str) -> str:
        return self._node("Cast", [given], name, to=self.number)

    def _constant(self, value: float, kind: int, name: str) -> str:
        from onnx import helper

        tensor = helper.make_tensor(name, kind, [1, 1], [value])
        return self._node("Constant", [], name, value=tensor)

    def _node(self, kind: str, given: list[str], name: str, **settings: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, given, [name], **settings))
        return name


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
    """Encoded rows [n, inputs] as the columns that they were made of.

    Without an indicator, a cell that has what stands for missing ones is taken to be missing.
    """
    feed, start = {}, 0
    for column in columns:
        part = rows[:, start : start + column.width].numpy()
        start += column.width
        if column.categories is not None:
            names = np.array(column.categories, dtype=object)
            missed: Any = ""
            cells = names[part[:, : len(names)].argmax(1)]
        elif column.first_day is not None:
            cells, missed = part[:, 0].astype(np.float64) + column.first_day, np.nan
        else:
            cells, missed = part[:, 0].copy(), np.nan
        if column.fill is not None:
            missing = part[:, -1] > 0 if column.indicator else cells == column.fill
            cells[missing] = missed
        feed[column.name] = cells[:, None]
    return feed
