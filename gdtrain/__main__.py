"""Run the command line as a program: ``python -m gdtrain``."""

import os
import sys
import traceback

from gdtrain.training.safety.signals import hold


def run() -> None:
    """Run the command that was asked for, and end the process with its exit code."""
    hold()  # before anything that takes a while, so that a signal in the first moment is not lost
    from gdtrain.cli.main import main

    try:
        code = main()
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        traceback.print_exc()
        code = 1
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of gloo can outlive its process group and abort an interpreter that is ending
        # ("terminate called without an active exception"). All is written: end without it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    run()
