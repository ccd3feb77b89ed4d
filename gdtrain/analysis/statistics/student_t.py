"""Student's t distribution: probabilities and quantiles, to twelve digits."""

from __future__ import annotations

import math
from functools import cache

_TINY = 1e-300
_MOST_TERMS = 10_000


def tail(t: float, freedom: float) -> float:
    """P(|T| > |t|) of Student's t with ``freedom`` > 0 degrees of freedom: a two-sided p-value.

    It is I_x(ν/2, ½) with x = ν / (ν + t²), the regularised incomplete beta function
    (Abramowitz and Stegun, 1964, equation 26.7.1).

    >>> round(tail(2.776, 4), 4)
    0.05
    """
    if math.isinf(t):
        return 0.0
    outside, inside = freedom / (freedom + t * t), t * t / (freedom + t * t)
    if outside < (freedom + 2) / (freedom + 5):  # where the fraction converges fast
        return _beta(outside, inside, freedom / 2, 0.5)
    return 1 - _beta(inside, outside, 0.5, freedom / 2)


@cache
def quantile(p: float, freedom: float) -> float:
    """The t with P(T < t) = p, for 0 < p < 1.

    >>> round(quantile(0.975, 4), 4)
    2.7764
    """
    if p < 0.5:
        return -quantile(1 - p, freedom)
    outside = 2 * (1 - p)
    low, high = 0.0, 1.0
    while tail(high, freedom) > outside:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if tail(middle, freedom) > outside else (low, middle)
    return (low + high) / 2


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """I_x(a, b); rest: 1 - x, to all of its digits."""
    if x == 0:
        return 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(rest)) / a
    return front * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of I_x(a, b), by Lentz's method (Press and others, 2007, 6.4)."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
