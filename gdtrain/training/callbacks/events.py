"""Tells callbacks of the moments of a run."""

from __future__ import annotations

from typing import Any

from gdtrain.training.callbacks.callback import Callback, among
from gdtrain.training.run import Run


def tell(run: Run, event: str, *arguments: Any) -> None:
    """Call ``event`` on every callback that listens to it and is due.

    Each is looked up when it is its turn: one may add or remove others.
    """
    told: list[Callback] = []
    while waiting := [c for c in run.listeners.of[event] if not among(told, c)]:
        callback = waiting[0]
        told.append(callback)
        if event == "on_safe_point":
            if type(callback).is_due is not Callback.is_due:  # which may look, too
                run.engine.publish(callback)
            if not callback.is_due(run.progress.step):
                continue
        run.engine.publish(callback)  # before anybody looks
        getattr(callback, event)(run, *arguments)
