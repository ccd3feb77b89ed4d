"""Which of two forms is better, over seeds in which both had the same data and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gdtrain.analysis.statistics.student_t import quantile, tail

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000  # that are recommended


@dataclass(frozen=True)
class Pair:
    """Two forms on the same seeds.

    difference: the mean of second - first, or, if ``log``, of log(second / first); None where a
    value is missing. spread: its standard deviation over seeds. p: of no difference, two-sided;
    after :func:`holm`, corrected. low, high: where the difference lies, at the level of that
    correction; None without one. told: whether the correction leaves it significant.
    """

    first: str
    second: str
    seeds: int
    log: bool
    p: float
    difference: float | None = None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    told: bool = False


def paired(
    first: str,
    second: str,
    values: tuple[Sequence[float | None], Sequence[float | None]],
    *,
    log: bool,
) -> Pair:
    """Compare two forms; values: of each, one a seed, None for a run that never got there.

    Student's t of the differences, or of the log ratios. Where values are missing there is not a
    mean: the sign test, in which to get there is better than not, and two that did not are equal.
    """
    whole = [(a, b) for a, b in zip(*values, strict=True) if a is not None and b is not None]
    n = len(values[0])
    if len(whole) < n or n < 2:
        return Pair(first, second, n, log, _sign_test(*values))
    changes = np.array([math.log(b / a) if log else b - a for a, b in whole])
    center, spread = float(changes.mean()), float(changes.std(ddof=1))
    return Pair(first, second, n, log, _t_test(center, spread, n), center, spread)


def holm(pairs: Sequence[Pair], alpha: float = ALPHA) -> list[Pair]:
    """Correct for how many pairs there are, so that one of them errs with at most ``alpha``.

    Holm (1979): of m p-values in rising order, the i-th is multiplied by m - i. The interval of a
    pair is at the level at which it is tested.
    """
    order = sorted(range(len(pairs)), key=lambda number: pairs[number].p)
    corrected, least = list(pairs), 0.0
    for rank, number in enumerate(order):
        left = len(pairs) - rank
        pair, least = pairs[number], max(least, min(1.0, left * pairs[number].p))
        low, high = _interval(pair, 1 - alpha / left)
        corrected[number] = replace(pair, p=least, low=low, high=high, told=least <= alpha)
    return corrected


def more_seeds(pair: Pair, alpha: float) -> int | None:
    """How many more seeds would tell the two apart in four of five studies.

    By the differences seen: the smallest n with √n |d| / s >= t_{n-1}(1 - α/2) + t_{n-1}(0.8).
    None if that is over a thousand, or nobody knows. alpha: after the correction.
    """
    if not pair.difference or pair.spread is None:
        return None
    effect = abs(pair.difference) / pair.spread if pair.spread else math.inf
    low, high = 2, MOST_SEEDS
    while low < high:
        n = (low + high) // 2
        needed = quantile(1 - alpha / 2, n - 1) + quantile(POWER, n - 1)
        low, high = (low, n) if math.sqrt(n) * effect >= needed else (n + 1, high)
    return max(1, low - pair.seeds) if low < MOST_SEEDS else None


def _t_test(center: float, spread: float, n: int) -> float:
    if spread == 0:
        return float(center == 0)
    return tail(center / spread * math.sqrt(n), n - 1)


def _sign_test(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """The two-sided p-value of how often each was smaller; None is larger than any number."""
    known = [
        (math.inf if a is None else a, math.inf if b is None else b)
        for a, b in zip(first, second, strict=True)
    ]
    fewer = min(sum(a < b for a, b in known), sum(b < a for a, b in known))
    n = sum(a != b for a, b in known)
    return float(min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n))


def _interval(pair: Pair, level: float) -> tuple[float | None, float | None]:
    if pair.difference is None or pair.spread is None:
        return None, None
    half = quantile((1 + level) / 2, pair.seeds - 1) * pair.spread / math.sqrt(pair.seeds)
    return pair.difference - half, pair.difference + half
