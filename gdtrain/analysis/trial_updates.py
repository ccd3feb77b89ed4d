"""Updates that are made to be looked at, and undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.engines.eager import EagerEngine
from gdtrain.training.progress import Progress
from gdtrain.training.safety.finite_guard import Guard
from gdtrain.training.state.keeper import as_in_fit, unchanged
from gdtrain.training.trainer import Trainer


@contextmanager
def trial_updates(trainer: Trainer, callbacks: Sequence[Callback] = ()) -> Iterator[None]:
    """Let ``trainer.engine`` make updates, eagerly, and put everything back that they change.

    In the modes in which ``fit`` trains. What an update under way needs, its counters and its
    guard, is not the trial's. callbacks: that are called for the updates, in place of the
    trainer's; what they keep is not put back.
    """
    trainer.engine.publish()
    now = (trainer.engine, trainer.callbacks, trainer.guard, trainer.progress)
    with unchanged(trainer, updates=True):
        progress = Progress()
        progress.load_state_dict(trainer.progress.state_dict())
        trainer.callbacks, trainer.progress = list(callbacks), progress
        trainer.engine, trainer.guard = EagerEngine(trainer), Guard(trainer, deferred=False)
        as_in_fit(trainer)
        try:
            yield
        finally:
            trainer.engine, trainer.callbacks, trainer.guard, trainer.progress = now
