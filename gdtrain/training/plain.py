"""Values from a file that anybody may have written: what they are, and how to show them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

# Far beyond any run, and such that a checkpoint's name and arrays can hold what is added to it.
_MAX_COUNT = 10**17
_SHOWN = 80


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 0 on that a run can reach."""
    return type(value) is int and 0 <= value < _MAX_COUNT


def is_number(value: Any) -> bool:
    """Whether it is a number that arithmetic in float64 bears, infinities and NaN included."""
    return type(value) is float or (type(value) is int and abs(value) < _MAX_COUNT)


def is_finite(value: Any) -> bool:
    """Whether it is such a number, and neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)


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
