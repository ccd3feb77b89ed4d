"""Intervals for what several seeds have given: means, medians, and shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdtrain.analysis.statistics.student_t import quantile

FEWEST_FOR_BOOTSTRAP = 30  # below, a bootstrap interval of 95 % covers 76 to 90 %
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate from a sample, and between what the true value lies.

    level: the probability with which such intervals cover the truth. low, high: None of one value.
    """

    center: float
    low: float | None
    high: float | None
    level: float


def mean(values: Sequence[float], level: float = 0.95, *, log: bool = False) -> Interval:
    """The mean with Student's interval, x̄ ± t_{n-1} s/√n.

    values: [n] finite numbers, n >= 1. log: the same of the logarithms, and back: the geometric
    mean, for what is > 0 and differs by factors, as times and losses do.

    >>> mean([1.0, 2.0, 3.0]).center
    2.0
    """
    if log:
        found = mean([math.log(value) for value in values], level)
        ends = [None if end is None else math.exp(end) for end in (found.low, found.high)]
        return Interval(math.exp(found.center), ends[0], ends[1], level)
    x = np.asarray(values, dtype=np.float64)
    center, n = float(x.mean()), len(x)
    if n < 2:
        return Interval(center, None, None, level)
    half = quantile((1 + level) / 2, n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
    return Interval(center, center - half, center + half, level)


def median(values: Sequence[float], level: float = 0.95) -> Interval:
    """The median with an interval between order statistics, whatever the distribution.

    [x_(k), x_(n+1-k)] covers the median with 1 - 2 P(Bin(n, ½) < k). Between the two k around
    ``level`` the ends are interpolated (Hettmansperger and Sheather, 1986). Of five values and
    fewer, 95 % is out of reach: the interval is all of them, and ``level`` says what that covers.
    values: [n] numbers, n >= 1; inf is one, such as the time of a run that never got there.
    """
    x = sorted(values)
    n = len(x)
    center = x[n // 2] if n % 2 else _between(x[n // 2 - 1], x[n // 2], 0.5)
    if n < 2:
        return Interval(center, None, None, level)
    wide = 1
    while wide + 1 <= n // 2 and _covered(n, wide + 1) >= level:
        wide += 1
    outer = _covered(n, wide)
    if outer <= level or wide + 1 > n // 2:
        return Interval(center, x[wide - 1], x[n - wide], outer)
    share = (outer - level) / (outer - _covered(n, wide + 1))
    inward = (n - wide) * share / (wide + (n - 2 * wide) * share)
    low = _between(x[wide - 1], x[wide], inward)
    return Interval(center, low, _between(x[n - wide], x[n - wide - 1], inward), level)


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap of a statistic that has no interval of its own.

    values: [n] finite numbers, n >= 30; ValueError below. statistic: of samples [resamples, n]
    along the last axis, such as ``lambda x: x.std(-1)``.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < FEWEST_FOR_BOOTSTRAP:
        raise ValueError(f"values: a bootstrap needs {FEWEST_FOR_BOOTSTRAP}, got {len(x)}")
    drawn = x[np.random.default_rng(seed).integers(len(x), size=(_RESAMPLES, len(x)))]
    ends = np.quantile(statistic(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(x[None])[0]), float(ends[0]), float(ends[1]), level)


def _covered(n: int, k: int) -> float:
    """The probability that the k-th smallest and the k-th largest of n enclose the median."""
    return float(1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n)


def _between(first: float, second: float, share: float) -> float:
    return first if first == second else first + share * (second - first)
