"""How a run has ended, in numbers: its summary."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gdtrain.checkpoint import durable_files as disk
from gdtrain.data.tables.column import Column
from gdtrain.output.metrics_file import finite
from gdtrain.output.run_directory import SUMMARY
from gdtrain.training.trainer import Trainer
from gdtrain.version import __version__


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, with null for numbers that are not finite."""
    text = json.dumps(finite(summary), indent=1) + "\n"
    disk.replace_file(directory / SUMMARY, text.encode())


def summary_of(
    trainer: Trainer,
    status: str,
    baseline: dict[str, Any] | None = None,
    columns: Sequence[Column] | None = None,
    test: dict[str, float] | None = None,
) -> dict[str, Any]:
    """How a run has ended, in numbers: the content of summary.json.

    status: ``done``, ``stopped`` (early), ``interrupted``, ``non_finite`` or ``failed``. baseline:
    loss and metrics of a constant prediction on the validation part. columns: of the table that was
    trained on, if it was one. test: loss and metrics on the test part, if there is one.
    """
    record = trainer.history.epochs[-1] if trainer.history.epochs else {}
    validation = {k.removeprefix("val_"): v for k, v in record.items() if k.startswith("val_")}
    return {
        "status": status,
        "reason": trainer.stop_reason,
        "epochs": trainer.progress.epoch,
        "steps": trainer.progress.step,
        "samples": trainer.progress.samples,
        "seconds": round(trainer.progress.seconds, 3),
        "train": {"loss": record["train_loss"]} if record else {},
        "validation": validation,
        **({} if test is None else {"test": test}),
        **({} if baseline is None else {"baseline": baseline}),
        **({} if columns is None else {"columns": _counts(columns)}),
        "device": str(trainer.device),
        "engine": trainer.engine.name,
        "versions": {
            "gdtrain": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _counts(columns: Sequence[Column]) -> dict[str, int]:
    """How many columns of each kind a table has, and how many inputs they make."""
    kinds = [column.kind for column in columns]
    return {
        "numbers": kinds.count("number"),
        "dates": kinds.count("date"),
        "categories": kinds.count("category"),
        "inputs": sum(column.width for column in columns),
    }
