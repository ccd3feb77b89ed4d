"""The memory of runs that are over, of which many are made in one process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_modules = 0  # that were imported when what lives was last left aside


def free() -> None:
    """Free what a run has left: trainers refer to themselves, so that they wait to be looked for.

    Python itself may look after some hundred runs. What has stayed alive is not looked at again,
    as most of it are modules; so this takes some milliseconds, but for where more were imported.
    """
    global _modules
    gc.collect()
    if len(sys.modules) > _modules:
        gc.freeze()
        _modules = len(sys.modules)


@contextmanager
def as_before() -> Iterator[None]:
    """Have everything looked at again on leaving, unless somebody else has left it aside."""
    global _modules
    frozen = gc.get_freeze_count()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        _modules = 0
