"""Which columns of a table are inputs and which are targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain

from gdtrain.errors import ConfigError, DataError
from gdtrain.near_names import nearest

_SHOWN_NAMES = 50


def check_columns(
    path: str,
    header: list[str],
    features: list[str] | None,
    wanted: list[str],
    categorical: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    missing: Collection[str] = (),
    indicator: Sequence[str] = (),
) -> list[str]:
    """Names of the input columns: ``features``, or all but the targets ``wanted`` and ``exclude``.

    missing, indicator: columns that these settings name. Raises DataError for names that the
    header does not have, and ConfigError for a choice of columns that makes no sense.
    """
    there = set(header)
    if not wanted:
        raise ConfigError.of("target", "must name at least one column")
    of_cells = {"categorical": categorical, "keep": keep, "missing": missing}
    for name in (*wanted, *(features or ()), *exclude, *chain(*of_cells.values()), *indicator):
        if name not in there:
            near = nearest(name, header)
            hint = f"did you mean {near}?" if near else f"it has {_listed(header)}"
            alone = "; if it should have several, set delimiter" if len(header) == 1 else ""
            raise DataError(f"{path}: has no column {name!r}; {hint}{alone}")
    left_out = {*wanted, *exclude}
    chosen = [n for n in header if n not in left_out] if features is None else features
    if not chosen:
        raise DataError(f"{path}: has no input columns besides the target; at least one is needed")
    used = [*chosen, *wanted]
    counts = Counter(used)
    for name in used:
        if counts[name] > 1:
            raise DataError(f"{path}: column {name!r} is chosen twice; as feature or target, once")
    for key, names in of_cells.items():
        for name in names:
            if name not in counts:
                raise ConfigError.of(key, f"{name!r} is neither a feature nor the target")
    for name in indicator:
        if name not in chosen:
            raise ConfigError.of("indicator", f"{name!r} is no feature; remove it")
    for name in exclude:
        if name in counts:
            raise ConfigError.of("exclude", f"{name!r} is a feature or the target too; remove one")
    return chosen


def _listed(names: list[str]) -> str:
    """The names, or the first of many and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
