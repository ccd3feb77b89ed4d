"""Ctrl-C while the program starts: a line and its exit code, and no traceback of half an import."""

# What signal is made of, without the enumerations that take time to make.
import _signal  # type: ignore[import-not-found]
import os


def leave_if_interrupted() -> None:
    """From now on SIGINT ends the process at once, unless whoever started it has it ignored."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _leave)


def _leave(signum: int, _frame: object) -> None:
    os.write(2, b"gdtrain: ended by SIGINT\n")
    os._exit(128 + signum)
