"""The command ``convert``: make a table a folder of arrays."""

from __future__ import annotations

import argparse
from pathlib import Path

from gdtrain.cli.options import Parser, faults_of_options
from gdtrain.errors import ConfigError, DataError, Fault, OutputError
from gdtrain.output.terminal import say
from gdtrain.wording import counted

_OF_DIALECT = ("delimiter", "decimal", "encoding")
_OF_READING = ("target", "features", "exclude", "keep", "categorical", "missing", "indicator")
_OF_NAMES = {
    "categorical": "a column whose numbers are category codes",
    "exclude": "a column that is not an input",
    "keep": "a column to use as an input that would not be one",
}


def convert(given: list[str]) -> int:
    """Make a table a folder of arrays."""
    options = _convert_parser().parse_args(given)
    from tqdm import tqdm

    from gdtrain.data.files import convert as conversion
    from gdtrain.data.tables.formats.csv_file import Dialect
    from gdtrain.data.tables.formats.table_files import TableFiles
    from gdtrain.data.tables.table import TableReading

    out: Path = options.out
    try:
        with faults_of_options():
            dialect = Dialect(**{key: getattr(options, key) for key in _OF_DIALECT})
            files = TableFiles(str(options.table), dialect)
            reading = TableReading(files, **{key: getattr(options, key) for key in _OF_READING})
            passes = 2 if options.missing in ("error", "drop") else 3
            total = passes * files.nbytes()
            with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
                done = conversion.convert(
                    reading,
                    out,
                    dtype=options.dtype,
                    rows_per_shard=options.rows_per_shard,
                    advance=bar.update,
                )
    except DataError as error:
        faults = [Fault("TABLE", str(message), "command line") for message in error.args]
        raise ConfigError(faults) from error
    except OutputError as error:
        raise ConfigError([Fault("OUT", str(error), "command line")]) from error
    rows = counted(done.num_samples, "row")
    say(f"converted {rows}; train with data: {{source: mapped, path: {out}}}")
    return 0


def _convert_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "convert",
        "Convert a table (CSV, Parquet, Feather, JSON lines), which may be larger than memory, to "
        "a folder from which training reads as needed: data: {source: mapped, path: OUT}.",
        examples=("convert houses.csv houses --target price",),
    )
    parser.add_argument(
        "table", metavar="TABLE", type=Path, help="the file, or a folder of such files"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder, new or empty")
    parser.add_argument(
        "--target", action="append", required=True, metavar="NAME", help="a target column"
    )
    parser.add_argument(
        "--features", action="append", metavar="NAME", help="an input column (default: all others)"
    )
    for name, what in _OF_NAMES.items():
        parser.add_argument(f"--{name}", action="append", default=[], metavar="NAME", help=what)
    parser.add_argument(
        "--missing",
        choices=["error", "drop", "mean", "median", "most_frequent"],
        default="error",
        metavar="HOW",
        help="how to treat missing cells: error (default), drop their rows, or fill in the mean, "
        "median or most_frequent of all rows",
    )
    parser.add_argument(
        "--indicator", action="store_true", help="add inputs that are 1 where a cell is missing"
    )
    parser.add_argument(
        "--delimiter", metavar="CHARACTER", help="between cells (default: found in the header)"
    )
    parser.add_argument("--decimal", default=".", metavar="CHARACTER", help="default: a point")
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="float32",
        help="of inputs and numeric targets (default: %(default)s)",
    )
    parser.add_argument(
        "--rows-per-shard", type=int, default=1_000_000, metavar="N", help="default: %(default)s"
    )
    return parser
