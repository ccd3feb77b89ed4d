"""Times to a target as a survival curve: runs that never reached it count as such."""

from __future__ import annotations

import math
from collections.abc import Sequence


def reached_by(
    times: Sequence[float | None], ends: Sequence[float]
) -> tuple[list[float], list[float]]:
    """(times, the share of runs that have reached the target by then), a step a time.

    times: of each run, to the target; None if it never got there. ends: how long each was watched.
    Kaplan and Meier's (1958) estimate, which a run that was watched for less does not bias:
    1 - Π (1 - d/r) over the times so far, of the r runs that were still watched and under way.

    >>> reached_by([1.0, None, 3.0], [5.0, 2.0, 5.0])
    ([1.0, 3.0], [0.33333333333333337, 1.0])
    """
    left, at, shares = 1.0, [], []
    for time in sorted({time for time in times if time is not None}):
        watched = sum(
            (end if own is None else own) >= time for own, end in zip(times, ends, strict=True)
        )
        left *= 1 - times.count(time) / watched
        at.append(time)
        shares.append(1 - left)
    return at, shares


def median_time(times: Sequence[float | None], ends: Sequence[float]) -> float:
    """The time by which half of the runs have reached the target; inf if they never do."""
    at, shares = reached_by(times, ends)
    return next((time for time, share in zip(at, shares, strict=True) if share >= 0.5), math.inf)
