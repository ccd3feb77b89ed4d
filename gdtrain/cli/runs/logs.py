"""What a run leaves to be read, besides metrics.jsonl: its summary, tables and a picture."""

from __future__ import annotations

import gc
import json
import logging
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gdtrain.analysis.monitors.trajectory import Trajectory
from gdtrain.checkpoint import durable_files as disk
from gdtrain.config.schema import Config, LogSection
from gdtrain.data.tables.preparation import Column
from gdtrain.errors import ConfigError, MissingPackageError
from gdtrain.output import run_directory
from gdtrain.output.metrics_csv import MetricsCsv
from gdtrain.output.metrics_file import broken_of, finite, read_metrics
from gdtrain.output.metrics_log import MetricsLog
from gdtrain.output.plots import curves, style
from gdtrain.output.plots.curves import RunLog, labels
from gdtrain.output.tensorboard import TensorBoard, require_tensorboard
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer
from gdtrain.version import __version__

logger = logging.getLogger("gdtrain")

# Reading more would make the end of a run wait; the command plot takes its time.
_MOST_BYTES = 16 << 20


def check_tensorboard() -> None:
    """Raise ConfigError if its package is missing."""
    try:
        require_tensorboard()
    except MissingPackageError as error:
        raise ConfigError.of("log.tensorboard", f"{error}, or remove it") from error


def callbacks(
    section: LogSection, log: MetricsLog, trainer: Trainer, directory: Path
) -> list[Callback]:
    """The callbacks that write a run's numbers into its directory, for rank 0; log: the first."""
    attempt = log.faults.attempt
    for callback in trainer.callbacks:
        if isinstance(callback, Trajectory):
            callback.path, callback.attempt = directory / run_directory.TRAJECTORY, attempt
    kept: list[Callback] = [log]
    if section.tensorboard:
        events = directory / run_directory.TENSORBOARD
        kept.append(TensorBoard(events, section.every_n_steps, attempt))
    if section.csv:
        kept.append(MetricsCsv(log.path, directory / run_directory.CSV, attempt))
    return kept


def draw_loss(config: Config, directory: Path, *, is_broken: bool) -> str:
    """Leave loss.png in the directory of a run that is over; say where it is, or why there is none.

    is_broken: whether a number that was not finite has ended it. Whatever goes wrong is a note:
    the run is done.
    """
    if not config.log.picture:
        return ""
    if not style.is_installed():
        return f"no {run_directory.PICTURE}: {style.MISSING}"
    metrics = directory / run_directory.METRICS
    try:
        if metrics.stat().st_size > _MOST_BYTES:
            logger.warning(
                "%s was not drawn, since the log is long; python -m gdtrain plot %s draws it",
                *(run_directory.PICTURE, directory),
            )
            return ""
        with _in_haste():
            (label,) = labels([directory])
            broken = broken_of(directory) if is_broken else None
            standardized = config.data.standardize_targets
            log = RunLog.of(label, read_metrics(metrics), config.loss.name, broken, standardized)
            if log.steps or log.epochs:
                picture = directory / run_directory.PICTURE
                style.save(curves.picture([log]), picture)
                return f"drawn: {picture}"
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s was not drawn: %s", run_directory.PICTURE, message)
    return ""


@contextmanager
def _in_haste() -> Iterator[None]:
    """Import and draw without looking for garbage, a quarter of the time, and without remarks."""
    collecting, remarks = gc.isenabled(), logging.getLogger("matplotlib")
    level = remarks.level
    gc.disable()
    remarks.setLevel(logging.ERROR)  # such as that it builds its cache of fonts
    try:
        yield
    finally:
        remarks.setLevel(level)
        if collecting:
            gc.enable()


# ── summary.json ────────────────────────────────────────────────────────────────────────────


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, with null for numbers that are not finite."""
    text = json.dumps(finite(summary), indent=1) + "\n"
    disk.replace_file(directory / run_directory.SUMMARY, text.encode())


def summary_of(
    trainer: Trainer,
    status: str,
    baseline: dict[str, Any] | None = None,
    columns: Sequence[Column] | None = None,
    test: dict[str, float] | None = None,
    validation: dict[str, float] | None = None,
) -> dict[str, Any]:
    """How a run has ended, in numbers: the content of summary.json.

    status: ``done``, ``stopped`` (early), ``interrupted``, ``non_finite`` or ``failed``. baseline:
    loss and metrics of a constant prediction on the validation part. columns: of the table that was
    trained on, if it was one. test: loss and metrics on the test part, if there is one. validation:
    those on the validation part, where the last epoch's record has none.
    """
    record = trainer.history.epochs[-1] if trainer.history.epochs else {}
    recorded = {k.removeprefix("val_"): v for k, v in record.items() if k.startswith("val_")}
    return {
        "status": status,
        "reason": trainer.stop_reason,
        "epochs": trainer.progress.epoch,
        "steps": trainer.progress.step,
        "samples": trainer.progress.samples,
        "seconds": round(trainer.progress.seconds, 3),
        "train": {"loss": record["train_loss"]} if record else {},
        "validation": recorded if validation is None else validation,
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
