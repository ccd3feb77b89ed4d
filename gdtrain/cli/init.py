"""The command ``init``: write a configuration to start from, and overwrite nothing."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources
from itertools import islice
from pathlib import Path

from gdtrain.cli.options import Parser
from gdtrain.data.names import is_number
from gdtrain.errors import ConfigError, Fault
from gdtrain.output.terminal import say

EXAMPLES = ("minibatch", "batch", "sample", "edge_of_stability")
_ROWS = 1000  # that are looked at to tell numbers from classes
_DELIMITERS = ",;\t|"

_OF_A_FILE = """\
# Train with: python -m gdtrain --config {name}
seed: 0
data:
  source: csv
  path: {path}
  target: {target}{delimiter}
  validation_fraction: 0.2  # held out, and evaluated after each epoch
  standardize: true         # inputs to mean 0 and variance 1{more}
model: {{name: mlp, hidden: [64]}}
loss: {loss}  # {why}
loader: {{name: minibatch, batch_size: 32}}  # or batch: all samples per update, sample: one
optimizer: {{name: sgd, lr: {lr}, momentum: 0.9}}  # python -m gdtrain lr-range finds a rate
epochs: 50
"""


def init(given: list[str]) -> int:
    """Write a configuration to start from."""
    parser = Parser(
        "init",
        "Write a commented configuration to start from: an example that needs no file, "
        "or one for a CSV file of yours. What is there already is left alone.",
        examples=("init", "init --example batch", "init --data houses.csv --target price"),
    )
    parser.add_argument(
        "--example",
        choices=EXAMPLES,
        metavar="NAME",
        help=f"one of {', '.join(EXAMPLES)} (default: minibatch)",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="a CSV file with a header")
    parser.add_argument("--target", metavar="COLUMN", help="the column to learn; goes with --data")
    options = parser.parse_args(given)
    if (options.data is None) != (options.target is None):
        missing = "target" if options.target is None else "data"
        raise _fault(missing, "missing; --data and --target go together")
    if options.data is None:
        name = options.example or "minibatch"
        out, text = Path(f"{name}.yaml"), example(name)
    elif options.example is not None:
        raise _fault("example", "has no effect beside --data; remove one of the two")
    else:
        out = Path(f"{options.data.stem}.yaml")
        text = for_file(options.data, options.target, out.name)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            [Fault("", f"{out} is there already and stays as it is; move it first", "command line")]
        ) from None
    except OSError as error:
        message = f"{out} can't be written: {error.strerror}; go to a directory where it can be"
        raise ConfigError([Fault("", message, "command line")]) from error
    say(f"written: {out}; train with: python -m gdtrain --config {out}")
    return 0


def example(name: str) -> str:
    """A configuration that is part of the package."""
    return (resources.files("gdtrain.cli.examples") / f"{name}.yaml").read_text("utf-8")


def for_file(path: Path, target: str, name: str) -> str:
    """A configuration for a CSV file, by what stands in its target column.

    Raises ConfigError for a file that can't be read, or has no such column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            cells = list(_column(csv.reader(file, delimiter=delimiter), target))
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise _fault("data", f"{path} can't be read: {reason}; give a CSV file") from error
    numbers = bool(cells) and all(map(is_number, cells))
    return _OF_A_FILE.format(
        name=name,
        path=_quoted(str(path)),
        target=_quoted(target),
        delimiter="" if delimiter == "," else f"\n  delimiter: {_quoted(delimiter)}",
        more="\n  standardize_targets: true" if numbers else "",
        loss="mse" if numbers else "cross_entropy",
        why="numbers; cross_entropy if they stand for classes" if numbers else "classes",
        lr="0.01" if numbers else "0.05",
    )


def _column(rows: Iterator[list[str]], name: str) -> Iterator[str]:
    header = [cell.strip() for cell in next(rows, [])]
    if name not in header:
        raise _fault("target", f"{name!r} is not among the columns: {', '.join(header) or 'none'}")
    place = header.index(name)
    for row in islice(rows, _ROWS):
        if len(row) > place:
            yield row[place].strip()


def _delimiter(header: str) -> str:
    """The one that stands most often in the header."""
    return max(_DELIMITERS, key=header.count)


def _quoted(text: str) -> str:
    """As YAML that is read as this text, whatever is in it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    return text if text.replace("_", "").isalpha() else f'"{escaped}"'


def _fault(option: str, message: str) -> ConfigError:
    return ConfigError([Fault(f"--{option}", message, "command line")])
