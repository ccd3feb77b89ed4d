"""The command line: what was asked for, and the exit code that says how it went.

Exit codes: 0 done; 1 anything not foreseen; 2 bad input; 3 a loss or gradient that is not
finite; 130 and 143 interrupted by SIGINT and SIGTERM, with a checkpoint saved.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Sequence

from gdtrain.cli.compare import compare
from gdtrain.cli.convert import convert
from gdtrain.cli.init import init
from gdtrain.cli.landscape import landscape
from gdtrain.cli.list import list_parts
from gdtrain.cli.lr_range import lr_range
from gdtrain.cli.plot import plot
from gdtrain.cli.replay import replay
from gdtrain.cli.schema import schema
from gdtrain.cli.train import train
from gdtrain.cli.verify import verify
from gdtrain.errors import (
    CheckpointError,
    ConfigError,
    Fault,
    GdtrainError,
    OutputError,
    ProcessError,
    StorageError,
)
from gdtrain.training.safety.signals import release

EXIT_BAD_INPUT = 2
COMMANDS = {
    "compare": compare,
    "convert": convert,
    "init": init,
    "landscape": landscape,
    "list": list_parts,
    "lr-range": lr_range,
    "plot": plot,
    "replay": replay,
    "schema": schema,
    "train": train,
    "verify": verify,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    try:
        command = COMMANDS.get(given[0]) if given else None
        if command is None:
            _check_no_command(given)
            code = train(given)
        elif command is train:
            code = train(given[1:])
        else:
            release()
            code = command(given[1:])
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


def _check_no_command(given: list[str]) -> None:
    """Refuse a first word that is neither a command nor an option or a setting of training."""
    word = given[0] if given else "--help"
    if word.startswith("-") or "=" in word:
        return
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    if word.lower().endswith((".yaml", ".yml")):
        hint = f"to train with it: --config {word}"
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"to train, start with --config FILE; the commands are {', '.join(COMMANDS)}"
    raise ConfigError([Fault("", f"{word!r} is not a command; {hint}", "command line")])


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
