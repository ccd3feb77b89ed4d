"""Checks that several of these files make: of whole numbers, and of files that are to be read."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

from gdtrain.errors import ConfigError, DataError


def whole_number(key: str, value: Any, minimum: int) -> int:
    """``value`` as an int. Raises ConfigError, naming ``key``, unless it is one >= ``minimum``."""
    # bool is a subclass of int; asking an abstract class takes a microsecond.
    if type(value) is not int and (not isinstance(value, Integral) or isinstance(value, bool)):
        raise ConfigError.of(key, f"must be a whole number, got {value!r}")
    if value < minimum:
        raise ConfigError.of(key, f"must be >= {minimum}, got {value}")
    return int(value)


def check_file(path: str, may_be_pipe: bool = False) -> None:
    """Raise DataError unless ``path`` is a file that is there: no directory, pipe or device."""
    if not Path(path).exists():
        raise DataError(f"{path}: file not found; paths are relative to the working directory")
    if Path(path).is_dir():
        raise DataError(f"{path}: is a directory; give a file")
    if not may_be_pipe and not Path(path).is_file():
        raise DataError(
            f"{path}: is a pipe or a device; give a file, or read it with source: stream"
        )
