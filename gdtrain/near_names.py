"""The known name that a misspelt one is likely to mean, for every message that suggests one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that is most like ``word``, or None if none is like it.

    >>> nearest("optimiser", ["loader", "optimizer"])
    'optimizer'
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
