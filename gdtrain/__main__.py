"""Run the command line as a program: ``python -m gdtrain``."""

import os
import signal
import sys
from types import FrameType


def _leave(signum: int, _frame: FrameType | None) -> None:
    """End at once: nothing has begun yet, or all is done."""
    os.write(2, b"gdtrain: ended by SIGINT\n")
    os._exit(128 + signum)


def run() -> None:
    """Run the command that was asked for, and end the process with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # rather than with a traceback of half an import
    # Before anything that takes a while, so that a signal in the first moment is not lost.
    from gdtrain.training.safety.signals import hold

    hold()
    from gdtrain.cli.main import main

    try:
        code = main()
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        import traceback

        traceback.print_exc()
        code = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the code is known
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of gloo can outlive its process group and abort an interpreter that is ending
        # ("terminate called without an active exception"). All is written: end without it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    run()
