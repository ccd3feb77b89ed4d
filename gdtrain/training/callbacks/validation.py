"""Callbacks that judge a run: evaluation on a validation set, and early stopping."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.callbacks.monitored import Monitored
from gdtrain.training.run import Run
from gdtrain.training.safety.checks import check_loader
from gdtrain.training.state.plain_values import is_count, is_number
from gdtrain.wording import counted

logger = logging.getLogger("gdtrain")


class Validation(Callback):
    """Evaluate on a validation set every k steps or epochs (default: every epoch).

    Adds ``val_loss`` and ``val_<metric>`` to the epoch's record; if there are several evaluations
    in an epoch, the newest. All of them are in ``results``, each with its epoch and step.
    Raises ModelError for anything but a loader.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Validation, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> validation = Validation(BatchLoader((X, 3 * X)), every_n_epochs=5)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[validation]
    ... )
    >>> history = trainer.fit(10)
    >>> [result["epoch"] for result in validation.results]
    [4, 9]
    """

    validates = True

    def __init__(
        self, loader: Loader, *, every_n_steps: int | None = None, every_n_epochs: int | None = None
    ) -> None:
        if every_n_steps is None and every_n_epochs is None:
            every_n_epochs = 1
        check_loader("validation", loader)
        if loader.is_stream:
            message = "is a stream, which has no end to evaluate it to; give a data set held out"
            raise ConfigError.of("validation", message)
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        self.loader = loader
        self.results: list[dict[str, Any]] = []

    def on_safe_point(self, trainer: Run) -> None:
        if self.every_n_steps is not None:
            self._evaluate(trainer, trainer.progress.epoch)

    def on_epoch_end(self, trainer: Run, record: dict[str, Any]) -> None:
        if self.every_n_steps is None:
            self._evaluate(trainer, record["epoch"] - 1)
        newest = self.results[-1] if self.results else {}
        if newest.get("epoch") == record["epoch"] - 1:
            record.update({k: v for k, v in newest.items() if k.startswith("val_")})

    def _evaluate(self, trainer: Run, epoch: int) -> None:
        metrics = trainer.evaluate(self.loader)
        result: dict[str, Any] = {"epoch": epoch, "step": trainer.progress.step}
        result |= {f"val_{name}": value for name, value in metrics.items()}
        self.results.append(result)

    def state_dict(self) -> dict[str, Any]:
        return {"results": self.results}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for result in state["results"]:
            counts = is_count(result["epoch"]) and is_count(result["step"])
            if not counts or not all(map(is_number, result.values())):
                raise ValueError("results: one is not of an evaluation")
        self.results = list(state["results"])


class EarlyStopping(Callback):
    """Stop when a metric of the epoch's record has not improved for ``patience`` epochs.

    monitor: a key of the record, such as ``val_loss`` or ``train_loss``.
    mode: ``min`` or ``max``; if left out, the metric's name decides: max for accuracy, r2, f1,
    precision, recall, auroc, auc and iou, min for all others.
    min_delta: by how much a value must beat the best to count.
    Epochs without the metric are skipped; if no epoch of a fit has it, the logger ``gdtrain``
    warns. A NaN never counts as an improvement. A further fit after a stop goes on; one with
    ``resume=`` from a checkpoint of a run that had stopped ends where that did. Raises ConfigError
    for a wrong setting.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, EarlyStopping, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> stopping = EarlyStopping("train_loss", patience=3, min_delta=10.0)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[stopping]
    ... )
    >>> history = trainer.fit(10)
    >>> trainer.stop_reason
    'train_loss did not improve for 3 epochs'
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        super().__init__(every_n_epochs=1)
        if patience < 1:
            raise ConfigError.of("patience", f"must be >= 1, got {patience}")
        if not min_delta >= 0:
            raise ConfigError.of("min_delta", f"must be >= 0, got {min_delta}")
        self.monitor = monitor
        self._metric = Monitored(monitor, mode)
        self.patience = patience
        self.min_delta = min_delta
        self.best = math.inf
        self.epochs_without_improvement = 0
        self.is_taken_up = False  # whether the next fit is that which a checkpoint was saved in

    def next_epoch_end(self, epoch: int) -> int | None:
        """None for a metric of validation, since those are measured between blocks only."""
        if self.monitor.startswith("val_"):
            return None
        return super().next_epoch_end(epoch)

    def on_epoch_end(self, trainer: Run, record: dict[str, Any]) -> None:
        value = self._metric.cost(record)
        if self.monitor not in record:
            return
        if value < self.best - self.min_delta:
            self.best, self.epochs_without_improvement = value, 0
            return
        self.epochs_without_improvement += 1
        if self.reason is not None:
            trainer.stop(self.reason)

    def on_fit_end(self, trainer: Run) -> None:
        self._metric.tell_if_missed("early stopping", "nothing could stop the run by it")

    def on_fit_start(self, trainer: Run) -> None:
        self._metric.begin()
        if self.reason is not None and self.is_taken_up:
            trainer.stop(self.reason)
        elif self.reason is not None:  # a fit after a stop is a wish to go on, and needs patience
            self.epochs_without_improvement = 0
        self.is_taken_up = False

    @property
    def reason(self) -> str | None:
        """Why the run is stopped; None while it is not."""
        if self.epochs_without_improvement < self.patience:
            return None
        return f"{self.monitor} did not improve for {counted(self.patience, 'epoch')}"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epochs_without_improvement": self.epochs_without_improvement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best, epochs = state["best"], state["epochs_without_improvement"]
        if not (is_number(best) and is_count(epochs)):
            raise ValueError("best is not a metric, or epochs_without_improvement no number")
        self.best, self.epochs_without_improvement = best, epochs
