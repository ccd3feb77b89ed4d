"""The predict command: load a run's model, and write what it says of the rows of a file."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from gdtrain.checkpoint import durable_files as disk
from gdtrain.config.load_run import BadRows, OnBadRow, TrainedRun, load_run
from gdtrain.errors import ConfigError, DataError, Fault, OutputError
from gdtrain.output.terminal import say
from gdtrain.wording import counted, nearest

_AT_ONCE = 1 << 20  # bytes


def load_finished(run: Path, weights: str = "last") -> TrainedRun:
    """The model of a finished run, with its ``last``, ``averaged`` or ``best`` weights.

    Raises ConfigError if the directory holds none.
    """
    try:
        return load_run(run, averaged=weights == "averaged", best=weights == "best")
    except OutputError as error:
        raise ConfigError([Fault("RUN", str(error), "command line")]) from error


def predict_rows(
    run: Path,
    file: Path,
    out: Path | None,
    *,
    weights: str = "last",
    columns: Sequence[str] | None = None,
    on_bad_row: OnBadRow = "error",
) -> int:
    """Predict for the rows of ``file``; nothing is written unless all of them can be read.

    columns: those of the result that are written. on_bad_row: see :meth:`TrainedRun.predictions`.
    The result waits in a temporary file, so any number of rows takes little memory.
    """
    trained = load_finished(run, weights)
    if out is not None and out.exists() and file.exists() and out.samefile(file):
        raise refused_out(f"{out} is the table to predict for; choose another file")
    with ExitStack() as stack:
        if str(file) == "-":
            file = stack.enter_context(_kept_input())
        kept = stack.enter_context(_temporary(tempfile.TemporaryFile))
        header: list[str] | None = None
        bad_rows = BadRows()
        for part in trained.predictions(file, on_bad_row=on_bad_row, bad_rows=bad_rows):
            if header is None:
                header = list(part) if columns is None else _chosen(list(part), columns)
                _keep(kept, _as_csv([[name] for name in header]))
            _keep(kept, _as_csv([part[name] for name in header]))
        kept.seek(0)
        if bad_rows.count:
            what = "left out" if on_bad_row == "skip" else "without a prediction"
            first = _named(str(bad_rows.first), file)
            say(f"{counted(bad_rows.count, 'row')} {what}; the first: {first}")
        if out is None:
            with io.TextIOWrapper(kept, "utf-8", newline="") as text:
                shutil.copyfileobj(text, sys.stdout)
            return 0
        write_out(out, iter(partial(kept.read, _AT_ONCE), b""))
    return 0


def _as_csv(columns: Sequence[Sequence[object]]) -> bytes:
    """Columns of one length as lines, without a header.

    Arrow writes the digits of Python's ``repr``, ten times as fast: 100.0 is 100.
    """
    import pyarrow as pa
    from pyarrow import csv

    if len(columns) == 1 and None in columns[0]:  # readers pass over empty lines
        runs = groupby(columns[0], lambda value: value is None)
        return b"".join(b'""\n' * len([*run]) if no else _as_csv([[*run]]) for no, run in runs)
    text = io.BytesIO()
    table = pa.table(list(map(pa.array, columns)), list(map(str, range(len(columns)))))
    csv.write_csv(table, text, csv.WriteOptions(include_header=False, quoting_style="needed"))
    return text.getvalue()


@contextmanager
def _kept_input() -> Iterator[Path]:
    """Standard input as a file, since a table is looked at before it is read."""
    named = partial(tempfile.NamedTemporaryFile, prefix="gdtrain-", suffix=_KEPT)
    with _temporary(named) as file:
        while content := sys.stdin.buffer.read(_AT_ONCE):
            _keep(file, content)
        try:
            yield Path(file.name)
        except DataError as error:
            messages = (_named(str(each), Path(file.name)) for each in error.args)
            raise DataError(*messages) from error


def _named(message: str, file: Path) -> str:
    """A message about a file, or about standard input instead of the file that keeps it."""
    return message.replace(str(file), "standard input") if file.name.endswith(_KEPT) else message


_KEPT = "-standard-input"


def _temporary(make: Callable[[], Any]) -> Any:
    """A temporary file. Raises StorageError if there is no place for one."""
    with disk.needed("a temporary file"):
        return make()


def _keep(file: IO[bytes], content: bytes) -> None:
    """Write to a temporary file. Raises StorageError, naming its folder, if that can't be done."""
    with disk.needed(f"a temporary file in {tempfile.gettempdir()}"):
        file.write(content)
        file.flush()


def _chosen(there: list[str], wanted: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in there:
            near = nearest(name, there)
            hint = f"did you mean {near}?" if near else f"their columns are {', '.join(there)}"
            message = f"the predictions have no column {name!r}; {hint}"
            raise ConfigError([Fault("--columns", message, "command line")])
    return list(wanted)


def write_out(out: Path, data: bytes | Iterable[bytes]) -> None:
    """Put a result in the place of what may be there. Raises ConfigError if it can't be."""
    try:
        disk.replace_file(out, data)
    except OSError as error:
        raise refused_out(
            f"{out} can't be written: {error.strerror}; choose another file"
        ) from error


def refused_out(message: str) -> ConfigError:
    """The error of a place where nothing is to be written."""
    return ConfigError([Fault("--out", message, "command line")])
