"""Frees the memory of finished runs, where one process makes many."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_modules = 0  # number of imported modules when objects were last frozen


def free() -> None:
    """Free what a finished run has left.

    Trainers are reference cycles, which Python itself may collect only after some hundred runs.
    What survives is mostly modules, and is frozen, so that the next collection takes a few
    milliseconds, except after new imports.
    """
    global _modules
    gc.collect()
    if len(sys.modules) > _modules:
        gc.freeze()
        _modules = len(sys.modules)


@contextmanager
def as_before() -> Iterator[None]:
    """Unfreeze all objects on leaving, unless somebody else had frozen some before."""
    global _modules
    frozen = gc.get_freeze_count()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        _modules = 0
