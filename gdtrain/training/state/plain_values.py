"""Plain values, from a run or from a file that anybody may have written: copy, check, show them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gdtrain.errors import CheckpointError
from gdtrain.training.placement.sharding import Part, copy_of

# Far beyond any run, and such that a checkpoint's name and arrays can hold what is added to it.
_MAX_COUNT = 10**17
# Of rates and other settings; what is computed from them must fit float32.
_MAX_SETTING = 1e30
_SHOWN = 80


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 0 on that a run can reach."""
    return type(value) is int and 0 <= value < _MAX_COUNT


def is_number(value: Any) -> bool:
    """Whether it is a number that arithmetic in float64 bears, infinities and NaN included."""
    if isinstance(value, np.generic):
        value = value.item()
    return type(value) is float or (type(value) is int and abs(value) < _MAX_COUNT)


def is_finite(value: Any) -> bool:
    """Whether it is such a number, and neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)


def is_torchs(part: Any) -> bool:
    """Whether it is of torch's own: what such keep is of one form from the start."""
    return type(part).__module__.partition(".")[0] == "torch"


# ── copies ──────────────────────────────────────────────────────────────────────────────────


def copied(value: Any, name: str) -> Any:
    """Nested dicts, lists and tuples of tensors, numbers, text and None, in copies.

    Split tensors are gathered, see :func:`gdtrain.training.placement.sharding.copy_of`. name: of
    the value, for messages.
    Raises CheckpointError, naming it, for any other kind of value: no checkpoint could hold it.
    """
    if isinstance(value, Tensor | Part):
        return copy_of(value)
    if value is None or isinstance(value, bool | int | float | str | np.bool_ | np.number):
        return value
    if isinstance(value, Mapping):
        items = {key: copied(item, f"{name}.{key}") for key, item in value.items()}
        return Counter(items) if isinstance(value, Counter) else items
    if isinstance(value, list | tuple):
        parts = [copied(item, f"{name}.{number}") for number, item in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    raise cannot_be_saved(value, name)


def cannot_be_saved(value: Any, name: str) -> CheckpointError:
    """The error for a value of a kind that checkpoints do not hold."""
    return CheckpointError(
        f"{name}: a {type(value).__name__} can't be saved; "
        "state_dict() may hold dicts, lists, tuples, tensors, numbers, text and None"
    )


# ── checks ──────────────────────────────────────────────────────────────────────────────────


def demand(holds: bool, message: str) -> None:
    """Raise CheckpointError with this message unless what is demanded holds."""
    if not holds:
        raise CheckpointError(message)


def check_plain(where: str, value: Any) -> None:
    """Raise CheckpointError unless ``value`` is such as :func:`copied` takes."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            check_plain(where, item)
        return
    known = isinstance(value, Tensor | Part | bool | str | np.bool_)
    demand(value is None or known or is_number(value), f"{where}: {shown(value)} is no plain value")


def check_like(where: str, found: Any, here: Any, *, settings: bool = False) -> None:
    """Raise CheckpointError unless ``found`` can stand where ``here`` stands: of the same form.

    A number may stand for another, and a tensor of one element for a number; of dicts the keys
    must be the same, of lists the length, of tensors dtype and shape, of texts everything.
    settings: numbers must be finite, and not negative where those here are not.
    """
    if isinstance(here, dict):
        same = isinstance(found, dict) and found.keys() == here.keys()
        demand(same, f"{where}: the state's is another, with other settings than here")
        for key, value in here.items():
            check_like(f"{where}: {key}", found[key], value, settings=settings)
    elif isinstance(here, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(here)
        demand(same, f"{where} is not a list like the one here")
        for theirs, own in zip(found, here, strict=True):
            check_like(where, theirs, own, settings=settings)
    elif isinstance(here, Tensor) and here.numel() != 1:
        same = isinstance(found, Tensor) and found.shape == here.shape
        demand(same and found.dtype == here.dtype, f"{where} is not a tensor like here")
    elif isinstance(here, bool | str | np.bool_):
        same = type(found) is type(here) and (found == here or not isinstance(here, str))
        demand(same, f"{where} is {shown(found)} in the state, and {here} here")
    elif isinstance(here, Tensor) or is_number(here):
        _check_number(where, found, here, settings)
    elif here is None:
        allowed = found is None or (not settings and (is_number(found) or _is_single(found)))
        demand(allowed, f"{where}: the state has one, and none is here")


def _check_number(where: str, found: Any, here: Any, settings: bool) -> None:
    demand(is_number(found) or _is_single(found), f"{where} is not a number")
    value = float(found)
    # Infinite is the best metric of a schedule that has seen none; a rate never is.
    demand(value == value, f"{where} is not a number")
    if settings or "lr" in where:
        demand(abs(value) <= _MAX_SETTING, f"{where} is {value}, which nothing can bear")
    demand(not settings or value >= min(float(here), 0), f"{where} is negative")


def _is_single(value: Any) -> bool:
    """Whether it is a tensor that stands for a number, as learning rates may be."""
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()


# ── messages ────────────────────────────────────────────────────────────────────────────────


def shown(value: Any) -> str:
    """A value on one line, cut short, with no character that a terminal would obey."""
    text = value if isinstance(value, str) else repr(value)
    held = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: _SHOWN + 1])
    return held if len(held) <= _SHOWN else f"{held[:_SHOWN]}…"


def shown_names(names: Iterable[str]) -> str:
    """The first few of some names, in order, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 5:,} more" if len(ordered) > 5 else ""
    return ", ".join(map(shown, ordered[:5])) + rest
