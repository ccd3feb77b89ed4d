"""Intervals cover what they say, over simulated sweeps whose truth is known."""

import math

import numpy as np
import pytest
import scipy

from gdtrain.analysis.statistics.intervals import bootstrap, mean, median

SWEEPS = 10_000  # the standard error of a coverage of 95 % is 0.22 %


def coverage(make, interval, truth):
    found = [interval(make()) for _ in range(SWEEPS)]
    return np.mean([one.low <= truth <= one.high for one in found])


@pytest.mark.few(1)
@pytest.mark.parametrize("seeds", [5, 10])
def test_the_mean_covers_95_percent_of_normal_and_lognormal_sweeps(seeds):
    draw = np.random.default_rng(seeds)
    normal = coverage(lambda: draw.normal(3.0, 2.0, seeds), mean, 3.0)
    assert 0.94 < normal < 0.96
    lognormal = coverage(
        lambda: draw.lognormal(1.0, 1.0, seeds), lambda x: mean(x, log=True), math.e
    )
    assert 0.94 < lognormal < 0.96


@pytest.mark.few(2)
@pytest.mark.parametrize("seeds", [5, 6, 8, 10, 15])
def test_the_median_covers_what_it_says(seeds):
    draw = np.random.default_rng(seeds)
    for make, truth in (
        (lambda: draw.normal(3.0, 2.0, seeds), 3.0),
        (lambda: draw.lognormal(1.0, 1.0, seeds), math.e),
    ):
        level = median(make()).level
        assert level == (0.95 if seeds > 5 else 0.9375)
        assert abs(coverage(make, median, truth) - level) < 0.015


def test_the_mean_is_that_of_scipy():
    values = [1.0, 4.0, 2.5, 3.0]
    found = mean(values)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert (found.center, found.low, found.high) == pytest.approx((2.625, low, high))
    assert mean([2.0]).low is None


def test_the_median_of_runs_some_of_which_never_got_there():
    found = median([1.0, 2.0, math.inf, 3.0, math.inf, 2.0])
    assert (found.center, found.high) == (2.5, math.inf)
    assert median([math.inf] * 3).center == math.inf
    assert (median([7.0]).center, median([7.0]).low) == (7.0, None)


def test_order_statistics_of_six_are_between_the_outer_ones():
    # P(Bin(6, ½) < 1) = 1/64 on each side: 96.875 %; with k = 2 it is 78.125 %.
    share = (0.96875 - 0.95) / (0.96875 - 0.78125)
    inward = 5 * share / (1 + 4 * share)
    found = median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert found.low == pytest.approx(1 + inward)
    assert found.high == pytest.approx(6 - inward)


def test_a_bootstrap_needs_thirty_seeds():
    def spread(x):
        return x.std(-1)

    with pytest.raises(ValueError, match=r"^values: a bootstrap needs 30, got 10$"):
        bootstrap(range(10), spread)
    x = np.random.default_rng(0).normal(size=200)
    found = bootstrap(x, spread)
    expected = scipy.stats.bootstrap((x,), np.std, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)
