"""Nested values as JSON and back, bit for bit, with their tensors apart."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.training.placement.sharding import Part
from gdtrain.training.state.plain_values import cannot_be_saved

# Far more than any state has, and far less than Python's stack and memory can bear.
_MAX_DEPTH = 64
_MAX_VALUES = 20_000_000
# numpy's numbers, by the names of their types.
_NUMPY = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
}


def flatten(value: Any, name: str, tensors: dict[str, Tensor | Part]) -> Any:
    """``value`` as JSON; its tensors go to ``tensors`` under their path, noted in their place.

    What JSON lacks is written as a list whose first item says what it is.
    Raises CheckpointError for what is no dict, list, tuple, tensor, number, text or None.
    """
    kind = type(value)  # the usual kinds first: a state has thousands of numbers and names
    if kind is float:
        return ["float", value.hex()]
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, Tensor | Part):
        while name in tensors:  # {"a.b": …} beside {"a": {"b": …}}
            name += "'"
        if isinstance(value, Tensor) and value.is_sparse:
            parts = (value._indices(), value._values())
            both = [flatten(part, f"{name}.{i}", tensors) for i, part in enumerate(parts)]
            return ["sparse", value.is_coalesced(), list(value.shape), *both]
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, np.bool_ | np.number):
        if value.dtype.name not in _NUMPY:
            raise cannot_be_saved(value, name)
        return [
            "numpy",
            value.dtype.name,
            value.astype(value.dtype.newbyteorder("<")).tobytes().hex(),
        ]
    if isinstance(value, dict):
        start = f"{name}." if name else ""
        return [
            "counter" if isinstance(value, Counter) else "dict",
            *(
                [
                    key if type(key) is str else flatten(key, name, tensors),
                    flatten(item, f"{start}{key}", tensors),
                ]
                for key, item in value.items()
            ),
        ]
    if isinstance(value, list | tuple):
        message = "tuple" if isinstance(value, tuple) else "list"
        return [message, *(flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value))]
    if isinstance(value, float):  # of a type of somebody's own
        return ["float", value.hex()]
    if isinstance(value, str | int):
        return value
    raise cannot_be_saved(value, name)


def parse(text: bytes) -> Any:
    """The JSON that :func:`flatten` gave. Raises ValueError or RecursionError for what it can't."""
    if text.count(b",") + text.count(b"[") > _MAX_VALUES:
        raise ValueError("it holds too many values")
    return json.loads(
        text, object_pairs_hook=unique, parse_float=_refuse_number, parse_constant=_refuse_number
    )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError if it has a key twice."""
    if len(held := dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return held


def restore(value: Any, tensors: dict[str, Tensor | Part], depth: int = 0) -> Any:
    """What :func:`flatten` was given; takes its tensors out of ``tensors``, each once.

    Of values that it did not write, raises ValueError, LookupError, TypeError, AttributeError,
    OverflowError or RecursionError.
    """
    if not isinstance(value, list):
        return _plain(value)
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    kind, *items = value
    if kind == "tensor":
        (name,) = items
        return tensors.pop(name)
    if kind == "sparse":
        coalesced, shape, *parts = items
        indices, numbers = (restore(part, tensors, depth + 1) for part in parts)
        return _sparse(coalesced, shape, indices, numbers)
    if kind == "float":
        (digits,) = items
        return float.fromhex(digits)
    if kind == "numpy":
        name, digits = items
        if name not in _NUMPY:
            raise ValueError("it holds a number of no known type")
        (number,) = np.frombuffer(bytes.fromhex(digits), np.dtype(name).newbyteorder("<"))
        return np.dtype(name).type(number)
    if kind in ("dict", "counter"):
        held = {
            _key(restore(key, tensors, depth + 1)): restore(item, tensors, depth + 1)
            for key, item in items
        }
        if len(held) != len(items):
            raise ValueError("a key is there twice")
        return Counter(held) if kind == "counter" else held
    if kind not in ("list", "tuple"):
        raise ValueError("it holds a value of no known kind")
    parts = [restore(item, tensors, depth + 1) for item in items]
    return tuple(parts) if kind == "tuple" else parts


def _sparse(coalesced: Any, shape: Any, indices: Any, numbers: Any) -> Tensor:
    """A sparse tensor, whose indices must be within its shape: nobody looks at them later."""
    if not all(isinstance(part, Tensor) and not part.is_sparse for part in (indices, numbers)):
        raise ValueError("it holds a sparse tensor of no known form")
    try:
        return torch.sparse_coo_tensor(
            indices,
            numbers,
            shape,
            check_invariants=True,
            is_coalesced=coalesced,
            device="cpu",
        )
    except RuntimeError as error:
        raise ValueError(f"it holds a sparse tensor that is none; {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError("it holds an object, which is never written")
    return value


def _key(value: Any) -> Any:
    if isinstance(value, Tensor | Part):
        raise ValueError("a tensor is no key")
    return value


def _refuse_number(text: str) -> Any:
    raise ValueError(f"it holds the number {text[:20]}, which is never written so")
