"""The command line: what was asked for, and the exit code that says how it went.

Exit codes: 0 done; 1 anything not foreseen; 2 bad input; 3 a loss or gradient that is not
finite; 129, 130, 131 and 143 interrupted by SIGHUP, SIGINT, SIGQUIT and SIGTERM, with a checkpoint
saved.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from shlex import quote

from gdtrain.cli.convert import convert
from gdtrain.cli.init import init
from gdtrain.cli.list import list_parts
from gdtrain.cli.runs.replay import replay
from gdtrain.cli.runs.train import train
from gdtrain.cli.runs.verify import verify
from gdtrain.cli.schema import schema
from gdtrain.cli.studies.compare import compare
from gdtrain.cli.studies.lr_range import lr_range
from gdtrain.cli.studies.sweep import sweep
from gdtrain.cli.trained.evaluate import evaluate
from gdtrain.cli.trained.export import export
from gdtrain.cli.trained.landscape import landscape
from gdtrain.cli.trained.plot import plot
from gdtrain.cli.trained.predict import predict
from gdtrain.errors import (
    CheckpointError,
    ConfigError,
    Fault,
    GdtrainError,
    OutputError,
    ProcessError,
    StorageError,
)
from gdtrain.output.terminal import check_results, prepare_streams, say
from gdtrain.training.safety.signals import EndedBySignal, SignalDesk, name_of
from gdtrain.wording import nearest

EXIT_BAD_INPUT = 2
# Faults of disks and limits of a process, of which the file says all that there is to know.
_OF_THE_SYSTEM = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE),
}
COMMANDS = {
    "compare": compare,
    "convert": convert,
    "evaluate": evaluate,
    "export": export,
    "init": init,
    "landscape": landscape,
    "list": list_parts,
    "lr-range": lr_range,
    "plot": plot,
    "predict": predict,
    "replay": replay,
    "schema": schema,
    "sweep": sweep,
    "train": train,
    "verify": verify,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    try:
        with closing(SignalDesk()) as signals:  # before anything that takes a while
            try:
                code = _run(given)
            except Exception:
                # Python makes another error of what a signal raises in the body of a class, say.
                signals.act()
                raise
            signals.act()
        check_results()  # here, where a reader that has gone can be told from a fault
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
        return 1
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM or error.filename is None:
            raise
        _say(f"gdtrain: {error}")  # whose code has met with it does not matter
        return 1
    except EndedBySignal as ended:
        _say(f"gdtrain: ended by {name_of(ended.signum)}")
        return 128 + ended.signum
    except KeyboardInterrupt:
        _say("gdtrain: ended by SIGINT")
        return 130


def _run(given: list[str]) -> int:
    """The command that the first word names; without one, that of training."""
    word = given[0] if given else "--help"
    if word in COMMANDS:
        return COMMANDS[word](given[1:])
    if word.startswith("-") or "=" in word:  # an option or a setting of training
        return train(given)
    raise _no_command(word)


def _no_command(word: str) -> ConfigError:
    """The error of a first word that is none."""
    near = nearest(word, COMMANDS)
    if word.lower().endswith((".yaml", ".yml")):
        hint = f"to train with it: --config {quote(word)}"
    elif near:
        hint = f"did you mean {near}?"
    else:
        hint = f"to train, start with --config FILE; the commands are {', '.join(COMMANDS)}"
    return ConfigError([Fault("", f"{word!r} is not a command; {hint}", "command line")])


def _say(message: str) -> None:
    """One line on standard error, with its rank where torchrun has started several processes."""
    rank = os.environ.get("RANK", "0")
    say(("" if rank == "0" else f"rank {rank}: ") + _one_line(message))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
