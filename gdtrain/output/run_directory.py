"""The directory of a run: made without overwriting another, and what a run has recorded in it.

Imports no torch, and nothing that only writing needs.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import OutputError

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
WEIGHTS = "model.safetensors"
AVERAGED = "averaged.safetensors"
PREPROCESSING = "preprocessing.json"
CHECKPOINTS = "checkpoints"
PICTURE = "loss.png"
CSV = "metrics.csv"
TENSORBOARD = "tensorboard"
TRAJECTORY = "trajectory.npz"
_WRITTEN = (
    CONFIG,
    METRICS,
    SUMMARY,
    WEIGHTS,
    AVERAGED,
    PREPROCESSING,
    CHECKPOINTS,
    PICTURE,
    CSV,
    TENSORBOARD,
    TRAJECTORY,
)


def new_directory(wanted: Path | None, name: str) -> Path:
    """Make the directory of a new run: ``wanted``, or the next free ``runs/<name>/<n>``.

    Raises OutputError if ``wanted`` is there already and holds something else than the remains
    of a run that ended before it began, or can't be made or written to.
    """
    try:
        if wanted is not None:
            disk.make_directory(wanted)
            if not os.access(wanted, os.W_OK | os.X_OK):
                raise OutputError(f"{wanted} can't be written to; choose another")
            if any(wanted.iterdir()):
                _clear_remains(wanted)
            if any(wanted.iterdir()):
                raise OutputError(_not_empty(wanted))
            return wanted
        parent = _runs_of(name)
        disk.make_directory(parent)
        number = max(_numbers(parent), default=0)
        while True:
            number += 1
            try:
                (parent / str(number)).mkdir()
            except FileExistsError:
                continue
            disk.sync_directory(parent)
            return parent / str(number)
    except OSError as error:
        where = wanted or Path("runs") / name
        raise OutputError(f"{where} can't be made: {error.strerror}; choose another") from error


def _not_empty(wanted: Path) -> str:
    """What to do about a directory that is taken: the run in it can be resumed, if there is one."""
    message = f"{wanted} is not empty; choose another --output-dir"
    if (wanted / CONFIG).is_file():
        message += ", or give --resume to continue the run in it"
    return message


def latest_directory(
    wanted: Path | None, name: str, way_out: str = "omit --resume to start one"
) -> Path:
    """The directory of the run to resume: ``wanted``, or the newest ``runs/<name>/<n>``.

    Raises OutputError if there is none, or if something in it is a link to somewhere else.
    """
    directory = wanted
    if directory is None:
        parent = _runs_of(name)
        numbers = _numbers(parent) if parent.is_dir() else []
        if not numbers:
            message = f"{parent} holds no run to resume; give --output-dir, or omit --resume"
            raise OutputError(message)
        directory = parent / str(max(numbers))
    disk.check_inside(directory, _WRITTEN)
    if not (directory / CONFIG).is_file():
        if directory.is_file():
            raise OutputError(no_run(directory, "holds no run"))
        near = newest_inside(directory)
        raise OutputError(f"{directory} holds no run{near or f'; {way_out}'}")
    return directory


def no_run(path: Path, why: str) -> str:
    """What is wrong with a path that should be a run's directory, and which may be meant.

    why: what is wrong with a directory.
    """
    if path.is_file():
        return f"{path} is a file; give a run's directory"
    if not path.is_dir():
        return f"{path} does not exist"
    return f"{path} {why}{newest_inside(path)}"


def newest_inside(directory: Path) -> str:
    """Which run in a directory that is none itself is likely meant, as words; "" if it has none.

    >>> newest_inside(Path("nowhere"))
    ''
    """
    try:
        numbers = _numbers(directory) if directory.is_dir() else []
        runs = [n for n in numbers if (directory / str(n) / CONFIG).is_file()]
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""
    return f"; did you mean {directory / str(max(runs))}, the newest run in it?" if runs else ""


def has_begun(wanted: Path | None, name: str) -> bool:
    """Whether :func:`latest_directory` would give a directory."""
    try:
        latest_directory(wanted, name)
    except OutputError:
        return False
    return True


@contextmanager
def locked(directory: Path | None, *, waits: bool = False) -> Iterator[None]:
    """Keep a run to one process at a time; the system ends the lock with the process.

    waits: until another process that trains in ``directory`` has ended; else OutputError is
    raised. With None, does nothing.
    """
    if directory is None:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError as error:
            message = f"another process is training in {directory}; wait for it, or end it"
            raise OutputError(message) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def _clear_remains(directory: Path) -> None:
    """Remove what a run has left that was ended before its first checkpoint was complete.

    It had no config.yaml yet, and so could not be resumed.
    """
    names = {path.name for path in directory.iterdir()}
    own = {PREPROCESSING, CHECKPOINTS}
    if not all(n in own or n.startswith(disk.UNFINISHED) for n in names):
        return
    kept = directory / CHECKPOINTS
    if kept.is_symlink():
        return  # to somebody else's
    from gdtrain.checkpoint.checkpoints import CheckpointStore  # which imports torch

    if kept.is_dir() and not CheckpointStore(kept).holds_only_the_first():
        return
    if kept.is_dir():
        CheckpointStore(kept).clear()
    (directory / PREPROCESSING).unlink(missing_ok=True)
    disk.remove_unfinished(directory)


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


# ── what a run has recorded, read back ──────────────────────────────────────────────────────────


def finite(value: Any) -> Any:
    """A record with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl as one undisturbed run would have written them.

    What a resumed run made again is there once, from the resumed run; a last line that a crash
    cut short is left out, and so is what is no record.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        return records_of(file)


def records_of(lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """The same for lines, in the order of the file."""
    records: list[dict[str, Any]] = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            continue
        if not all(isinstance(record.get(key), int) for key in ("step", "epoch")):
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


def broken_of(directory: Path) -> dict[str, Any] | None:
    """The update that a number that was not finite has made impossible, if that ended the run."""
    path = directory / SUMMARY
    try:
        summary = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return None
    known = isinstance(summary, dict) and summary.get("status") == "non_finite"
    if not known or type(summary.get("steps")) is not int:
        return None
    seconds = summary.get("seconds")
    return {
        "step": summary["steps"] + 1,
        "seconds": seconds if isinstance(seconds, int | float) else 0.0,
    }
