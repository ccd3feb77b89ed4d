"""The weights of the best epoch, kept beside training."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from gdtrain.errors import ModelError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.callbacks.monitored import Monitored
from gdtrain.training.run import Run
from gdtrain.training.state import snapshot
from gdtrain.training.state.plain_values import is_count, is_number


class KeepBest(Callback):
    """Keeps a copy of the model's weights of the epoch in which a metric was best.

    monitor: a key of the epochs' records, such as ``val_loss``; epochs without it are skipped. If
    no epoch of a fit has it, the logger ``gdtrain`` warns.
    mode: ``min`` or ``max``; if left out, the metric's name decides: max for accuracy, r2, f1,
    precision, recall, auroc, auc and iou, min for all others.
    value, epoch, weights: of the best epoch so far, counted from 1; None before there is one. They
    are saved with the state of training. Training continues from the current weights;
    :meth:`put_back` gives the model the best ones. Raises ConfigError for a wrong setting.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, KeepBest, Trainer
    >>> data = torch.ones(4, 1), torch.ones(4, 1)
    >>> model, best = nn.Linear(1, 1), KeepBest("train_loss")
    >>> history = Trainer(model, "mse", "adam", BatchLoader(data), callbacks=[best]).fit(5)
    >>> best.epoch, best.value == min(history.train_loss)
    (5, True)
    >>> model.weight.data.zero_() is best.put_back(model)
    False
    """

    def __init__(
        self, monitor: str = "val_loss", *, mode: Literal["min", "max"] | None = None
    ) -> None:
        super().__init__(every_n_epochs=1)
        self.monitor = monitor
        self._metric = Monitored(monitor, mode)
        self.value: float | None = None
        self.epoch: int | None = None
        self.weights: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Run) -> None:
        self._metric.begin()

    def on_epoch_end(self, trainer: Run, record: dict[str, Any]) -> None:
        cost, sign = self._metric.cost(record), self._metric.sign
        if not math.isnan(cost) if self.value is None else cost < sign * self.value:
            self.value, self.epoch = sign * cost, record["epoch"]
            self.weights = snapshot.weights(trainer)

    def on_fit_end(self, trainer: Run) -> None:
        self._metric.tell_if_missed("KeepBest", "no weights were kept")

    def put_back(self, model: Any) -> None:
        """Give the model the best weights. Raises ModelError if there are none yet."""
        if self.weights is None:
            raise ModelError(f"KeepBest: no epoch has had {self.monitor} yet")
        model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        empty = state["value"] is None and state["epoch"] is None and state["weights"] is None
        if not empty and not (is_number(state["value"]) and is_count(state["epoch"])):
            raise ValueError("value and epoch are not those of a best epoch")
        self.value, self.epoch, self.weights = state["value"], state["epoch"], state["weights"]

    def state_bytes(self, trainer: Any) -> int:
        state = trainer.model.state_dict().values()
        return sum(value.nbytes for value in state if isinstance(value, Tensor))
