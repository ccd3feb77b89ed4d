"""Stop at a safe point when a signal asks for it, save when one asks for that, or go at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
# Windows has none.
SAVING: tuple[int, ...] = tuple(filter(None, [getattr(signal, "SIGUSR1", None)]))


def hold() -> None:
    """Keep signals waiting until a :class:`SignalDesk` takes them, or :func:`release`.

    Windows, which has no mask of signals, is left as it is.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, *SAVING))


def release() -> None:
    """Let through what :func:`hold` keeps waiting."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPPING, *SAVING))


@contextmanager
def on_signal(signals: Sequence[int], stop: Callable[[int], None]) -> Iterator[None]:
    """Call ``stop(signum)`` at the first of ``signals``, and let the second one through.

    Handlers are put back on leaving. Outside the main thread, where Python can't handle
    signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.getsignal(signum) for signum in signals}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def handle(signum: int, _frame: FrameType | None) -> None:
        restore()
        stop(signum)

    for signum in signals:
        signal.signal(signum, handle)
    try:
        yield
    finally:
        restore()


@contextmanager
def interruptible(stop: Callable[[str], None]) -> Iterator[None]:
    """At Ctrl-C call ``stop("interrupted")``, and raise KeyboardInterrupt on leaving.

    Where Ctrl-C does what it does in Python by itself; a handler of somebody's own stays.
    """
    interrupted: list[int] = []

    def note(signum: int) -> None:
        interrupted.append(signum)
        stop("interrupted")

    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with on_signal([signal.SIGINT] if default else [], note):
        yield
    if interrupted:
        raise KeyboardInterrupt


class SignalDesk:
    """Takes a program's signals: the first SIGINT or SIGTERM stops it, a second ends it at once.

    SIGUSR1 asks for a checkpoint. Signals are taken by a thread, so that the second one works
    even where the main thread waits for another process in a call that never returns. Until
    :meth:`watch` says whom to tell, a stopping signal ends the program in order, since there
    is nothing to save, and a wish to save is kept. Outside the main thread, where Python can't
    handle signals, it does nothing.

    stopped_by: the first stopping signal that ``watch`` has told of, or 0.
    """

    def __init__(self) -> None:
        self.stopped_by = 0
        self._stop: Callable[[int], None] | None = None
        self._save: Callable[[], None] | None = None
        self._wants_save = False
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._open()

    def _open(self) -> None:
        self._previous = {s: signal.getsignal(s) for s in (*STOPPING, *SAVING)}
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        for signum in self._previous:
            signal.signal(signum, self._end_early if signum in STOPPING else _ignore)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._serve, name="gdtrain-signals", daemon=True)
        self._thread.start()
        release()  # the handlers are there
        os.register_at_fork(after_in_child=self._leave)

    def watch(self, stop: Callable[[int], None], save: Callable[[], None]) -> None:
        """From now on call ``stop(signum)`` at the first stopping signal, ``save()`` at SIGUSR1.

        Both are called in the thread, and may set flags only.
        """
        self._stop, self._save = stop, save
        for signum in STOPPING if self._previous else ():
            signal.signal(signum, _ignore)
        if self._wants_save:
            save()

    def close(self) -> None:
        """Put everything back as it was."""
        if not self._previous:
            return
        signal.set_wakeup_fd(self._old_wakeup)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)
        self._previous = {}
        self._stop = self._save = None  # what runs after a fork keeps this object for ever

    def _leave(self) -> None:
        """In a process that was forked off, such as a data loader's: the pipe is not its own."""
        if self._previous:
            signal.set_wakeup_fd(-1)
            for signum in self._previous:
                ends = signum == signal.SIGTERM
                signal.signal(signum, signal.SIG_DFL if ends else signal.SIG_IGN)

    def _serve(self) -> None:
        while received := os.read(self._reader, 64):
            for signum in received:
                self._take(signum)

    def _take(self, signum: int) -> None:
        if signum in SAVING:
            self._wants_save = True
            if self._save is not None:
                self._save()
        elif signum in STOPPING and self._stop is not None:
            if self.stopped_by:
                os._exit(128 + signum)
            self.stopped_by = signum
            self._stop(signum)

    def _end_early(self, signum: int, _frame: FrameType | None) -> None:
        if self._stop is None:
            sys.exit(128 + signum)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """A handler that does nothing; the signal still reaches the thread."""
