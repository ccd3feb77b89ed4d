"""What is logged of a step, and when: the base of all logs."""

from __future__ import annotations

from typing import Any

from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer


class StepLog(Callback):
    """Looks every k updates, and after those at which a monitor has looked.

    :meth:`step_record` is what there is to log then.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self._trainer: Trainer | None = None

    def is_due(self, step: int) -> bool:
        return super().is_due(step) or any(c.reported_at == step for c in self._others())

    def on_fit_start(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def _others(self) -> list[Callback]:
        """Who may have something to report, looked up when it is asked."""
        return [] if self._trainer is None else self._trainer.callbacks

    def step_record(self, trainer: Trainer) -> dict[str, Any]:
        """Step, epoch (from 1), loss, lr, seconds, and what other callbacks report of this step."""
        progress = trainer.progress
        reported: dict[str, Any] = {}
        for callback in self._others():
            if callback.reported_at in (None, progress.step):
                reported |= callback.report()
        return {
            "step": progress.step,
            "epoch": progress.epoch + 1,
            "loss": float(progress.losses[-1]),
            "lr": float(trainer.progress.lr),
            "seconds": round(progress.seconds, 6),
            **reported,
        }
