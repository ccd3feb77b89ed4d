"""Checks of the settings that orders, loaders and problems have in common."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from gdtrain.errors import ConfigError


def whole_number(key: str, value: Any, minimum: int) -> int:
    """``value`` as an int. Raises ConfigError, naming ``key``, unless it is one >= ``minimum``."""
    # bool is a subclass of int; asking an abstract class takes a microsecond.
    if type(value) is not int and (not isinstance(value, Integral) or isinstance(value, bool)):
        raise ConfigError.of(key, f"must be a whole number, got {value!r}")
    if value < minimum:
        raise ConfigError.of(key, f"must be >= {minimum}, got {value}")
    return int(value)
