"""The predict command: load a run's model, and write what it says of the rows of a file."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from gdtrain.checkpoint import durable_files as disk
from gdtrain.config.load_run import OnBadRow, TrainedRun, load_run
from gdtrain.errors import ConfigError, Fault, OutputError

_AT_ONCE = 1 << 20  # characters


def load_finished(run: Path, *, averaged: bool = False) -> TrainedRun:
    """The model of a finished run. Raises ConfigError if the directory holds none."""
    try:
        return load_run(run, averaged=averaged)
    except OutputError as error:
        raise ConfigError([Fault("RUN", str(error), "command line")]) from error


def predict_rows(
    run: Path,
    file: Path,
    out: Path | None,
    *,
    averaged: bool = False,
    columns: Sequence[str] | None = None,
    on_bad_row: OnBadRow = "error",
) -> int:
    """Predict for the rows of ``file``; nothing is written unless all of them can be read.

    columns: those of the result that are written. on_bad_row: see :meth:`TrainedRun.predictions`.
    The result waits in a temporary file, so any number of rows takes little memory.
    """
    trained = load_finished(run, averaged=averaged)
    with ExitStack() as stack:
        if str(file) == "-":
            file = stack.enter_context(_kept_input())
        kept = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", newline=""))
        header: list[str] | None = None
        for part in trained.predictions(file, on_bad_row=on_bad_row):
            if header is None:
                header = list(part) if columns is None else _chosen(list(part), columns)
                kept.write(_as_csv([header]))
            kept.write(_as_csv(zip(*(part[name] for name in header), strict=True)))
        kept.seek(0)
        if out is None:
            shutil.copyfileobj(kept, sys.stdout)
            return 0
        parts = iter(partial(kept.read, _AT_ONCE), "")
        write_out(out, (part.encode() for part in parts))
    return 0


def _as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as text; written to a file at once, which is several times faster than one by one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@contextmanager
def _kept_input() -> Iterator[Path]:
    """Standard input as a file, since a table is looked at before it is read."""
    with tempfile.NamedTemporaryFile(prefix="gdtrain-", suffix="-standard-input") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


def _chosen(there: list[str], wanted: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in there:
            message = f"{name!r} is no column of the predictions; they have {', '.join(there)}"
            raise ConfigError([Fault("--columns", message, "command line")])
    return list(wanted)


def write_out(out: Path, data: bytes | Iterable[bytes]) -> None:
    """Put a result in the place of what may be there. Raises ConfigError if it can't be."""
    try:
        disk.replace_file(out, data)
    except OSError as error:
        message = f"{out} can't be written: {error.strerror}; choose another file"
        raise ConfigError([Fault("--out", message, "command line")]) from error
