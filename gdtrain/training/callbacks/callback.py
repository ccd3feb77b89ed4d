"""What may look at a run and steer it, and how often: the callback protocol."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gdtrain.data.batch import Batch
from gdtrain.errors import ConfigError


class Callback:
    """Base of all callbacks: eight moments of a run, and a cadence.

    every_n_steps: call ``on_safe_point`` after each k-th update (k, 2k, … of ``progress.step``);
        blocks end there.
    every_seconds: call ``on_safe_point`` at the first safe point after that many seconds.
    every_n_epochs: call ``on_epoch_end`` after each k-th epoch only.

    Without the first two, ``on_safe_point`` is called at every safe point, wherever blocks
    happen to end. Between safe points losses stay on the device, and no callback is called.

    Weights, ``trainer.progress``, ``trainer.history`` and ``trainer.should_stop`` can be read at
    any moment; :meth:`Trainer.stop` ends the run at the next safe point. A subclass may set the
    cadence as class attributes or through ``super().__init__``.

    >>> from gdtrain import Callback
    >>> class StopWhenSmall(Callback):
    ...     def on_epoch_end(self, trainer, record):
    ...         if record["train_loss"] < 0.01:
    ...             trainer.stop("the loss is small")
    >>> StopWhenSmall(every_n_epochs=5).every_n_epochs
    5
    """

    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    every_seconds: float | None = None
    validates: bool = False
    """Whether it adds ``val_loss`` to the records of epochs."""
    reported_at: int | None = None
    """The step of which the numbers of :meth:`report` are; None: of the moment."""
    _last_call: float = -math.inf

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_seconds: float | None = None,
    ) -> None:
        for key, value in (
            ("every_n_steps", every_n_steps),
            ("every_n_epochs", every_n_epochs),
            ("every_seconds", every_seconds),
        ):
            if value is None:
                continue
            if not value > 0:
                raise ConfigError.of(key, f"must be > 0, got {value}")
            setattr(self, key, value)

    def __repr__(self) -> str:
        """Its kind, and what of its settings are numbers or words."""
        plain = {key: v for key, v in vars(self).items() if isinstance(v, int | float | str)}
        shown = ", ".join(f"{key}={v!r}" for key, v in plain.items() if not key.startswith("_"))
        return f"{type(self).__name__}({shown})"

    def on_fit_start(self, trainer: Any) -> None:
        """Before the first epoch of a call of fit."""

    def on_epoch_start(self, trainer: Any) -> None:
        """Before the first batch of an epoch; not again after a resume in its middle."""

    def on_gradient(self, trainer: Any, batch: Batch, loss: Tensor) -> None:
        """The batch's gradient is in ``.grad``, and may be corrected; then it is clipped.

        Called for every update, by the eager engine only; loss: of the batch, shape []. If
        ``trainer.guard.check(loss)`` raises, the callback must not have changed its state.
        """

    def on_before_update(self, trainer: Any) -> None:
        """Gradients are final and the update has not been made: inspect them.

        Called for every update, by the eager engine only.
        """

    def on_safe_point(self, trainer: Any) -> None:
        """Between two blocks, at this callback's cadence: log, check, save, stop."""

    def on_epoch_end(self, trainer: Any, record: dict[str, Any]) -> None:
        """After an epoch; ``record`` holds its metrics, and more may be added to it."""

    def on_records(self, records: list[dict[str, Any]]) -> None:
        """After some epochs: their records, complete as far as callbacks before this one are.

        For callbacks that record the progress of a run. Unlike ``on_epoch_end``, it does not pause
        training at the end of each epoch: a block may span many epochs.
        """

    def on_fit_end(self, trainer: Any) -> None:
        """After the last epoch, or after a stop."""

    def report(self) -> dict[str, float]:
        """Numbers by name that logs and the console show at a safe point."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to continue as if uninterrupted (plain values)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""

    def state_bytes(self, trainer: Any) -> int:
        """What the tensors of :meth:`state_dict` may take beyond 64 MiB and four times the model.

        A checkpoint in which callbacks have more is refused unread.
        """
        return 0

    def next_epoch_end(self, epoch: int) -> int | None:
        """The first epoch after ``epoch``, counted from 1, that has to end with a block.

        So that ``on_epoch_end`` is called then. None: not for this callback.
        """
        every = self.every_n_epochs or 1
        return (epoch // every + 1) * every

    def listens_to(self, event: str) -> bool:
        """Whether ``event``, such as ``on_before_update``, is to be told."""
        return getattr(type(self), event) is not getattr(Callback, event)

    def is_due(self, step: int) -> bool:
        """Whether ``on_safe_point`` is to be called at this safe point, after ``step`` updates."""
        if self.every_n_steps is not None:
            return step % self.every_n_steps == 0
        if self.every_seconds is not None:
            if time.monotonic() - self._last_call < self.every_seconds:
                return False
            self._last_call = time.monotonic()
        return True


class StepLosses(Callback):
    """Keep the loss of every update in ``losses`` (one float per step), for curves and studies.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, StepLosses, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> losses = StepLosses()
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[losses]
    ... )
    >>> history = trainer.fit(10)
    >>> len(losses.losses)
    10
    """

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_safe_point(self, trainer: Any) -> None:
        self.losses.extend(trainer.progress.losses.tolist())


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Listeners:
    """Which callbacks have a method of their own for which event, in their order.

    of: event -> those callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)
        self.of = {event: [c for c in callbacks if c.listens_to(event)] for event in EVENTS}
        told = self.of["on_records"] + self.of["on_epoch_end"]
        self._of_ends = [c for c in callbacks if among(told, c)]

    @property
    def see_updates(self) -> bool:
        """Whether a callback looks at every update."""
        return bool(self.of["on_gradient"] or self.of["on_before_update"])

    def next_to_tell(self, epoch: int | None, told: list[Callback]) -> Callback | None:
        """The next one to be told that epochs have ended.

        epoch: the one that has just ended, the first being 1; None if another has begun since.
        """
        for callback in self._of_ends:
            if not among(told, callback) and (
                among(self.of["on_records"], callback) or self.is_due(callback, epoch)
            ):
                return callback
        return None

    def is_due(self, callback: Callback, epoch: int | None) -> bool:
        """Whether ``on_epoch_end`` is to be called at the end of the epoch."""
        every = callback.every_n_epochs
        due = epoch is not None and (every is None or epoch % every == 0)
        return due and among(self.of["on_epoch_end"], callback)


def among(callbacks: Sequence[Callback], callback: Callback) -> bool:
    return any(one is callback for one in callbacks)


def named(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Each callback by its type's name, numbered where there are several of a type."""
    seen: Counter[str] = Counter()
    found = {}
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name}-{seen[name]}"] = callback
    return found
