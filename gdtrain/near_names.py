"""The known name that a misspelt one is likely to mean, for every message that suggests one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
