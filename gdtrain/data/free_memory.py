"""How much memory there is to read data into, asked before any of it is taken."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from gdtrain.errors import DataError

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
