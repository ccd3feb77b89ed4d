"""metrics.jsonl: what happened in a run, one JSON object a line, only ever added to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gdtrain.checkpoint.durable_files import needed
from gdtrain.output.metrics_file import finite
from gdtrain.output.metrics_file import read_metrics as read_metrics
from gdtrain.output.step_log import StepLog
from gdtrain.training.trainer import Trainer


class MetricsLog(StepLog):
    """Writes three kinds of lines:

    * ``{"kind": "step", "step", "epoch", "loss", "lr", "seconds"}`` every k updates, and after
      those at which a monitor has looked, with what other callbacks report of that step;
    * ``{"kind": "epoch", "epoch", "step", "samples", "train_loss", …, "lr", "seconds"}``;
    * ``{"kind": "resume", "epoch", "step"}`` where a run was taken up again from a checkpoint:
      lines above it that lie after that step were made again below it.

    Numbers that are not finite are written as null. :func:`read_metrics` reads the file back.
    Raises StorageError if the disk fails, since no resumed run could fill the gap.
    """

    def __init__(self, path: Path, every_n_steps: int = 50) -> None:
        super().__init__(every_n_steps)
        self.path = path

    def on_fit_start(self, trainer: Trainer) -> None:
        super().on_fit_start(trainer)
        if not self.path.exists():
            with needed("the log"):
                self.path.touch()  # a run that fails at once has a log too
        else:
            self._end_line()
            progress = trainer.progress
            self._write({"kind": "resume", "epoch": progress.epoch, "step": progress.step})

    def on_safe_point(self, trainer: Trainer) -> None:
        self._write({"kind": "step", **self.step_record(trainer)})

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self._write({"kind": "epoch", **record, "seconds": round(record["seconds"], 6)})

    def _write(self, record: dict[str, Any]) -> None:
        with needed("the log"), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")

    def _end_line(self) -> None:
        """Close a line that a crash cut short, so that nothing is written behind it."""
        with needed("the log"), self.path.open("rb+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")
