"""The command ``init``: write a configuration to start from, and overwrite nothing."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from shlex import quote

from gdtrain.cli.options import Parser
from gdtrain.errors import ConfigError, DataError, Fault
from gdtrain.output.terminal import say

EXAMPLES = (
    "minibatch",
    "batch",
    "sample",
    "teaching_minibatch",
    "teaching_batch",
    "teaching_sample",
    "edge_of_stability",
)


def init(given: list[str]) -> int:
    """Write a configuration to start from."""
    parser = Parser(
        "init",
        "Write a commented configuration to start from: an example that needs no file, "
        "or one for your own table. It overwrites nothing.",
        examples=("init", "init --example batch", "init --data houses.csv --target price"),
    )
    parser.add_argument(
        "--example",
        choices=EXAMPLES,
        metavar="NAME",
        help=f"one of {', '.join(EXAMPLES)} (default: minibatch)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="a table: CSV, Parquet, Feather, JSON lines"
    )
    parser.add_argument(
        "--target",
        action="append",
        metavar="COLUMN",
        help="the column to predict, needed with --data; repeatable",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write (default: NAME.yaml in this directory)",
    )
    options = parser.parse_args(given)
    if (options.data is None) != (options.target is None):
        missing = "target" if options.target is None else "data"
        raise _fault(missing, "missing; --data and --target go together")
    when = ""
    if options.data is None:
        name = options.example or "minibatch"
        out, text = options.out or Path(f"{name}.yaml"), example(name)
    elif options.example is not None:
        raise _fault("example", "has no effect beside --data; remove one of the two")
    else:
        out = options.out or Path(f"{options.data.stem}.yaml")
        text, is_ready = for_file(options.data, options.target, str(out))
        when = "" if is_ready else "when the table is corrected, "
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        way_out = "move it first" if options.out else "move it first, or name another with --out"
        message = f"{out} already exists and was not changed; {way_out}"
        raise ConfigError([Fault("", message, "command line")]) from None
    except OSError as error:
        message = f"{out} can't be written: {error.strerror}; go to a directory where it can be"
        raise ConfigError([Fault("", message, "command line")]) from error
    say(f"written: {out}; {when}train with: python -m gdtrain --config {quote(str(out))}")
    return 0


def example(name: str) -> str:
    """A configuration that is part of the package."""
    return (resources.files("gdtrain.cli.examples") / f"{name}.yaml").read_text("utf-8")


def for_file(path: Path, targets: list[str], name: str) -> tuple[str, bool]:
    """A configuration for a table, by what its columns are, and whether it trains as it is.

    Says which columns are left out, and what is still to be corrected. Raises ConfigError for a
    file that can't be read, or has no such column.
    """
    from gdtrain.cli.init_job import for_table

    try:
        made = for_table(path, targets, name)
    except DataError as error:
        raise _fault("target" if "has no column" in str(error) else "data", str(error)) from error
    for column, reason in list(made.left_out.items())[:_MOST_TOLD]:
        say(f"excluded: {column!r} ({reason.removeprefix('is ')})")
    if len(made.left_out) > _MOST_TOLD:
        say(f"excluded: {len(made.left_out) - _MOST_TOLD:,} more columns; see exclude in {name}")
    for fault in made.faults:
        say(f"correct this before training: {fault}")
    return made.text, not made.faults


_MOST_TOLD = 10  # columns, with their reasons


def _fault(option: str, message: str) -> ConfigError:
    return ConfigError([Fault(f"--{option}", message, "command line")])
