"""Shares of cases in which something is nearly as good as the best of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
