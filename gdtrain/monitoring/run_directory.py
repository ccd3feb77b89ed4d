"""The output directory of a run: made without overwriting another, and its summary."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gdtrain
from gdtrain.errors import OutputError
from gdtrain.monitoring.metrics_log import finite
from gdtrain.training.trainer import Trainer

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
WEIGHTS = "model.safetensors"
PREPROCESSING = "preprocessing.json"
CHECKPOINTS = "checkpoints"


def new_directory(wanted: Path | None, name: str) -> Path:
    """Make the directory of a new run: ``wanted``, or the next free ``runs/<name>/<n>``.

    Raises OutputError if ``wanted`` is there already and not empty, or can't be made.
    """
    try:
        if wanted is not None:
            wanted.mkdir(parents=True, exist_ok=True)
            if any(wanted.iterdir()):
                raise OutputError(
                    f"{wanted} is not empty; choose another --output-dir, "
                    "or give --resume to go on with the run in it"
                )
            return wanted
        parent = _runs_of(name)
        parent.mkdir(parents=True, exist_ok=True)
        number = max(_numbers(parent), default=0)
        while True:
            number += 1
            try:
                (parent / str(number)).mkdir()
            except FileExistsError:
                continue
            return parent / str(number)
    except OSError as error:
        where = wanted or Path("runs") / name
        raise OutputError(f"{where} can't be made: {error.strerror}; choose another") from error


def latest_directory(wanted: Path | None, name: str) -> Path:
    """The directory of the run to resume: ``wanted``, or the newest ``runs/<name>/<n>``.

    Raises OutputError if there is none.
    """
    if wanted is not None:
        if not (wanted / CONFIG).is_file():
            raise OutputError(f"{wanted} holds no run to resume; check --output-dir")
        return wanted
    parent = _runs_of(name)
    numbers = _numbers(parent) if parent.is_dir() else []
    if not numbers:
        raise OutputError(f"{parent} holds no run to resume; give --output-dir, or omit --resume")
    return parent / str(max(numbers))


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole, so that nobody ever reads half of it.

    Raises OutputError if it can't be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, "utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}; choose another") from error


def write_summary(directory: Path, trainer: Trainer, status: str) -> dict[str, Any]:
    """Write summary.json, with null for numbers that are not finite, and return its content.

    status: ``done``, ``stopped`` (early), ``interrupted``, ``non_finite`` or ``failed``.
    """
    record = trainer.history.epochs[-1] if trainer.history.epochs else {}
    validation = {k.removeprefix("val_"): v for k, v in record.items() if k.startswith("val_")}
    summary = {
        "status": status,
        "reason": trainer.stop_reason,
        "epochs": trainer.progress.epoch,
        "steps": trainer.progress.step,
        "samples": trainer.progress.samples,
        "seconds": round(trainer.progress.seconds, 3),
        "train": {"loss": record["train_loss"]} if record else {},
        "validation": validation,
        "device": str(trainer.device),
        "engine": trainer.engine.name,
        "versions": {
            "gdtrain": gdtrain.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    write_text(directory / SUMMARY, json.dumps(finite(summary), indent=1) + "\n")
    return summary


def _runs_of(name: str) -> Path:
    """``runs/<name>``. Raises OutputError if that is no directory of its own in ``runs``."""
    if name in ("", ".", ".."):
        raise OutputError(
            f"a configuration named {name!r} has no place in runs; rename it, or give this option"
        )
    parent = Path("runs") / name
    if parent.is_symlink():
        raise OutputError(
            f"{parent} is a symbolic link, and may lead out of runs; remove it, or give this option"
        )
    return parent


def _numbers(parent: Path) -> list[int]:
    names = (path.name for path in parent.iterdir())
    return [int(name) for name in names if name.isascii() and name.isdigit()]
