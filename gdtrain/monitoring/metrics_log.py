"""metrics.jsonl: what happened in a run, one JSON object a line, only ever added to."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gdtrain.checkpoint.disk import needed
from gdtrain.training.callbacks import Callback
from gdtrain.training.trainer import Trainer


class MetricsLog(Callback):
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
        super().__init__(every_n_steps=every_n_steps)
        self.path = path
        self._others: list[Callback] = []

    def is_due(self, step: int) -> bool:
        return super().is_due(step) or any(c.reported_at == step for c in self._others)

    def on_fit_start(self, trainer: Trainer) -> None:
        self._others = trainer.callbacks
        if not self.path.exists():
            with needed("the log"):
                self.path.touch()  # a run that fails at once has a log too
        else:
            self._end_line()
            progress = trainer.progress
            self._write({"kind": "resume", "epoch": progress.epoch, "step": progress.step})

    def on_safe_point(self, trainer: Trainer) -> None:
        progress = trainer.progress
        self._write(
            {
                "kind": "step",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "loss": float(progress.losses[-1]),
                "lr": trainer.lr,
                "seconds": round(progress.seconds, 6),
                **{
                    k: v
                    for c in self._others
                    if _is_of(c, progress.step)
                    for k, v in c.report().items()
                },
            }
        )

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


def _is_of(callback: Callback, step: int) -> bool:
    return callback.reported_at in (None, step)


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for numbers that are not finite, which JSON does not have."""
    return {key: _or_null(value) for key, value in record.items()}


def _or_null(value: Any) -> Any:
    if isinstance(value, dict):
        return finite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl as one undisturbed run would have written them.

    What a resumed run made again is there once, from the resumed run; a last line that a crash
    cut short is left out.
    """
    records: list[dict[str, Any]] = []
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["kind"] == "resume":
            records = [r for r in records if _is_before(r, record)]
        else:
            records.append(record)
    return records


def _is_before(record: dict[str, Any], resume: dict[str, Any]) -> bool:
    if record["kind"] == "epoch":
        return bool(record["epoch"] <= resume["epoch"])
    return bool(record["step"] <= resume["step"])
