"""Every point of a grid run once, whatever ends the sweep in between. Imports no torch."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from gdtrain.analysis.sweep.executor import Function, Workers
from gdtrain.analysis.sweep.grid import Point
from gdtrain.analysis.sweep.result import Mode, Row, Sweep
from gdtrain.analysis.sweep.store import SweepStore
from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import ConfigError, StorageError
from gdtrain.output.run_directory import locked
from gdtrain.output.terminal import DroppingStream, printable
from gdtrain.training.safety.signals import EndedBySignal
from gdtrain.wording import nearest

TABLE = "rows.csv"


def run_points(
    function: Function,
    points: Sequence[Point],
    settings: Sequence[str],
    *,
    store: SweepStore | None,
    base: Any,
    resume: bool,
    workers: Workers,
    by: str | None,
    mode: Mode | None = None,
    progress: bool | None = None,
    shown: Callable[[Any], Any] = lambda value: value,
) -> Sweep:
    """Run a function at each point whose row is not kept yet; see :func:`sweep`.

    function: (number, point) -> row; raises nothing that is a run's fault. store: keeps the rows.
    shown: a setting's value as the rows have it. A signal that ends
    the program leaves the rows so far, with ``ended_by`` set.
    """
    with _opened(store, base, points, resume=resume) as numbers:
        kept = {} if store is None else {number: store.row(number) for number in numbers}
        rows = {n: row for n, row in kept.items() if row is not None and not row.get("killed")}
        order = dict(zip(numbers, points, strict=True))
        swept = _Rows(order, settings, by, mode, store, rows)
        left = {number: point for number, point in order.items() if number not in rows}
        bar = _Bar(len(points), len(rows), progress)
        ended_by = 0
        try:
            with closing(workers.results(function, left)) as found:
                for number, measured in found:
                    point = {name: shown(value) for name, value in order[number].items()}
                    swept.add(number, {**point, "run": number, **measured})
                    bar.show(swept.table())
        except KeyboardInterrupt:
            ended_by = signal.SIGINT
        except EndedBySignal as ended:
            ended_by = ended.signum
        except BaseException:
            with suppress(StorageError):  # what went wrong before is what is to be told
                swept.keep_table()
            raise
        finally:
            bar.close()
        swept.keep_table()
        table = swept.table()
        table.ended_by = ended_by
        return table


@dataclass
class _Rows:
    """The rows of a sweep so far, by the numbers of their points; see :func:`run_points`."""

    points: Mapping[int, Point]
    settings: Sequence[str]
    by: str | None
    mode: Mode | None
    store: SweepStore | None
    rows: dict[int, Row]

    def add(self, number: int, row: Row) -> None:
        self.rows[number] = row  # first: a signal may come at any moment
        if self.store is not None:
            self.store.keep(number, row)
        _check_measure(self.by, row, self.settings)

    def table(self) -> Sweep:
        """In the order of the points."""
        done = (self.rows[number] for number in self.points if number in self.rows)
        missing = len(self.rows) < len(self.points)
        return Sweep(done, self.settings, self.by, interrupted=missing, mode=self.mode)

    def keep_table(self) -> None:
        """Write it, if there is a place for it."""
        if self.store is not None and self.rows:
            with disk.needed(TABLE):
                disk.replace_file(self.store.directory / TABLE, self.table().csv().encode())


def _check_measure(by: str | None, row: Row, settings: Sequence[str]) -> None:
    """Raise ConfigError for a run that is over without the number: it can't be compared by it."""
    if by is None or by in row or row["status"] != "done":
        return
    is_number = (isinstance(value, int | float) for value in row.values())
    own = {"run", *settings}
    there = [n for n, known in zip(row, is_number, strict=True) if known and n not in own]
    near = nearest(by, there)
    close = f"did you mean {near}? " if near else ""
    raise ConfigError.of("by", f"a run has no {by!r}; {close}it has {', '.join(there)}")


@contextmanager
def _opened(
    store: SweepStore | None, base: Any, points: Sequence[Point], *, resume: bool
) -> Iterator[list[int]]:
    """The points' numbers, in a directory that no other process sweeps in meanwhile."""
    if store is None:
        yield list(range(1, len(points) + 1))
        return
    numbers = store.open(base, points, resume=resume)
    with locked(store.directory):
        yield numbers


class _Bar:
    """One bar over all runs, with the best so far; shown: True, False, or on terminals."""

    def __init__(self, total: int, done: int, shown: bool | None) -> None:
        self._stream = DroppingStream(sys.stderr)
        if shown is None:
            shown = sys.stderr.isatty()
        self._bar: tqdm[Any] = tqdm(
            total=total, initial=done, unit="run", file=self._stream, disable=not shown, leave=False
        )

    def show(self, rows: Sweep) -> None:
        """Move on by a run."""
        best = rows.best
        if best is not None:
            setting = " ".join(f"{name}={best[name]}" for name in rows.settings)
            text = f"best {rows.by} {best[rows.by]:.4g} at {setting}"
            self._bar.set_postfix_str(printable(text), refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()
