"""The callback that saves checkpoints at safe points, and once more when a run ends."""

from __future__ import annotations

from gdtrain.checkpoint.store import CheckpointStore
from gdtrain.training.callbacks import Callback
from gdtrain.training.trainer import Trainer


class Checkpoints(Callback):
    """Saves the trainer's state every k steps, epochs or seconds, and at the end of each fit.

    A run that is resumed from any of them ends with the same bits as one left alone. Of several
    processes all have this callback, since they may hold parts of the state; rank 0 writes.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_seconds: float | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_seconds=every_seconds)
        self.store = store
        self.epochs_between = every_n_epochs
        self._saved_at: tuple[int, int] | None = None

    def is_due(self, step: int) -> bool:
        """At every safe point; ``on_safe_point`` decides, since it may be due for two reasons."""
        return True

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
        if by_steps or by_epochs or by_seconds:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        now = (trainer.progress.epoch, trainer.progress.step)
        if now != self._saved_at:
            state = trainer.state_dict()
            if trainer.world.rank == 0:
                self.store.save(trainer.progress.step, state)
            self._saved_at = now
