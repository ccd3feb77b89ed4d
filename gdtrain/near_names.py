"""The known name that a misspelt one is likely to mean, for every message that suggests one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from gdtrain.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


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
