"""How state is written: tensors as safetensors, everything else as JSON, and nothing that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gdtrain.errors import CheckpointError

TENSORS = "tensors.safetensors"
VALUES = "values.json"


def write_state(directory: Path, state: dict[str, Any]) -> None:
    """Write nested dicts, lists, tuples, tensors and plain values into ``directory``."""
    tensors: dict[str, Tensor] = {}
    values = _flatten(state, "", tensors)
    write_tensors(directory / TENSORS, tensors)
    (directory / VALUES).write_text(json.dumps(values), "utf-8")


def read_state(directory: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote. Raises CheckpointError if it can't be."""
    try:
        tensors = load_file(directory / TENSORS)
        values = json.loads((directory / VALUES).read_text("utf-8"))
        state: dict[str, Any] = _restore(values, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: is not a checkpoint; {error}") from error
    return state


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name as a safetensors file; ones that share memory are written apart."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; its tensors go to ``tensors`` under their path, noted in their place.

    What JSON lacks is written as a list whose first item says what it is.
    """
    if isinstance(value, Tensor):
        while name in tensors:  # {"a.b": …} beside {"a": {"b": …}}
            name += "'"
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, dict):
        items = [
            [
                _flatten(key, name, tensors),
                _flatten(item, f"{name}.{key}" if name else str(key), tensors),
            ]
            for key, item in value.items()
        ]
        return ["dict", *items]
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, *(_flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value))]
    if isinstance(value, float):
        return ["float", value.hex()]
    if value is None or isinstance(value, str | int):
        return value
    raise CheckpointError(
        f"{name}: a {type(value).__name__} can't be saved; "
        "state_dict() may hold dicts, lists, tuples, tensors, numbers, text and None"
    )


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "tensor":
        return tensors[items[0]]
    if kind == "float":
        return float.fromhex(items[0])
    if kind == "dict":
        return {_restore(key, tensors): _restore(item, tensors) for key, item in items}
    parts = [_restore(item, tensors) for item in items]
    return tuple(parts) if kind == "tuple" else parts


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises CheckpointError if it can't be read."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read as safetensors; {error}") from error
    return tensors
