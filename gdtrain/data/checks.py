"""Checks of what is given: whole numbers, files that are to be read, the memory that they take."""

from __future__ import annotations

import resource
from contextlib import suppress
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


_GROUP = Path("/sys/fs/cgroup")
# Bytes for which nobody asks the system: where they are not there, no program starts.
ALWAYS_THERE = 1 << 20


def check_memory(path: str, nbytes: int) -> None:
    """Raise DataError if what ``path`` holds takes more bytes than there are."""
    free = free_memory() if nbytes > ALWAYS_THERE else None
    if free is not None and nbytes > free:
        raise DataError(
            f"{path}: takes {nbytes:,} bytes of memory, and {free:,} are free; make it a folder "
            "for source: mapped, which is read as it is used, or use fewer rows"
        )


def free_memory() -> int | None:
    """Bytes that this process may still take, or None where the system does not say."""
    bounds = [_of_system(), _of_group(), _of_process()]
    return min((bound for bound in bounds if bound is not None), default=None)


def _of_system() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _of_group() -> int | None:
    """Of a container, as version 2 of Linux's control groups tells of it."""
    with suppress(OSError, ValueError):
        most, taken = (int((_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (_GROUP / "memory.stat").read_text().splitlines()
        counts = {name: int(count) for name, _, count in (line.partition(" ") for line in lines)}
        # What has been read of files stays while there is room, and goes when that is needed.
        files = counts.get("inactive_file", 0) + counts.get("active_file", 0)
        return max(0, most - taken + files)
    return None


def _of_process() -> int | None:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return max(0, most - pages * resource.getpagesize())
    return None
