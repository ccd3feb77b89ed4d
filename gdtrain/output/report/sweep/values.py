"""Which setting of a sweep is which, and their values as numbers and in words."""

from __future__ import annotations

import math
from typing import Any


def shown(value: Any) -> str:
    """A setting's value in words."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def rate_of(result: dict[str, Any]) -> str | None:
    """The setting of the learning rate."""
    return next((name for name in result["settings"] if name.rpartition(".")[2] == "lr"), None)


def size_of(result: dict[str, Any]) -> str | None:
    """The setting that decides the batch size: a number, or a form such as ``minibatch:16``."""
    for ending in ("batch_size", "loader"):
        for name in result["settings"]:
            if name.rpartition(".")[2] == ending:
                return str(name)
    return None


def size_in(value: Any) -> float | None:
    """The number that a value is, or has, as the batch size of ``minibatch:16``."""
    if isinstance(value, str):
        if value == "sample":
            return 1.0
        value = value.partition(":")[2]
    return as_number(value)


def as_number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
