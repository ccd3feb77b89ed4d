"""Words that all rooms share: counts, the known name that a misspelt one is likely to mean."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Literal, ParamSpec, TypeVar

from gdtrain.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

# Words in the names of metrics that are the better the higher they are, unless they are errors.
_HIGHER_IS_BETTER = {"accuracy", "acc", "r2", "f1", "precision", "recall", "auroc", "auc", "iou"}
_ERRORS = {"loss", "error"}


def best_of(metric: str) -> Literal["min", "max"]:
    """Whether lower or higher values of a metric are better, by the words of its name.

    >>> best_of("val_f1_class_2"), best_of("val_loss"), best_of("balanced accuracy")
    ('max', 'min', 'max')
    """
    words = set(re.split("[^a-z0-9]+", metric.lower()))
    return "max" if words & _HIGHER_IS_BETTER and not words & _ERRORS else "min"


def counted(number: int, noun: str) -> str:
    """A number of things, in words: 1 update, 1,438 updates."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def is_number(cell: str) -> bool:
    """Whether the text of a cell is a number, NaN and infinity included."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that is most like ``word`` in any case, or None if none is like it.

    >>> nearest("optimiser", ["loader", "optimizer"])
    'optimizer'
    >>> nearest("PRICE", ["price", "rooms"])
    'price'
    """
    in_lower_case = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), list(in_lower_case), n=1)
    return in_lower_case[near[0]] if near else None


def first_guesses(
    *, by_place: str | None = None, **remedies: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Has a function refuse, in a line that says what to write, arguments that it does not take.

    remedies: of names that other libraries have, what is written here instead. by_place: the same
    where inputs and targets are given as arguments without a name.

    >>> @first_guesses(epochs="is called num_epochs here")
    ... def fit(num_epochs): ...
    >>> fit(epochs=3)
    Traceback (most recent call last):
    gdtrain.errors.ConfigError: epochs: is called num_epochs here
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*arguments: P.args, **options: P.kwargs) -> R:
            try:
                return function(*arguments, **options)
            except TypeError:
                fault = _fault_of(function, arguments, options, remedies, by_place)
                if fault is None:
                    raise  # of what the function does
            raise fault

        return called

    return decorated


def _fault_of(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    options: dict[str, object],
    remedies: dict[str, str],
    by_place: str | None,
) -> ConfigError | None:
    """Why a call can't be made, if it can't."""
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        known = [name for name in signature.parameters if name != "self"]
        for name in options:
            if name not in known:
                near = nearest(name, known)
                meant = f"did you mean {near}?" if near else f"they are {', '.join(known)}"
                return ConfigError.of(name, remedies.get(name, f"is not an argument; {meant}"))
        is_missing = str(error).startswith("missing")
        if by_place is not None and not is_missing:
            return ConfigError.of("data", by_place)
        owner = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
        return ConfigError.of(owner, f"{error}{'' if is_missing else '; give options by names'}")
    return None


# ── tables in HTML, which notebooks show in the place of a text ─────────────────────────────


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table of texts, of which nothing is obeyed. note: a line below it."""
    top = f"<thead>{_row(head, 'th')}</thead>" if head else ""
    body = "".join(_row(row, "td") for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table>{top}<tbody>{body}</tbody></table>{below}"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
