"""Test, then train: loss and metrics of each sample before the update that learns from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from gdtrain.data.settings import whole_number
from gdtrain.training.callbacks import Callback
from gdtrain.training.evaluation import Metric
from gdtrain.training.plain import is_count, is_number

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class Prequential(Callback):
    """Means over the newest samples of what the model made of them before it learnt from them.

    With f_i the loss (or metric) of sample i under the weights before its update, the
    prequential mean over a window w is (1/w) Σ f_i over the last w samples (Dawid, 1984; Gama,
    Sebastião and Rodrigues, 2013). We take whole batches: the fewest of the newest that hold
    ``window`` samples together. Losses and outputs are those of the updates; nothing is
    computed twice.

    metrics: name -> ``(output, targets) -> mean over the batch``. They need the trainer's own
    ``compute_loss`` (or an override that calls it), and an optimizer without a closure.
    :meth:`report` gives ``prequential_loss`` and ``prequential_<metric>``.
    """

    def __init__(self, window: int = 1000, metrics: Mapping[str, Metric] | None = None) -> None:
        super().__init__()
        self.window = whole_number("window", window, minimum=1)
        self.metrics = dict(metrics or {})
        self._steps: deque[tuple[int, list[float]]] = deque()  # samples, then loss and metrics
        self._samples = 0
        self._measured: list[Any] = []  # per step of the block, on the device

    def on_fit_start(self, trainer: Trainer) -> None:
        if self.metrics:
            trainer.outputs = []

    def on_before_update(self, trainer: Trainer) -> None:
        if not self.metrics or not trainer.outputs:
            return
        count, sums = 0, torch.zeros(len(self.metrics), dtype=torch.float64, device=trainer.device)
        with torch.no_grad():
            for output, targets in trainer.outputs:
                count += len(targets)
                for i, metric in enumerate(self.metrics.values()):
                    sums[i] += metric(output, targets) * len(targets)
        trainer.outputs.clear()
        self._measured.append(sums / count)

    def on_safe_point(self, trainer: Trainer) -> None:
        losses, sizes = trainer.progress.losses.tolist(), trainer.progress.sizes.tolist()
        measured: list[list[float]] = [[] for _ in losses]
        if len(self._measured) == len(losses):
            measured = torch.stack(self._measured).tolist()
        self._measured.clear()
        for size, loss, metrics in zip(sizes, losses, measured, strict=True):
            self._steps.append((size, [loss, *metrics]))
            self._samples += size
        while self._samples - self._steps[0][0] >= self.window:
            self._samples -= self._steps.popleft()[0]

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        record.update(self.report())

    def report(self) -> dict[str, float]:
        """The means over the window by name; empty before the first update."""
        names = ["loss", *self.metrics]
        return {
            f"prequential_{name}": sum(size * values[i] for size, values in self._steps)
            / self._samples
            for i, name in enumerate(names)
            if self._steps and all(len(values) > i for _, values in self._steps)
        }

    def state_dict(self) -> dict[str, Any]:
        return {"steps": [[size, *values] for size, values in self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        steps = [(size, values) for size, *values in state["steps"]]
        if not all(is_count(size) and size and all(map(is_number, v)) and v for size, v in steps):
            raise ValueError("steps: one is not of an update")
        self._steps = deque(steps)
        self._samples = sum(size for size, _ in self._steps)
