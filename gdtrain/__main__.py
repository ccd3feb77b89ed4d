"""Run the command line as a program: ``python -m gdtrain``."""

from gdtrain.interrupted import leave_if_interrupted

leave_if_interrupted()  # before anything else: see there

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402


def run() -> None:
    """Run the command that was asked for, and end the process with its exit code."""
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
