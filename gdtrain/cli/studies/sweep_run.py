"""One run of a sweep, in whatever process it is trained: as the train command would, but quiet."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from gdtrain.analysis.sweep.grid import Point
from gdtrain.cli.options import import_modules
from gdtrain.cli.runs.train_job import TrainJob, faults_placed
from gdtrain.config.build import build
from gdtrain.config.data import SharedSources
from gdtrain.config.grid import SweepConfig, run_document
from gdtrain.config.load import check
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import Document
from gdtrain.errors import ConfigError, reason_of
from gdtrain.output import run_directory
from gdtrain.training.safety.signals import SignalDesk

_one_at_a_time = threading.Lock()  # of a Dask worker's threads: the generators are the process's
_sources = SharedSources()  # the data that this process has read

Row = dict[str, Any]


def train_point(base: Any, imports: Sequence[str], runs: Path, number: int, point: Point) -> Row:
    """Train one run, or go on with it, and give its row; what went wrong is in it."""
    with _one_at_a_time, _in_worker(imports):
        directory = runs / str(number)
        try:
            document = run_document(Document("", base), point)
            if directory.is_dir():
                with run_directory.locked(directory, waits=True):
                    pass  # a worker of a sweep that was killed may still have trained there
            job = TrainJob(
                _quiet(check(document)),
                document,
                "",
                SignalDesk(takes_signals=False),
                output_dir=directory,
                resume=run_directory.has_begun(directory, ""),
                quiet=True,
                sources=_sources,
            )
            job.run()
            return _row(directory)
        except ConfigError as error:
            reason = "; ".join(f"{fault.key}: {fault.message}" for fault in error.faults)
            return {"status": "failed", "reason": reason}
        except Exception as error:
            return {"status": "failed", "reason": reason_of(error)}


def fault_of(loaded: SweepConfig, imports: Sequence[str], _number: int, point: Point) -> Row:
    """Build a run without training it: ``faults``, what is wrong with its configuration."""
    with _one_at_a_time, _in_worker(imports):
        try:
            own = run_document(loaded.document, point, loaded.numbers)
            with faults_placed(own):
                build(_quiet(check(own)), sources=_sources)
        except ConfigError as error:
            return {"faults": list(error.faults)}
        return {"faults": []}


def _row(directory: Path) -> Row:
    """The numbers that the run has left, flat."""
    summary = json.loads((directory / run_directory.SUMMARY).read_text("utf-8"))
    status = {"non_finite": "diverged"}.get(summary["status"], summary["status"])
    return {
        "status": status,
        "reason": summary["reason"],
        "epochs": summary["epochs"],
        "updates": summary["steps"],
        "seconds": summary["seconds"],
        **{f"train_{name}": value for name, value in summary["train"].items()},
        **{f"val_{name}": value for name, value in summary["validation"].items()},
    }


def _quiet(config: Config) -> Config:
    """No picture for each run, which would take as long as a short run; ``plot`` draws them."""
    log = config.log.model_copy(update={"picture": False})
    return config.model_copy(update={"log": log})


@contextmanager
def _in_worker(imports: Sequence[str]) -> Iterator[None]:
    """Nothing on the terminal, which is the sweep's; Ctrl-C is for the parent alone to take."""
    if threading.current_thread() is threading.main_thread() and os.environ.get("LOKY_WORKER"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with redirect_stderr(io.StringIO()):
        if imports:
            import_modules(list(imports))
        yield
