"""Survival curves agree with SciPy's, and profiles with their definition."""

import math

import numpy as np
import pytest
import scipy

from gdtrain.analysis.statistics.survival import median_time, near_the_best, profile, reached_by


def test_kaplan_and_meier_is_that_of_scipy():
    draw = np.random.default_rng(0)
    own, ends = draw.exponential(1.0, 40).round(1) + 0.1, draw.exponential(1.5, 40).round(1) + 0.1
    times = [float(t) if t <= end else None for t, end in zip(own, ends, strict=True)]
    known = scipy.stats.CensoredData.right_censored(np.minimum(own, ends), own > ends)
    expected = scipy.stats.ecdf(known).cdf
    at, shares = reached_by(times, ends.tolist())
    assert shares == pytest.approx(expected.evaluate(at))


def test_the_median_time_needs_half_of_the_runs():
    assert median_time([1.0, 3.0, None], [9.0] * 3) == 3.0
    assert median_time([1.0, None, None], [9.0] * 3) == math.inf
    assert reached_by([None], [1.0]) == ([], [])


def test_profiles_and_sensitivity():
    costs = {"a": [1.0, None, 4.0, None], "b": [3.0, 2.0, 2.0, None]}
    assert profile(costs, [1, 2, 3]) == {"a": [0.25, 0.5, 0.5], "b": [0.5, 0.5, 0.75]}
    assert near_the_best([1.0, 1.05, 2.0, None]) == 0.5
    assert near_the_best([-1.0, -0.95, -0.5]) == pytest.approx(2 / 3)
    assert near_the_best([None, None]) is None
