"""The callback that saves checkpoints at safe points, and once more when a run ends."""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import Any, Literal

from gdtrain.checkpoint.background_writer import Background
from gdtrain.checkpoint.store import CheckpointStore
from gdtrain.errors import ConfigError, StorageError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.metrics import best_of
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

State = dict[str, Any]


class Checkpoints(Callback):
    """Saves the trainer's state every k steps, epochs or seconds, and at both ends of a fit.

    A run that is resumed from any of them ends with the same bits as one left alone. What is
    saved is copied at a safe point, and written while training goes on, one at a time; training
    waits where the disk can't follow, and for the one at the end of a fit. Of several processes
    all have this callback, since each has a part of the state; rank 0 writes.

    keep_best: a metric of the epochs, such as ``val_loss``; the checkpoint of the epoch in which
    it was best is kept besides the last ones. mode: ``min`` or ``max``; if left out, by the
    metric's name: max of an accuracy.
    settings: of the run, kept in every checkpoint beside ``best``: the best metric so far, with
    its sign turned where higher is better, and infinite at first.

    A save that fails is logged and training goes on, with the older checkpoints in place; at the
    end of a fit it raises StorageError or CheckpointError.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_seconds: float | None = None,
        keep_best: str | None = None,
        mode: Literal["min", "max"] | None = None,
        settings: State | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_seconds=every_seconds)
        self.store = store
        self.epochs_between = every_n_epochs
        self.keep_best = keep_best
        mode = mode or best_of(keep_best or "")
        if mode not in ("min", "max"):
            raise ConfigError.of("mode", f"must be min or max, got {mode!r}")
        self.sign = 1.0 if mode == "min" else -1.0
        self.settings = settings or {}
        self.saved_at: tuple[int, int] | None = None  # epochs and steps of the newest on disk
        self.wanted = False
        self.best = math.inf
        self._end_of_epoch: State | None = None
        self._background = Background(self._tell)

    def save_soon(self) -> None:
        """Save at the next safe point, of whatever rank asked for it."""
        self.wanted = True

    def save_now(self, trainer: Trainer) -> None:
        """Save unless the newest checkpoint is of this moment, and wait until it is written."""
        now = (trainer.progress.epoch, trainer.progress.step)
        if trainer.world.any(now != self.saved_at):  # rank 0 alone knows of a save that failed
            self._submit(trainer, self._take(trainer))
        try:
            self._background.wait()
        except OSError as error:
            said = f"the checkpoint of step {now[1]} could not be saved: {error}"
            raise StorageError(f"{said}; what was saved before it stays") from error

    def is_due(self, step: int) -> bool:
        """At every safe point; ``on_safe_point`` decides, since it may be due for two reasons."""
        return True

    def on_fit_start(self, trainer: Trainer) -> None:
        self._last_call = time.monotonic()
        if trainer.world.any(self.saved_at is None):  # rank 0 alone knows of one that failed
            self._submit(trainer, self._take(trainer))

    def on_safe_point(self, trainer: Trainer) -> None:
        progress, plan = trainer.progress, trainer.plan
        by_steps = self.every_n_steps is not None and progress.step % self.every_n_steps == 0
        epoch_done = plan is not None and plan.is_over(progress.step_in_epoch)
        by_epochs = (
            self.epochs_between is not None
            and epoch_done
            and (progress.epoch + 1) % self.epochs_between == 0
        )
        by_seconds = self.every_seconds is not None and bool(
            trainer.world.first(super().is_due(progress.step))  # clocks differ
        )
        asked = trainer.world.any(self.wanted)
        candidate = epoch_done and self.keep_best is not None
        if by_steps or by_epochs or by_seconds or asked or candidate:
            self.wanted = False
            state = self._take(trainer)
            if candidate:
                self._end_of_epoch = state
            if by_steps or by_epochs or by_seconds or asked:
                self._submit(trainer, state)
            if asked and trainer.world.rank == 0:
                logger.warning("saving the checkpoint of step %d, as asked", progress.step)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        value = self.sign * float(record.get(self.keep_best or "", math.nan))
        if value < self.best:
            self.best = value
            if trainer.world.rank == 0:
                step, state = trainer.progress.step, self._end_of_epoch
                self._background.submit(partial(self._save_best, step, state, self.sign * value))
        self._end_of_epoch = None

    def on_fit_end(self, trainer: Trainer) -> None:
        self.save_now(trainer)

    def _take(self, trainer: Trainer) -> State:
        return {**trainer.state_dict(), "settings": {**self.settings, "best": self.best}}

    def _submit(self, trainer: Trainer, state: State) -> None:
        self.saved_at = (trainer.progress.epoch, trainer.progress.step)
        if trainer.world.rank == 0:
            self._background.submit(partial(self._save, trainer.progress.step, state))

    def _save(self, step: int, state: State) -> None:
        self.store.save(step, state)

    def _save_best(self, step: int, state: State | None, metric: float) -> None:
        path = self.store.newest(step)
        if path is None:
            # A run that was resumed at the end of an epoch has no state of it, but a checkpoint.
            assert state is not None
            path = self.store.save(step, state)
        self.store.mark_best(path, metric)

    def _tell(self, error: Exception) -> None:
        self.saved_at = None  # or the end of the fit would count on it
        logger.warning("a checkpoint could not be saved, older ones stay: %s", error)
