"""Run the command line on generated input, and see what became of it."""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gdtrain.cli.main import main

CONFIG = "a.yaml"
# A case that takes longer hangs, on a busy machine too.
MOST_SECONDS = 120.0
# What a case may have beside what the process has already: a machine of some other size.
MEMORY = 4 << 30
FAULT = re.compile(r"(?s)(note: .+|rank \d: .+|[^\n]*?:\d+:\d+: [^\n]+)")


@dataclass(frozen=True)
class Case:
    """Input for the command line: its arguments, and files that differ.

    files: name -> content; None for a file that is not there. made: what a command writes that
    is no training.
    """

    kind: str
    arguments: list[str]
    files: dict[str, bytes | None]
    made: str | None = None


@dataclass
class Outcome:
    """What became of a case; ``fault`` says what is wrong with it, if anything is."""

    code: int | None
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    traceback: str = ""
    hung: bool = False
    left: list[str] = field(default_factory=list)

    @property
    def fault(self) -> str:
        if self.hung:
            return f"hung for over {MOST_SECONDS:g} s"
        if self.traceback:
            return self.traceback
        if self.left:
            return f"files left or changed: {self.left}"
        told = [line for line in self.err.splitlines() if not line.startswith("note: ")]
        if self.code == 0 or (
            self.code == 3 and told and told[0].startswith(("gdtrain: loss", "gdtrain: gradient"))
        ):
            return ""
        if self.code != 2:
            return f"exit code {self.code}: {self.err}"
        if self.out:
            return f"printed {self.out!r} beside the faults"
        lines = self.err.splitlines()
        if not any(not line.startswith("note: ") for line in lines):
            return f"no fault was told: {self.err!r}"
        bad = [line for line in lines if not FAULT.fullmatch(line)]
        return f"not FILE:LINE:COLUMN: {bad[0]!r}" if bad else ""


class Hang(BaseException):
    """Raised by the alarm."""


def run_case(case: Case, folder: Path) -> Outcome:
    """Run a case: training as a dry run, and again without ``--dry-run`` if it was refused.

    folder: the working directory, which holds the data files; they come back as they were.
    """
    with _files_of(case, folder):
        before = _listing(folder)
        if case.made is None:
            outcome = _trained(case)
        else:
            outcome = _run(case.arguments)
            if outcome.code == 0:
                shutil.rmtree(folder / case.made)
        after = _listing(folder)
        outcome.left = sorted({name for name, _ in before.items() ^ after.items()})
        return outcome


def _trained(case: Case) -> Outcome:
    given = ["--config", CONFIG, *case.arguments]
    outcome = _run([*given, "--dry-run"])
    # What the first update needs shows as it is made, and then a run has begun.
    by_update = "training needs more memory" in outcome.err
    if outcome.code == 2 and not outcome.fault and not by_update:
        again = _run(given)
        if (again.code, again.err) != (2, outcome.err):
            again.traceback = again.traceback or (
                f"refused only in the dry run; exit code {again.code}: {again.err}"
            )
            return again
    return outcome


def _run(arguments: list[str]) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    outcome = Outcome(None)
    started = time.perf_counter()
    before = signal.signal(signal.SIGALRM, _alarm)
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            limited_memory(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
            try:
                outcome.code = main(arguments)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except Hang:
        outcome.hung = True
        outcome.traceback = traceback.format_exc()
    except BaseException:
        outcome.traceback = traceback.format_exc()
    finally:
        signal.signal(signal.SIGALRM, before)
    outcome.seconds = time.perf_counter() - started
    outcome.out, outcome.err = out.getvalue(), err.getvalue()
    return outcome


def _alarm(signum: int, frame: Any) -> None:
    raise Hang


@contextmanager
def limited_memory(beside: int = MEMORY) -> Iterator[None]:
    """Let the process have ``beside`` bytes of address space more than it has now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + beside, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextmanager
def _files_of(case: Case, folder: Path) -> Iterator[None]:
    kept: dict[Path, bytes | None] = {}
    for name, content in case.files.items():
        path = folder / name
        kept[path] = path.read_bytes() if path.exists() else None
        _put(path, content)
    try:
        yield
    finally:
        for path, content in kept.items():
            _put(path, content)


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)


def _listing(folder: Path) -> dict[str, Any]:
    """Everything in the folder, and what would change if it were written to."""
    found: dict[str, Any] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(parent, name))  # noqa: PTH118
            said = (status.st_mode, status.st_size, status.st_mtime_ns)
            found[os.path.join(parent, name)] = said  # noqa: PTH118
    return found
