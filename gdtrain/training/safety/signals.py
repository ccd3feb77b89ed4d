"""Stop at a safe point when a signal asks for it, save when one asks for that, or go at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Windows has neither SIGHUP, of a connection that drops, nor SIGQUIT, nor SIGUSR1.
_GOING = ("SIGHUP", "SIGQUIT")
STOPPING: tuple[int, ...] = (
    *(signal.SIGINT, signal.SIGTERM),
    *(getattr(signal, name) for name in _GOING if hasattr(signal, name)),
)
SAVING: tuple[int, ...] = tuple(filter(None, [getattr(signal, "SIGUSR1", None)]))
# How long after an exception was swallowed the next one is tried, in seconds.
_AGAIN = 0.01


class EndedBySignal(SystemExit):
    """A signal ended the program before there was anything to save; ``code`` is 128 + signum."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def name_of(signum: int) -> str:
    """The name of a signal, such as SIGTERM."""
    return signal.Signals(signum).name


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
def interruptible(stop: Callable[[str], None]) -> Iterator[None]:
    """At the first Ctrl-C call ``stop("interrupted")``, and raise KeyboardInterrupt on leaving.

    Where Ctrl-C does what it does in Python by itself: a handler of somebody's own stays, and so
    does all outside the main thread, where Python can't handle signals.
    """
    default = signal.default_int_handler
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    interrupted = False

    def note(_signum: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        signal.signal(signal.SIGINT, default)  # a second one goes through
        interrupted = True
        stop("interrupted")

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)
    if interrupted:
        raise KeyboardInterrupt


def current_desk() -> SignalDesk:
    """The one that takes signals now; one that takes none if there is none."""
    return _desks[-1] if _desks else SignalDesk(takes_signals=False)


def act() -> None:
    """Raise EndedBySignal if a signal wants that and somebody has swallowed its exception."""
    current_desk().act()


class SignalDesk:
    """Takes a program's signals: the first that stops it does so, a second ends it at once.

    Those are SIGINT and SIGTERM, and SIGHUP and SIGQUIT unless they are ignored, as under nohup.
    SIGUSR1 asks for a checkpoint. Signals are taken by a thread, so that the second one works
    even where the main thread waits for another process in a call that never returns.

    Until :meth:`watch` says whom to tell, a stopping signal ends the program in order, by
    EndedBySignal, since there is nothing to save, and a wish to save is kept. Where that exception
    comes to nothing, since Python ignores those of destructors and of callbacks of its collector,
    or somebody catches everything, it is raised again: at once where Python says that it has
    ignored it, and by the next :func:`act`.

    Outside the main thread, where Python can't handle signals, it does nothing.

    stopped_by: the first stopping signal that ``watch`` has reported, or 0.
    """

    def __init__(self, takes_signals: bool = True) -> None:
        self.stopped_by = 0
        self._closing = False
        self._early = 0  # a stopping signal that came before anybody watched
        self._received = 0  # the same, as the thread has seen it
        self._stop: Callable[[int], None] | None = None
        self._save: Callable[[], None] | None = None
        self._wants_save = False
        self._previous: dict[int, Any] = {}
        if takes_signals and threading.current_thread() is threading.main_thread():
            try:
                self._open()
            except EndedBySignal:  # one that has waited
                self.close()
                raise

    def _open(self) -> None:
        going = [getattr(signal, name) for name in _GOING if hasattr(signal, name)]
        self._previous = {
            signum: handler
            for signum in (*STOPPING, *SAVING)
            if (handler := signal.getsignal(signum)) is not signal.SIG_IGN or signum not in going
        }
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        for signum in self._previous:
            signal.signal(signum, self._end_early if signum in STOPPING else _ignore)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._serve, name="gdtrain-signals", daemon=True)
        self._thread.start()
        self._old_hook, sys.unraisablehook = sys.unraisablehook, self._ignored
        _desks.append(self)
        release()  # the handlers are there
        os.register_at_fork(after_in_child=self._leave)

    def watch(self, stop: Callable[[int], None], save: Callable[[], None]) -> None:
        """From now on call ``stop(signum)`` at the first stopping signal, ``save()`` at SIGUSR1.

        Both are called in the thread, and may set flags only.
        """
        self._stop, self._save = stop, save
        for signum in STOPPING:
            if signum in self._previous:
                signal.signal(signum, _ignore)
        if early := self._early or self._received:
            raise EndedBySignal(early)
        if self._wants_save:
            save()

    def act(self) -> None:
        """Raise EndedBySignal again if a signal came early and its exception came to nothing."""
        if self._stop is None and (early := self._early or self._received):
            raise EndedBySignal(early)

    def close(self) -> None:
        """Put everything back as it was."""
        if not self._previous:
            return
        self._closing = True
        _desks.remove(self)
        sys.unraisablehook = self._old_hook
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._writer)
        self._thread.join()  # before the handlers go, for it may just be sending a signal
        os.close(self._reader)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
        self._stop = self._save = None  # what runs after a fork never lets go of this object

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
                if signum:
                    self._take(signum)
                elif not self._closing:
                    time.sleep(_AGAIN)  # until what ignores exceptions is over
                    signal.pthread_kill(threading.main_thread().ident or 0, self._early)

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
        elif signum in STOPPING:
            if self._received and not self._early:  # the main thread is busy in some call
                os._exit(128 + signum)
            self._received = signum

    def _end_early(self, signum: int, _frame: FrameType | None) -> None:
        if self._stop is None and not self._closing:
            self._early = signum
            raise EndedBySignal(signum)

    def _ignored(self, unraisable: Any) -> None:
        """Python tells of an exception that it has ignored: if it is ours, raise it again."""
        if isinstance(unraisable.exc_value, EndedBySignal):
            os.write(self._writer, b"\0")
        else:
            self._old_hook(unraisable)


_desks: list[SignalDesk] = []  # that are open, the newest last


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """A handler that does nothing; the signal still reaches the thread."""
