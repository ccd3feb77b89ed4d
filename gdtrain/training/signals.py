"""Stop at a safe point when a signal asks for it; a second signal acts at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


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
