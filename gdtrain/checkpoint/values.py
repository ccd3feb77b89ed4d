"""Nested values as JSON and back, bit for bit, with their tensors apart."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from gdtrain.errors import CheckpointError

# Far more than any state has, and far less than Python's stack and memory can bear.
_MAX_DEPTH = 64
_MAX_VALUES = 20_000_000


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; its tensors go to ``tensors`` under their path, noted in their place.

    What JSON lacks is written as a list whose first item says what it is.
    Raises CheckpointError for what is no dict, list, tuple, tensor, number, text or None.
    """
    kind = type(value)  # the usual kinds first: a state has thousands of numbers and names
    if kind is float:
        return ["float", value.hex()]
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, Tensor):
        while name in tensors:  # {"a.b": …} beside {"a": {"b": …}}
            name += "'"
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, dict):
        start = f"{name}." if name else ""
        return [
            "dict",
            *(
                [
                    key if type(key) is str else flatten(key, name, tensors),
                    flatten(item, f"{start}{key}", tensors),
                ]
                for key, item in value.items()
            ),
        ]
    if isinstance(value, list | tuple):
        said = "tuple" if isinstance(value, tuple) else "list"
        return [said, *(flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value))]
    if isinstance(value, float):  # of a type of its own, such as numpy's float64
        return ["float", value.hex()]
    if isinstance(value, str | int):
        return value
    raise CheckpointError(
        f"{name}: a {type(value).__name__} can't be saved; "
        "state_dict() may hold dicts, lists, tuples, tensors, numbers, text and None"
    )


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


def restore(value: Any, tensors: dict[str, Tensor], depth: int = 0) -> Any:
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
    if kind == "float":
        (digits,) = items
        return float.fromhex(digits)
    if kind == "dict":
        held = {
            _key(restore(key, tensors, depth + 1)): restore(item, tensors, depth + 1)
            for key, item in items
        }
        if len(held) != len(items):
            raise ValueError("a key is there twice")
        return held
    if kind not in ("list", "tuple"):
        raise ValueError("it holds a value of no known kind")
    parts = [restore(item, tensors, depth + 1) for item in items]
    return tuple(parts) if kind == "tuple" else parts


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError("it holds an object, which is never written")
    return value


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        raise ValueError("a tensor is no key")
    return value


def _refuse_number(text: str) -> Any:
    raise ValueError(f"it holds the number {text[:20]}, which is never written so")
