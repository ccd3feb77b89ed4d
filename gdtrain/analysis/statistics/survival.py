"""Shares of runs: that have reached a target by a time, or are nearly as good as the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


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


def profile(
    costs: Mapping[str, Sequence[float | None]], factors: Sequence[float]
) -> dict[str, list[float]]:
    """Performance profiles (Dolan and Moré, 2002), of each name a share for each factor.

    costs: of each name, one a case, > 0; None where it failed. The share of cases in which its
    cost is at most ``factor`` times the least of all. A case in which all failed counts for none.

    >>> profile({"a": [1.0, 4.0], "b": [2.0, 2.0]}, [1, 2])
    {'a': [0.5, 1.0], 'b': [0.5, 1.0]}
    """
    cases = list(zip(*costs.values(), strict=True))
    best = [min((cost for cost in case if cost is not None), default=0.0) for case in cases]
    return {
        name: [
            sum(c is not None and c <= factor * b for c, b in zip(own, best, strict=True))
            / max(1, len(best))
            for factor in factors
        ]
        for name, own in costs.items()
    }


def near_the_best(losses: Sequence[float | None], within: float = 0.1) -> float | None:
    """How little it matters which: the share of losses within 10 % of the best, |best| taken.

    losses: one for each learning rate; None where a run diverged. None if all did.
    """
    known = [loss for loss in losses if loss is not None]
    if not known:
        return None
    bound = min(known) + within * abs(min(known))
    return sum(loss <= bound for loss in known) / len(losses)
