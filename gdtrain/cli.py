"""The command line: what was asked for, and the exit code that says how it went.

Exit codes: 0 done; 1 anything not foreseen; 2 bad input; 3 a loss or gradient that is not
finite; 130 and 143 interrupted by SIGINT and SIGTERM, with a checkpoint saved.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from gdtrain import __version__
from gdtrain.errors import (
    CheckpointError,
    ConfigError,
    Fault,
    GdtrainError,
    OutputError,
    ProcessError,
    StorageError,
)
from gdtrain.training.signals import SignalDesk

EXIT_BAD_INPUT = 2

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
        commands = {
            "convert": _convert,
            "replay": _replay,
            "schema": _schema,
            "verify": _verify,
        }
        code = commands[given[0]](given[1:]) if given and given[0] in commands else _train(given)
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
    options = _train_parser().parse_intermixed_args(given)
    _import_modules(options.imports)
    from gdtrain.config.load import dump, load_config

    config, document = load_config(options.config, options.overrides)
    if options.print_config:
        print(dump(config), end="")
        return 0
    with closing(SignalDesk()) as signals:  # before torch, whose import takes a while
        from gdtrain.train_job import TrainJob

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
    _add_config(parser)
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
    _add_import(parser)
    parser.add_argument("--version", action="version", version=f"gdtrain {__version__}")
    return parser


def _schema(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gdtrain schema",
        description="Print the JSON Schema of configurations, which editors use to check them.",
        allow_abbrev=False,
    )
    _add_import(parser)
    options = parser.parse_args(given)
    _import_modules(options.imports)
    from gdtrain.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def _verify(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gdtrain verify",
        description="Check on your own model, loss and data, in float64, that a batch's gradient "
        "is the same however it is computed: in microbatches, per sample, by finite differences, "
        "in two processes. Says which layer or loss breaks it. Writes nothing.",
        epilog="Exit codes: 0 all comparisons hold, 1 one does not, 2 bad input.",
        allow_abbrev=False,
    )
    _add_config(parser)
    parser.add_argument(
        "--samples",
        type=int,
        default=64,
        metavar="N",
        help="compare on the first N samples of the first epoch (default: %(default)s)",
    )
    _add_import(parser)
    options = parser.parse_intermixed_args(given)
    if options.samples < 1:
        said = f"must be >= 1, got {options.samples}"
        raise ConfigError([Fault("--samples", said, "command line")])
    _import_modules(options.imports)
    from gdtrain.config.load import load_config

    config, document = load_config(options.config, options.overrides)
    from gdtrain.verify_job import VerifyJob

    return VerifyJob(config, document, options.samples).run()


def _replay(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gdtrain replay",
        description="Rebuild the state before one update of a run, from the nearest checkpoint, "
        "and show the update's samples, loss and gradient norms. Writes nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's directory")
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="number of the update, from 1"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_import(parser)
    options = parser.parse_args(given)
    if options.step < 1:
        raise ConfigError([Fault("--step", f"must be >= 1, got {options.step}", "command line")])
    _import_modules(options.imports)
    from gdtrain.replay_job import ReplayJob

    return ReplayJob(options.run, options.step, options.json).run()


def _convert(given: list[str]) -> int:
    options = _convert_parser().parse_args(given)
    from tqdm import tqdm

    from gdtrain.data.convert import convert

    out: Path = options.out
    size = options.csv.stat().st_size if options.csv.is_file() else 0
    try:
        with tqdm(total=2 * size, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            done = convert(
                str(options.csv),
                out,
                options.target,
                features=options.features,
                categorical=options.categorical,
                delimiter=options.delimiter,
                dtype=options.dtype,
                rows_per_shard=options.rows_per_shard,
                advance=bar.update,
            )
    except ConfigError as error:
        said = [(f"--{f.key.replace('_', '-')}", f.message) for f in error.faults]
        raise ConfigError([Fault(*fault, "command line") for fault in said]) from error
    except OutputError as error:
        raise ConfigError([Fault("OUT", str(error), "command line")]) from error
    print(
        f"converted {done.num_samples:,} rows; train with data: {{source: mapped, path: {out}}}",
        file=sys.stderr,
    )
    return 0


def _convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gdtrain convert",
        description="Make a CSV file, which may be larger than memory, a folder that is read "
        "as it is needed: data: {source: mapped, path: OUT}.",
        allow_abbrev=False,
    )
    parser.add_argument("csv", metavar="CSV", type=Path, help="the file, with a header")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder, new or empty")
    parser.add_argument(
        "--target", action="append", required=True, metavar="NAME", help="a target column"
    )
    parser.add_argument(
        "--features", action="append", metavar="NAME", help="an input column (default: all others)"
    )
    parser.add_argument(
        "--categorical",
        action="append",
        default=[],
        metavar="NAME",
        help="a column of numbers that stand for categories",
    )
    parser.add_argument("--delimiter", default=",", metavar="CHARACTER", help="default: a comma")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument(
        "--rows-per-shard", type=int, default=1_000_000, metavar="N", help="default: %(default)s"
    )
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", required=True, help="the configuration (YAML)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="set a setting, in YAML; section=name swaps a whole section, null takes a key out",
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers models, losses, sources or trainers",
    )


def _import_modules(names: list[str]) -> None:
    """Import a user's modules, found from the working directory too."""
    if not names:
        return
    sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ModuleNotFoundError(name=name)
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and what it imports is not
            message = f"module {name!r} not found; it must be importable from here"
            raise ConfigError([Fault("--import", message, "command line")]) from None


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
