"""The command ``convert``: make a CSV file a folder of arrays."""

from __future__ import annotations

import argparse
from pathlib import Path

from gdtrain.cli.options import Parser
from gdtrain.errors import ConfigError, DataError, Fault, OutputError
from gdtrain.output.terminal import say


def convert(given: list[str]) -> int:
    """Make a CSV file a folder of arrays."""
    options = _convert_parser().parse_args(given)
    from tqdm import tqdm

    from gdtrain.data.files import convert as conversion

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
        message = [(f"--{f.key.replace('_', '-')}", f.message) for f in error.faults]
        raise ConfigError([Fault(*fault, "command line") for fault in message]) from error
    except DataError as error:
        raise ConfigError([Fault("CSV", str(error), "command line")]) from error
    except OutputError as error:
        raise ConfigError([Fault("OUT", str(error), "command line")]) from error
    say(f"converted {done.num_samples:,} rows; train with data: {{source: mapped, path: {out}}}")
    return 0


def _convert_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "convert",
        "Make a CSV file, which may be larger than memory, a folder that is read "
        "as it is needed: data: {source: mapped, path: OUT}.",
        examples=("convert houses.csv houses --target price",),
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
