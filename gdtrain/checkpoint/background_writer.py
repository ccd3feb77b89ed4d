"""Writing while training goes on: one job at a time, in their order, and none left out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Job = Callable[[], object]

# Seconds without a job after which the thread ends; starting one costs as much as a small save.
_IDLE = 5.0


@dataclass(eq=False)
class Background:
    """Runs jobs in a thread, at most one at once, while at most one more waits.

    failed: called with what a job has raised.
    """

    failed: Callable[[Exception], None]
    _state: threading.Condition = field(default_factory=threading.Condition)
    _waiting: Job | None = None
    _running: bool = False  # a job, not the thread
    _thread: threading.Thread | None = None
    _ends: bool = False
    _error: Exception | None = None

    def submit(self, job: Job) -> None:
        """Run ``job`` after those before it; wait here only while another one waits already."""
        with self._state:
            self._state.wait_for(lambda: self._waiting is None)
            self._waiting, self._running = job, True
            self._state.notify_all()
            self._ends = False
            if self._thread is None:
                name = "gdtrain-checkpoints"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def wait(self, keep: bool = False) -> None:
        """Until nothing runs or waits. Raises what the last job raised, if it did.

        keep: raise it again the next time.
        """
        with self._state:
            self._state.wait_for(lambda: not self._running)
            error = self._error
            self._error = error if keep else None
        if error is not None:
            raise error

    def end(self) -> None:
        """End the thread, which holds what its jobs hold, and wait for that if none runs."""
        with self._state:
            thread, self._ends = None if self._running else self._thread, True
            self._state.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._error = None
            try:
                job()
            except Exception as error:  # told now, and raised where the training waits for it
                self._error = error
                self.failed(error)
            del job  # and the state that it holds

    def _next(self) -> Job | None:
        """The job that waits, or None if there was none for a while, or will be none."""
        with self._state:
            if self._waiting is None:
                self._running = False
                self._state.notify_all()
                self._state.wait_for(lambda: self._waiting is not None or self._ends, _IDLE)
            if self._waiting is None:
                self._thread = None
                return None
            job, self._waiting = self._waiting, None
            self._state.notify_all()
            return job
