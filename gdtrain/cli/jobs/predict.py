"""The predict command: load a run's model, and write what it says of the rows of a file."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from gdtrain.checkpoint import durable_files as disk
from gdtrain.config.load_run import TrainedRun, load_run
from gdtrain.errors import ConfigError, Fault, OutputError


def load_finished(run: Path, *, averaged: bool = False) -> TrainedRun:
    """The model of a finished run. Raises ConfigError if the directory holds none."""
    try:
        return load_run(run, averaged=averaged)
    except OutputError as error:
        raise ConfigError([Fault("RUN", str(error), "command line")]) from error


def predict_rows(run: Path, file: Path, out: Path | None, *, averaged: bool = False) -> int:
    """Predict for the rows of ``file``; nothing is written unless all of them can be read."""
    trained = load_finished(run, averaged=averaged)
    columns = trained.columns_of(trained.predict_csv(file))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    if out is None:
        sys.stdout.write(text.getvalue())
        return 0
    write_out(out, text.getvalue().encode())
    return 0


def write_out(out: Path, data: bytes) -> None:
    """Put a result in the place of what may be there. Raises ConfigError if it can't be."""
    try:
        disk.replace_file(out, data)
    except OSError as error:
        message = f"{out} can't be written: {error.strerror}; choose another file"
        raise ConfigError([Fault("--out", message, "command line")]) from error
