"""Every point of a grid run once, whatever ends the sweep in between. Imports no torch."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from gdtrain.analysis.sweep.executor import Function, Workers
from gdtrain.analysis.sweep.grid import Point
from gdtrain.analysis.sweep.progress import SweepProgress
from gdtrain.analysis.sweep.result import Mode, Row, Sweep
from gdtrain.analysis.sweep.store import SweepStore
from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import ConfigError, StorageError
from gdtrain.near_names import nearest
from gdtrain.output.run_directory import locked
from gdtrain.training.safety.signals import EndedBySignal

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
    rows: dict[int, Row] = {}
    with _opened(store, base, points, resume=resume) as numbers:
        left: dict[int, Point] = {}
        for number, point in zip(numbers, points, strict=True):
            row = None if store is None else store.row(number)
            if row is None or row.get("killed"):
                left[number] = point
            else:
                rows[number] = row
        ended_by = 0
        order = dict(zip(numbers, points, strict=True))

        def swept() -> Sweep:
            done = (rows[number] for number in numbers if number in rows)
            missing = len(rows) < len(points)
            return Sweep(done, settings, by, interrupted=missing, mode=mode)

        def keep_table() -> None:
            if store is not None and rows:
                with disk.needed(TABLE):
                    disk.replace_file(store.directory / TABLE, swept().csv().encode())

        bar = SweepProgress(len(points), len(rows), progress)
        try:
            with closing(workers.results(function, left)) as found:
                for number, measured in found:
                    point = {name: shown(value) for name, value in order[number].items()}
                    row = {**point, "run": number, **measured}
                    rows[number] = row  # first: a signal may come at any moment
                    if store is not None:
                        store.keep(number, row)
                    _check_measure(by, row, settings)
                    bar.show(swept())
        except KeyboardInterrupt:
            ended_by = signal.SIGINT
        except EndedBySignal as ended:
            ended_by = ended.signum
        except BaseException:
            with suppress(StorageError):  # what went wrong before is what is to be told
                keep_table()
            raise
        finally:
            bar.close()
        keep_table()
        found_all = swept()
        found_all.ended_by = ended_by
        return found_all


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
