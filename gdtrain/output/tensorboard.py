"""The callback that writes what is logged for TensorBoard."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.durable_files import Attempt
from gdtrain.errors import MissingPackageError
from gdtrain.output.metrics_log import StepLog
from gdtrain.training.trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_FLUSH_SECONDS = 30
_NOT_DRAWN = ("kind", "step", "epoch", "samples", "seconds")


class TensorBoard(StepLog):
    """Writes the numbers of metrics.jsonl, by the same names, as event files into ``directory``.

    ``loss`` (of the update's batch), ``lr`` and what monitors and other callbacks report, every k
    updates; ``train_loss``, ``val_loss``, metrics and monitors' numbers at the end of epochs; all
    against the step. Numbers that are not finite are left out. Look at them with
    ``tensorboard --logdir DIRECTORY``.

    After a resume, what an interrupted run had written beyond the checkpoint is hidden (by a
    purge step); the numbers of an epoch that ended right at the checkpoint may be there twice,
    alike. Of several processes, rank 0 writes.

    Raises MissingPackageError without the package tensorboard, and StorageError if the disk fails;
    attempt: or whatever is to be done then.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, TensorBoard, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> board = TensorBoard("events", every_n_steps=5)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[board]
    ... )
    >>> history = trainer.fit(10)
    >>> from pathlib import Path
    >>> len(list(Path("events").iterdir()))
    1
    """

    def __init__(
        self,
        directory: str | Path,
        every_n_steps: int = 50,
        attempt: Attempt = disk.required,
    ) -> None:
        super().__init__(every_n_steps)
        require_tensorboard()
        self.attempt = attempt
        self.directory = Path(directory)
        self._writer: SummaryWriter | None = None
        self._newest = 0  # the step of the newest step record

    def on_fit_start(self, trainer: Trainer) -> None:
        self.watch(trainer, starts=True)
        if trainer.world.rank:
            return
        self.attempt("tensorboard", lambda: self._open(trainer.progress.step))

    def on_safe_point(self, trainer: Trainer) -> None:
        self.watch(trainer)
        self._add_steps(trainer.progress.step)

    def on_records(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self._add_steps(record["step"])
            told = ("lr",) if self._newest == record["step"] else ()
            self._add({name: value for name, value in record.items() if name not in told})
        if self._writer is not None:
            self.attempt("tensorboard", self._writer.flush)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self.attempt("tensorboard", self._writer.close)
            self._writer = None

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(
            str(self.directory), purge_step=step + 1 if step else None, flush_secs=_FLUSH_SECONDS
        )

    def _add_steps(self, until: int) -> None:
        for record in self.next_records(until):
            self._newest = record["step"]
            self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        if self._writer is not None:
            self.attempt("tensorboard", lambda: self._write(record))

    def _write(self, record: dict[str, Any]) -> None:
        assert self._writer is not None
        for name, value in record.items():
            drawn = isinstance(value, int | float) and name not in _NOT_DRAWN
            if drawn and math.isfinite(value):
                self._writer.add_scalar(name, value, record["step"])


def require_tensorboard() -> None:
    """Raise MissingPackageError unless event files can be written."""
    if find_spec("tensorboard") is None:
        raise MissingPackageError(
            "tensorboard is not installed; pip install 'gdtrain[tensorboard]'"
        )
