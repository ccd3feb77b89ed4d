"""The commands besides training: convert, replay, schema and verify; their options and help."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from gdtrain.errors import ConfigError, DataError, Fault, OutputError


def schema(given: list[str]) -> int:
    """Print the JSON Schema of configurations."""
    parser = argparse.ArgumentParser(
        prog="python -m gdtrain schema",
        description="Print the JSON Schema of configurations, which editors use to check them.",
        allow_abbrev=False,
    )
    add_import(parser)
    options = parser.parse_args(given)
    import_modules(options.imports)
    from gdtrain.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def verify(given: list[str]) -> int:
    """Compare the gradient computed in several ways."""
    parser = argparse.ArgumentParser(
        prog="python -m gdtrain verify",
        description="Check on your own model, loss and data, in float64, that a batch's gradient "
        "is the same however it is computed: in microbatches, per sample, by finite differences, "
        "in two processes. Says which layer or loss breaks it. Writes nothing.",
        epilog="Exit codes: 0 all comparisons hold, 1 one does not, 2 bad input.",
        allow_abbrev=False,
    )
    add_config(parser)
    parser.add_argument(
        "--samples",
        type=int,
        default=64,
        metavar="N",
        help="compare on the first N samples of the first epoch (default: %(default)s)",
    )
    add_import(parser)
    options = parser.parse_intermixed_args(given)
    if options.samples < 1:
        said = f"must be >= 1, got {options.samples}"
        raise ConfigError([Fault("--samples", said, "command line")])
    import_modules(options.imports)
    from gdtrain.config.load import load_config

    config, document = load_config(options.config, options.overrides)
    from gdtrain.verify_job import VerifyJob

    return VerifyJob(config, document, options.samples).run()


def replay(given: list[str]) -> int:
    """Look at one update of a run."""
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
    add_import(parser)
    options = parser.parse_args(given)
    if options.step < 1:
        raise ConfigError([Fault("--step", f"must be >= 1, got {options.step}", "command line")])
    import_modules(options.imports)
    from gdtrain.replay_job import ReplayJob

    return ReplayJob(options.run, options.step, options.json).run()


def convert(given: list[str]) -> int:
    """Make a CSV file a folder of arrays."""
    options = _convert_parser().parse_args(given)
    from tqdm import tqdm

    from gdtrain.data import convert as conversion

    out: Path = options.out
    size = options.csv.stat().st_size if options.csv.is_file() else 0
    try:
        with tqdm(total=2 * size, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            done = conversion.convert(
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
    except DataError as error:
        raise ConfigError([Fault("CSV", str(error), "command line")]) from error
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


def add_config(parser: argparse.ArgumentParser) -> None:
    """The options of every command that reads a configuration."""
    parser.add_argument("--config", metavar="FILE", required=True, help="the configuration (YAML)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="set a setting, in YAML; section=name swaps a whole section, null takes a key out",
    )


def add_import(parser: argparse.ArgumentParser) -> None:
    """The option that registers a user's own parts."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers models, losses, sources or trainers",
    )


def import_modules(names: list[str]) -> None:
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
