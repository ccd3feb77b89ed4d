"""The command line: what was asked for, and the exit code that says how it went.

Exit codes: 0 done; 1 anything not foreseen; 2 bad input; 3 a loss or gradient that is not
finite; 130 and 143 interrupted by SIGINT and SIGTERM, with a checkpoint saved.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from gdtrain import __version__
from gdtrain.commands import add_config, add_import, convert, import_modules, replay, schema, verify
from gdtrain.errors import (
    CheckpointError,
    ConfigError,
    GdtrainError,
    OutputError,
    ProcessError,
    StorageError,
)
from gdtrain.training.signals import SignalDesk

EXIT_BAD_INPUT = 2
COMMANDS = {"convert": convert, "replay": replay, "schema": schema, "verify": verify}

_TRAIN_HELP = """\
examples:
  python -m gdtrain --config configs/minibatch.yaml
  python -m gdtrain --config configs/minibatch.yaml optimizer.lr=0.05 epochs=40
  python -m gdtrain --config configs/minibatch.yaml --output-dir runs/mine --resume
  python -m gdtrain --config mine.yaml --import my_models

other commands:
  python -m gdtrain convert     make a CSV file of any size a folder for source: mapped
  python -m gdtrain replay      rebuild the state before any update of a run, and look at it
  python -m gdtrain schema      print the JSON Schema of configurations, for editors
  python -m gdtrain verify      check on your model, loss and data that the gradient is exact

Exit codes: 0 done, 2 bad input, 3 loss not finite, 130/143 interrupted (checkpoint saved).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    try:
        command = COMMANDS.get(given[0]) if given else None
        code = _train(given) if command is None else command(given[1:])
        sys.stdout.flush()  # here, where a reader that has gone can be told from a fault
        return code
    except ConfigError as error:
        for fault in error.faults:
            _say(str(fault))
        return EXIT_BAD_INPUT
    except (OutputError, CheckpointError) as error:
        option = "--output-dir" if isinstance(error, OutputError) else "--resume"
        _say(f"command line:1:1: {option}: {error}")
        return EXIT_BAD_INPUT
    except GdtrainError as error:
        _say(f"gdtrain: {error}")
        return 1 if isinstance(error, StorageError | ProcessError) else EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader of our output has gone; nobody is left to tell
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
        return 1
    except KeyboardInterrupt:
        return 130


def _train(given: list[str]) -> int:
    with closing(SignalDesk()) as signals:  # before anything that takes a while
        options = _train_parser().parse_intermixed_args(given)
        import_modules(options.imports)
        from gdtrain.config.load import dump, load_config

        config, document = load_config(options.config, options.overrides)
        if options.print_config:
            print(dump(config), end="")
            return 0
        from gdtrain.train_job import TrainJob
        from gdtrain.training.compiler import leave_compiler_out

        leave_compiler_out()
        job = TrainJob(
            config=config,
            document=document,
            name=Path(options.config).stem,
            output_dir=options.output_dir,
            resume=options.resume,
            signals=signals,
        )
        return job.dry_run() if options.dry_run else job.run()


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gdtrain",
        description="Train a PyTorch model by batch, stochastic or mini-batch gradient descent.",
        epilog=_TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config(parser)
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="where results go (default: runs/<config name>/<n>); never another run's",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output-dir, or the newest one of this config",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, make one update, evaluate one batch, write nothing",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    add_import(parser)
    parser.add_argument("--version", action="version", version=f"gdtrain {__version__}")
    return parser


def _prepare_streams() -> None:
    """Make sure that printing can't fail: on a closed stream, or for want of a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(message: str) -> None:
    """One line on standard error, with its rank where torchrun has started several processes."""
    rank = os.environ.get("RANK", "0")
    print(("" if rank == "0" else f"rank {rank}: ") + _one_line(message), file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
