"""Nested values as JSON and back, bit for bit, with their tensors apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gdtrain.errors import CheckpointError


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; its tensors go to ``tensors`` under their path, noted in their place.

    What JSON lacks is written as a list whose first item says what it is.
    Raises CheckpointError for what is no dict, list, tuple, tensor, number, text or None.
    """
    if isinstance(value, Tensor):
        while name in tensors:  # {"a.b": …} beside {"a": {"b": …}}
            name += "'"
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, dict):
        items = [
            [
                flatten(key, name, tensors),
                flatten(item, f"{name}.{key}" if name else str(key), tensors),
            ]
            for key, item in value.items()
        ]
        return ["dict", *items]
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, *(flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value))]
    if isinstance(value, float):
        return ["float", value.hex()]
    if value is None or isinstance(value, str | int):
        return value
    raise CheckpointError(
        f"{name}: a {type(value).__name__} can't be saved; "
        "state_dict() may hold dicts, lists, tuples, tensors, numbers, text and None"
    )


def restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`flatten` was given.

    Of values that it did not write, raises ValueError, LookupError, TypeError, AttributeError,
    OverflowError or RecursionError.
    """
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "tensor":
        return tensors[items[0]]
    if kind == "float":
        return float.fromhex(items[0])
    if kind == "dict":
        return {restore(key, tensors): restore(item, tensors) for key, item in items}
    if kind not in ("list", "tuple"):
        raise ValueError(f"{kind!r} is no kind of value")
    parts = [restore(item, tensors) for item in items]
    return tuple(parts) if kind == "tuple" else parts
