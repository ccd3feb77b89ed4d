"""What is logged of a step, and when: the base of all logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer


class StepLog(Callback):
    """Logs every k-th update, and those at which a monitor has looked.

    Losses and rates are read from the blocks that have run, which may be long: a block ends with
    a k-th update only where a callback has something to report of that moment.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self._every = every_n_steps
        self._trainer: Trainer | None = None
        self._logged = 0  # updates of which it is known whether they are to be logged

    def is_due(self, step: int) -> bool:
        """At every safe point: there may be updates to be logged anywhere in the block."""
        return True

    def next_records(self, until: int) -> Iterator[dict[str, Any]]:
        """What there is to log of the updates after those before, up to number ``until``."""
        if self._trainer is None or self._trainer.progress.last is None:
            return
        first = self._trainer.progress.step - self._trainer.progress.last[1].shape[0] + 1
        new = range(max(first, self._logged + 1), until + 1)
        reported = {one.reported_at or 0 for one in self._trainer.callbacks}
        regular = range(-(-new.start // self._every) * self._every, new.stop, self._every)
        for step in sorted({step for step in reported if step in new}.union(regular)):
            yield self._record(self._trainer, step, step - first)
        self._logged = until

    def watch(self, trainer: Trainer, *, starts: bool = False) -> None:
        """See what there is to log: when a fit starts, and at each safe point."""
        if starts or self._trainer is not trainer:  # the latter: added in mid-run
            self._logged = trainer.progress.step - (not starts)
        self._trainer = trainer
        of_moment = any(
            one.reported_at is None
            and (type(one).report is not Callback.report or "report" in vars(one))
            for one in trainer.callbacks
        )
        # A compiled block knows the rate of its last update alone.
        ends = of_moment or not trainer.engine.reaches_over_epochs
        self.every_n_steps = self._every if ends else None

    def _record(self, trainer: Trainer, step: int, place: int) -> dict[str, Any]:
        """Step, epoch (from 1), loss, lr, seconds, and what other callbacks report of this step.

        place: of the step in the last block, whose updates are taken to be alike long.
        """
        progress = trainer.progress
        assert progress.last is not None
        block, losses = progress.last
        reported: dict[str, Any] = {}
        for callback in trainer.callbacks:
            at = progress.step if callback.reported_at is None else callback.reported_at
            if at == step:
                reported |= callback.report()
        return {
            "step": step,
            "epoch": block.epoch(place) + 1,
            "loss": float(losses[place]),
            "lr": block.rate(place) if block.rates else float(progress.lr),
            "seconds": round(self._seconds(trainer, step, step - place - 1), 6),
            **block.terms_of(place),
            **reported,
        }

    @staticmethod
    def _seconds(trainer: Trainer, step: int, before: int) -> float:
        """When the update was made, between the moments that are known.

        before: updates made before the last block.
        """
        progress, known = trainer.progress, [(before, trainer.progress.began)]
        for record in reversed(trainer.history.epochs):
            if record["step"] <= before:
                break
            known.insert(1, (record["step"], record["seconds"]))
        steps, seconds = zip(*known, (progress.step, progress.seconds), strict=True)
        return float(np.interp(step, steps, seconds))
