"""Options that several commands share."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import NoReturn, TextIO

from gdtrain.errors import ConfigError, Fault
from gdtrain.output.terminal import printable
from gdtrain.training.safety import signals
from gdtrain.wording import nearest


class _Help(argparse.HelpFormatter):
    """Keeps the ends of lines, and breaks those that are too long and no example."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        return "\n".join(line if line[:1] == " " else textwrap.fill(line, width) for line in lines)


class Parser(argparse.ArgumentParser):
    """Says of an unknown option what may have been meant.

    examples: lines of a shell that work, below the options; notes: below these.
    """

    def __init__(
        self, command: str, description: str, *, examples: Sequence[str], notes: str = ""
    ) -> None:
        shown = "".join(f"\n  python -m gdtrain {example}" for example in examples)
        super().__init__(
            prog=f"python -m gdtrain {command}".rstrip(),
            description=description,
            epilog=f"examples:{shown}\n\n{notes}".rstrip(),
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self._optionals.title = "arguments"
        self._positionals = self._optionals  # under one heading, which saves two lines

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            known = [s for action in self._actions for s in action.option_strings]
            near = nearest(unknown[1][2:], [option.lstrip("-") for option in known])
            alone = [a.metavar for a in self._actions if unknown[1] == f"--{a.dest.rstrip('s')}"]
            if alone:
                message += f"; {alone[0]} is given without an option before it"
            elif near:
                message += f"; did you mean --{near}?"
            elif any(action.dest == "overrides" for action in self._actions):
                message += "; settings are written without dashes, such as epochs=20"
        elif message.endswith("required: --config"):
            message += "; write --config FILE"
        super().error(printable(message))


def add_config(parser: argparse.ArgumentParser) -> None:
    """The options of every command that reads a configuration."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        required=True,
        help="a configuration (YAML), or - for stdin; later ones win",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change a setting; section=name replaces a section",
    )


def name_of(configs: list[str]) -> str:
    """What a run of these configuration files is called: by the first of them."""
    return "stdin" if configs[0] == "-" else Path(configs[0]).stem


def add_run(parser: argparse.ArgumentParser) -> None:
    """The options of a command that takes the model of a finished run."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a finished run")
    which = parser.add_mutually_exclusive_group()
    for name, text in (
        ("averaged", "use the averaged weights, if the run has any"),
        ("best", "use the weights of the best epoch (of a run with checkpoint.keep_best)"),
    ):
        which.add_argument(
            f"--{name}", dest="weights", action="store_const", const=name, default="last", help=text
        )


def add_runs(parser: argparse.ArgumentParser, default: str) -> None:
    """The options of a command that draws a picture of runs; default: where that goes."""
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's directory")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"the picture, .png or .svg (default: {default}); replaces only pictures "
        "that gdtrain has drawn",
    )


def split_settings(given: list[str]) -> tuple[list[str], list[str]]:
    """Of words in any order: configuration files, and settings, ``section.key=value``."""
    settings = [word for word in given if "=" in word and not Path(word).is_file()]
    return [word for word in given if word not in settings], settings


def add_results(
    parser: argparse.ArgumentParser, what: str = "the result", *, quiet: bool = False
) -> None:
    """The options of a command with a result that a program may want, made with a user's parts.

    what: is printed. quiet: whether the command says what it does while it works.
    """
    if quiet:
        parser.add_argument("--quiet", action="store_true", help="print only errors and warnings")
    parser.add_argument(
        "--json", action="store_true", help=f"print {what} as one line of JSON, and nothing else"
    )
    add_import(parser)


@contextmanager
def results_alone(options: argparse.Namespace) -> Iterator[TextIO | None]:
    """Import a user's modules, and give the stream for JSON, if that is asked for.

    What else is printed, by a module or a model, goes beside it.
    """
    results = sys.stdout
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        if options.imports:
            import_modules(options.imports)
        yield results if options.json else None


def add_import(parser: argparse.ArgumentParser) -> None:
    """The option that registers a user's own parts."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers your own parts",
    )


def import_modules(names: list[str]) -> None:
    """Import a user's modules, found from the working directory too."""
    sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ModuleNotFoundError(name=name)
            importlib.import_module(name)
            signals.act()
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and what it imports is not
            hint = "run from its directory, or add that to PYTHONPATH"
            if name.endswith(".py"):
                hint = f"name the module, not its file: {name[:-3].replace('/', '.')}"
            message = f"module {name!r} not found; {hint}"
            raise ConfigError([Fault("--import", message, "command line")]) from None


def refuse(faults: Sequence[tuple[str, str]]) -> None:
    """Raise ConfigError with what is wrong with options: (option, what), if anything is."""
    if faults:
        raise ConfigError([Fault(f"--{key}", message, "command line") for key, message in faults])


@contextmanager
def faults_of_options() -> Iterator[None]:
    """Say of a fault that has no place in a file that it is one of an option."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            [
                Fault(f"--{f.key.replace('_', '-')}", f.message, "command line")
                if f.path is None
                else f
                for f in error.faults
            ]
        ) from error
