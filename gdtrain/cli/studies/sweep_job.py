"""The sweep command: check the grid, run it side by side, print and keep the results.

It imports no torch, so that workers, which do, are started at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

from gdtrain.analysis.sweep.executor import Workers
from gdtrain.analysis.sweep.grid import Point, points_of
from gdtrain.analysis.sweep.result import Mode, Row, Sweep
from gdtrain.analysis.sweep.run_points import TABLE, run_points
from gdtrain.analysis.sweep.store import RUNS, SweepStore
from gdtrain.checkpoint import durable_files as disk
from gdtrain.config.grid import SweepConfig, plain
from gdtrain.errors import ConfigError, Fault
from gdtrain.output import run_directory
from gdtrain.output.terminal import printable, say
from gdtrain.training.safety.signals import EndedBySignal, current_desk
from gdtrain.wording import counted

REPORT = "report.html"


@dataclass
class SweepJob:
    """One run of the sweep command.

    imports: modules that every worker imports, for parts of a user's own. results: where the
    rows go as JSON, if that is asked for. The others are the command's options.
    """

    loaded: SweepConfig
    imports: Sequence[str]
    jobs: int = 1
    cluster: str | None = None
    random: int | None = None
    by: str | None = None
    mode: Mode | None = None
    output_dir: Path | None = None
    resume: bool = False
    quiet: bool = False
    results: TextIO | None = None

    def run(self) -> int:
        """Run what is not done yet; return the exit code."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            message = "sweep starts its own processes; start it without torchrun"
            raise ConfigError([Fault("WORLD_SIZE", message, "environment")])
        workers = Workers(self.jobs, self.cluster)
        points = points_of(self.loaded.grid, random=self.random)
        self.loaded.check(points)
        store = self._store()
        with workers:
            self._try_first(points[0], workers)
            store = store or SweepStore(run_directory.new_directory(None, "sweep"))
            self._tell(f"{counted(len(points), 'run')}; results go to {store.directory}")
            rows = self._run(points, store, workers)
        if self.results is not None:
            found = {"rows": list(rows), "by": rows.by, "sentence": rows.sentence()}
            print(json.dumps(found, allow_nan=False), file=self.results)
        elif not self.quiet:
            print(printable(str(rows)))
        report = store.directory / REPORT
        with disk.needed(REPORT):
            disk.replace_file(report, rows.html().encode())
        self._tell(
            f"the runs are in {store.directory / RUNS}, their rows in {store.directory / TABLE}; "
            f"look at {report}"
        )
        if rows.ended_by:
            with suppress(EndedBySignal):  # which is done with
                current_desk().watch(lambda _: None, lambda: None)
            way = f"the same command with --output-dir {quote(str(store.directory))} --resume"
            say(f"interrupted; to go on, give {way}")
            return 128 + rows.ended_by
        return 1 if all(row["status"] == "failed" for row in rows) else 0

    def _tell(self, text: str) -> None:
        if not self.quiet:
            say(text)

    def _run(self, points: list[Point], store: SweepStore, workers: Workers) -> Sweep:
        base = self.loaded.document.data
        runs = store.directory.resolve() / RUNS
        function = partial(_train_point, base, list(self.imports), runs)
        return run_points(
            function,
            points,
            list(self.loaded.grid),
            store=store,
            base=base,
            resume=self.resume,
            workers=workers,
            by=self.by,
            mode=self.mode,
            shown=plain,
            progress=False if self.quiet else None,
        )

    def _store(self) -> SweepStore | None:
        if self.output_dir is None:
            return None
        store = SweepStore(self.output_dir)
        store.check(self.loaded.document.data, resume=self.resume)
        return store

    def _try_first(self, point: Point, workers: Workers) -> None:
        """Build the first run where it would be trained, before anything is written.

        Every worker does, so that all of them import and read the data at the same time.
        """
        function = partial(_fault_of, self.loaded, list(self.imports))
        for _, answer in workers.results(function, dict.fromkeys(range(workers.jobs), point)):
            if answer["faults"]:
                raise ConfigError(answer["faults"])


def _train_point(*arguments: Any) -> Row:
    from gdtrain.cli.studies.sweep_run import train_point

    return train_point(*arguments)


def _fault_of(*arguments: Any) -> Row:
    from gdtrain.cli.studies.sweep_run import fault_of

    return fault_of(*arguments)
