"""Test, then train: loss and metrics of each sample before the update that learns from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.checks import whole_number
from gdtrain.data.tree import map_tensors
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.evaluating.metrics import Metric, check_metrics, values_of
from gdtrain.training.losses.terms import no_number
from gdtrain.training.run import Run
from gdtrain.training.state.plain_values import is_count, is_number

Array = np.ndarray[Any, Any]


class Prequential(Callback):
    """Means over the newest samples, each evaluated before the model learnt from it.

    With f_i the loss (or metric) of sample i under the weights before its update, the
    prequential mean over a window w is (1/w) Σ f_i over the last w samples (Dawid, 1984; Gama,
    Sebastião and Rodrigues, 2013). The window consists of whole batches: the newest ones that
    together have at least ``window`` samples. Losses and outputs are those of the updates; nothing
    is computed twice.

    metrics: as those of the trainer, of the outputs of each update. They need the trainer's own
    ``compute_loss`` (or an override that calls it), and an optimizer without a closure.
    :meth:`report` gives ``prequential_loss`` and ``prequential_<metric>``.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Prequential, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> prequential = Prequential(window=100)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[prequential]
    ... )
    >>> history = trainer.fit(10)
    >>> sorted(prequential.report())
    ['prequential_loss']
    """

    def __init__(self, window: int = 1000, metrics: Mapping[str, Metric] | None = None) -> None:
        super().__init__()
        self.window = whole_number("window", window, minimum=1)
        self.metrics = {} if metrics is None else check_metrics(metrics)
        # Of each block, its steps' samples [steps], and their losses and metrics [steps, 1 + …].
        self._parts: deque[tuple[Array, Array]] = deque()
        self._samples = 0
        self._measured: list[Any] = []  # per step of the block, on the device

    def listens_to(self, event: str) -> bool:
        # Without metrics the losses are enough, which every engine gives.
        return super().listens_to(event) and (event != "on_before_update" or bool(self.metrics))

    def on_fit_start(self, trainer: Run) -> None:
        if self.metrics:
            trainer.outputs = []

    def on_before_update(self, trainer: Run) -> None:
        if trainer.outputs is None:  # added in mid-run
            trainer.outputs = []
            return
        pieces = list(trainer.outputs)
        if [c for c in trainer.callbacks if isinstance(c, Prequential) and c.metrics][-1] is self:
            trainer.outputs.clear()  # all have seen them
        if trainer.world.size > 1:
            shares = trainer.world.gather_objects(map_tensors(pieces, Tensor.cpu))
            pieces = [piece for share in shares for piece in share]
        if pieces:
            with torch.no_grad():
                values = values_of(self.metrics, pieces, trainer.loss)
            found = zip(self.metrics, values, strict=True)
            self._measured.append(torch.stack([_number(n, v, trainer.device) for n, v in found]))

    def on_safe_point(self, trainer: Run) -> None:
        sizes, values = trainer.progress.sizes, trainer.progress.losses[:, None]
        if len(self._measured) == len(sizes):
            measured = torch.stack(self._measured).cpu().numpy()
            values = np.concatenate([values, measured], axis=1)
        self._measured.clear()
        self._add(sizes, values)

    def on_epoch_end(self, trainer: Run, record: dict[str, Any]) -> None:
        record.update(self.report())

    def report(self) -> dict[str, float]:
        """The means over the window by name; empty before the first update."""
        steps = self._steps()
        return {
            f"prequential_{name}": sum(size * values[i] for size, *values in steps) / self._samples
            for i, name in enumerate(["loss", *self.metrics])
            if steps and all(len(values) > i for _, *values in steps)
        }

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        steps = [(size, values) for size, *values in state["steps"]]
        if not all(is_count(size) and size and all(map(is_number, v)) and v for size, v in steps):
            raise ValueError("steps: one is not of an update")
        self._parts.clear()
        self._samples = 0
        for size, values in steps:
            self._add(np.array([size]), np.array([values]))

    def _add(self, sizes: Array, values: Array) -> None:
        self._parts.append((sizes, values))
        self._samples += int(sizes.sum())
        while self._samples - (oldest := int(self._parts[0][0].sum())) >= self.window:
            self._parts.popleft()
            self._samples -= oldest

    def _steps(self) -> list[list[Any]]:
        """The steps of the window, oldest first: the samples, the loss and the metrics of each."""
        if self._parts:  # of the oldest block, some may have left
            sizes, values = self._parts[0]
            gone = int(np.searchsorted(sizes.cumsum(), self._samples - self.window, side="right"))
            self._samples -= int(sizes[:gone].sum())
            self._parts[0] = sizes[gone:], values[gone:]
        return [
            [size, *numbers]
            for sizes, values in self._parts
            for size, numbers in zip(sizes.tolist(), values.tolist(), strict=True)
        ]


def _number(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64, device=device).reshape(())
    except (TypeError, ValueError, RuntimeError) as error:
        raise no_number(f"metrics.{name}", value) from error
