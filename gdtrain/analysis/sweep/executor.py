"""Runs side by side: in this process, in others of this machine, or on a Dask cluster.

Workers start once and import once. What a worker that dies was at is given to another one; a run
whose worker dies three times has failed.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import cache
from typing import Any

from gdtrain.analysis.sweep import memory
from gdtrain.analysis.sweep.grid import Point
from gdtrain.errors import MissingPackageError, ProcessError

MOST_DEATHS = 3
MOST_GROWTH = 1 << 30  # bytes of a worker, from which on joblib restarts it
_WAIT = 20  # seconds for a scheduler to answer

Row = dict[str, Any]
Function = Callable[[int, Point], Row]
Results = Generator[tuple[int, Row], None, None]


class Workers:
    """Those who train, for the length of a ``with``.

    jobs: processes of this machine; with 1, this process. cluster: the address of a Dask scheduler.
    Raises MissingPackageError without joblib or Dask.
    """

    def __init__(self, jobs: int, cluster: str | None) -> None:
        self.jobs, self.cluster = jobs, cluster
        self._client: Any = None
        if cluster is not None:
            _distributed()
        elif jobs > 1:
            _joblib()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close(timeout=2)
        elif self.jobs > 1 and self.cluster is None:
            from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

            get_reusable_executor().shutdown(wait=True, kill_workers=True)

    def results(self, function: Function, points: Mapping[int, Point]) -> Results:
        """(number, what ``function(number, point)`` gives) of each point, as they are done.

        The function raises nothing that is its run's fault. Closing the iterator ends what is
        under way. Raises ProcessError if a cluster is not there, or not any more.
        """
        if self.cluster is not None:
            yield from self._on_cluster(function, points)
        elif self.jobs > 1:
            yield from self._in_processes(function, dict(points))
        else:
            with memory.as_before():
                for number, point in points.items():
                    yield number, _run(function, number, point)

    def _in_processes(self, function: Function, left: dict[int, Point]) -> Results:
        joblib, died = _joblib(), _died()
        deaths: Counter[int] = Counter()
        while left:
            sent: list[int] = []

            def calls(points: dict[int, Point], sent: list[int]) -> Iterator[Any]:
                for number, point in points.items():
                    sent.append(number)
                    yield joblib.delayed(_numbered)(os.getpid(), function, number, point)

            # One at a time to each worker: runs are long, and what a dead one was at is known.
            one_each = {"batch_size": 1, "pre_dispatch": "n_jobs"}
            try:
                with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
                    parallel = joblib.Parallel(
                        n_jobs=self.jobs, return_as="generator_unordered", **one_each
                    )
                    with closing(parallel(calls(dict(left), sent))) as done:
                        for number, row in done:
                            del left[number]
                            yield number, row
            except died:
                for number in [number for number in sent if number in left]:
                    deaths[number] += 1
                    if deaths[number] >= MOST_DEATHS:
                        del left[number]
                        yield number, _killed()

    def _on_cluster(self, function: Function, points: Mapping[int, Point]) -> Results:
        distributed = _distributed()
        gone = (OSError, TimeoutError, distributed.client.FutureCancelledError)
        client = self._connected()
        try:
            futures = {
                client.submit(_run, function, number, point, pure=False): number
                for number, point in points.items()
            }
            for future in distributed.as_completed(futures, loop=client.loop):
                number = futures[future]
                if future.cancelled() or client.status != "running":
                    raise self._lost()
                fault = future.exception()
                if isinstance(fault, distributed.KilledWorker):  # after three more, by default
                    yield number, _killed()
                elif fault is not None:
                    raise fault
                else:
                    yield number, future.result()
        except gone as error:
            raise self._lost() from error

    def _connected(self) -> Any:
        distributed = _distributed()
        if self._client is None:
            try:
                self._client = distributed.Client(self.cluster, timeout=_WAIT, set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                message = f"cluster: no scheduler answers at {self.cluster}"
                raise ProcessError(f"{message}; start one with dask scheduler") from error
        return self._client

    def _lost(self) -> ProcessError:
        message = f"cluster: the scheduler at {self.cluster} has gone"
        return ProcessError(f"{message}; start it again, and go on with what is done")


def _numbered(parent: int, function: Function, number: int, point: Point) -> tuple[int, Row]:
    _allow_growth()
    _end_with(parent)
    if os.getppid() != parent:  # killed: what was sent before is another sweep's to train
        os._exit(1)
    return number, _run(function, number, point)


@cache
def _allow_growth() -> None:
    """Keep joblib from restarting a worker in which a compiler has taken memory.

    That is about 350 MB at once, and joblib takes growth of 300 MB for a leak. The memory of
    finished runs is freed.
    """
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = MOST_GROWTH


def _run(function: Function, number: int, point: Point) -> Row:
    """What the function gives, after which the run's memory is free."""
    row = function(number, point)
    memory.free()
    return row


@cache
def _end_with(parent: int) -> None:
    """End this process soon after its parent has been killed, whatever it is at."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="gdtrain-parent", daemon=True).start()


def _killed() -> Row:
    return {"status": "failed", "reason": f"its worker died {MOST_DEATHS} times", "killed": True}


def _died() -> tuple[type[BaseException], ...]:
    from joblib.externals.loky.process_executor import (  # type: ignore[import-untyped]
        BrokenProcessPool,
    )

    return (BrokenProcessPool,)


def _joblib() -> Any:
    try:
        import joblib  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingPackageError(
            "several jobs need joblib, which is not installed; pip install 'gdtrain[sweep]'"
        ) from error
    return joblib


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingPackageError(
            "a cluster needs Dask, which is not installed; pip install 'gdtrain[cluster]'"
        ) from error
    return distributed
