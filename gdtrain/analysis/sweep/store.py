"""A sweep on the disk: its plan, and a file for each row, so that none is lost or doubled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gdtrain.analysis.sweep.grid import Point, key_of
from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import OutputError
from gdtrain.output.run_directory import finite

PLAN = "sweep.json"
ROWS = "rows"
RUNS = "runs"

Row = dict[str, Any]


class SweepStore:
    """The directory of a sweep.

    ``sweep.json`` says which point has which number, for good; ``rows/<n>.json`` is the row of the
    run, written as a whole when it is over; ``runs/<n>`` is that run's own directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self, base: Any, *, resume: bool) -> None:
        """Raise OutputError if the directory can't be used for such runs; changes nothing."""
        self._points(json.loads(json.dumps(base)), resume=resume)

    def open(self, base: Any, points: Sequence[Point], *, resume: bool) -> list[int]:
        """The number of each point; those that are new come after those that are known.

        base: what all runs have in common, in plain values. Raises OutputError if the directory
        holds something else, or, with ``resume``, another sweep.
        """
        base = json.loads(json.dumps(base))
        known = self._points(base, resume=resume)
        self._make_directories()
        numbers = {key_of(point): number for number, point in enumerate(known, 1)}
        for point in points:
            if key_of(point) not in numbers:
                known.append(dict(point))
                numbers[key_of(point)] = len(known)
        text = json.dumps({"base": base, "points": known}, indent=1) + "\n"
        with disk.needed(PLAN):
            disk.replace_file(self.directory / PLAN, text.encode())
        return [numbers[key_of(point)] for point in points]

    def row(self, number: int) -> Row | None:
        """The row of a run that is over, or None."""
        path = self.directory / ROWS / f"{number}.json"
        if not path.is_file():
            return None
        row: Row = json.loads(path.read_text("utf-8"))
        return row

    def keep(self, number: int, row: Row) -> None:
        """Write a row; raises StorageError if that can't be done."""
        text = json.dumps(finite(row)) + "\n"
        with disk.needed(f"{ROWS}/{number}.json"):
            disk.replace_file(self.directory / ROWS / f"{number}.json", text.encode())

    def run_directory(self, number: int) -> Path:
        """Where a run leaves what it leaves."""
        return self.directory / RUNS / str(number)

    def _points(self, base: Any, *, resume: bool) -> list[Point]:
        """The points that are known, by their numbers."""
        path = self.directory / PLAN
        if self._is_free():
            return []
        if not resume:
            remedy = ", or resume the sweep in it" if path.is_file() else ""
            raise OutputError(f"{self.directory} is not empty; choose another directory{remedy}")
        if not path.is_file():
            raise OutputError(f"{self.directory} holds no sweep; give the directory of one")
        plan = json.loads(path.read_text("utf-8"))
        if plan["base"] != base:
            differ = [key for key in base if base[key] != plan["base"].get(key)]
            raise OutputError(
                f"{self.directory} holds a sweep of another configuration, which differs in "
                f"{', '.join(differ) or 'what it has'}; choose another directory"
            )
        known: list[Point] = plan["points"]
        return known

    def _is_free(self) -> bool:
        """Whether there is nothing in it, or the remains of a sweep that had not begun."""
        if not self.directory.is_dir():
            return True
        names = {path.name for path in self.directory.iterdir()}
        own = {ROWS, RUNS, f"{disk.UNFINISHED}{PLAN}"}
        rows = self.directory / ROWS
        return names <= own and not (rows.is_dir() and any(rows.iterdir()))

    def _make_directories(self) -> None:
        try:
            for name in (ROWS, RUNS):
                disk.make_directory(self.directory / name)
        except OSError as error:
            message = f"{self.directory} can't be made: {error.strerror}; choose another"
            raise OutputError(message) from error
