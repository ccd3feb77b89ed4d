"""Tests of pairs agree with SciPy, and a table of equal forms names a winner in at most 5 %."""

import math
from itertools import combinations

import numpy as np
import pytest
import scipy

from gdtrain.analysis.statistics.pairs import holm, more_seeds, paired


def test_a_pair_is_the_t_test_of_scipy():
    draw = np.random.default_rng(0)
    a, b = draw.lognormal(0, 1, 7), draw.lognormal(0.5, 1, 7)
    plain = paired("a", "b", (a, b), log=False)
    assert plain.p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    logs = paired("a", "b", (a, b), log=True)
    assert logs.p == pytest.approx(scipy.stats.ttest_rel(np.log(a), np.log(b)).pvalue)
    (alone,) = holm([plain])
    interval = scipy.stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (alone.low, alone.high) == pytest.approx(tuple(interval))


def test_runs_that_never_got_there_are_compared_by_signs():
    pair = paired("a", "b", ([1.0, 2.0, 3.0, 1.0, None], [2.0, None, None, 4.0, None]), log=True)
    assert pair.p == pytest.approx(scipy.stats.binomtest(4, 4).pvalue)
    assert pair.difference is None
    mixed = paired("a", "b", ([1.0, None, 3.0], [2.0, 1.0, None]), log=True)
    assert mixed.p == pytest.approx(scipy.stats.binomtest(2, 3).pvalue)
    assert paired("a", "b", ([None], [None]), log=True).p == 1.0


def test_constant_differences():
    assert paired("a", "b", ([1.0, 2.0], [1.0, 2.0]), log=True).p == 1.0
    assert paired("a", "b", ([1.0, 2.0], [2.0, 4.0]), log=True).p < 1e-9


def test_holm_is_that_of_the_definition():
    pairs = [paired("a", "b", ([0.0] * 4, row), log=False) for row in np.eye(4)]
    ps = [0.01, 0.04, 0.03, 0.005]
    made = holm([type(pair)(**{**vars(pair), "p": p}) for pair, p in zip(pairs, ps, strict=True)])
    assert [pair.p for pair in made] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [pair.told for pair in made] == [True, False, False, True]


def test_an_interval_excludes_zero_just_where_the_pair_is_told():
    draw = np.random.default_rng(3)
    for _ in range(200):
        values = {name: draw.normal(shift, 1, 6) for name, shift in zip("abc", (0, 1, 2))}  # noqa: B905
        pairs = [paired(a, b, (values[a], values[b]), log=False) for a, b in combinations("abc", 2)]
        for pair in holm(pairs):
            if pair.told:
                assert pair.low > 0 or pair.high < 0


@pytest.mark.parametrize("seeds", [5, 10])
def test_equal_forms_are_told_apart_in_at_most_5_percent(seeds):
    draw = np.random.default_rng(seeds)
    wrong, sweeps = 0, 2000
    for _ in range(sweeps):
        common = draw.normal(0, 2, seeds)
        runs = [np.exp(common + draw.normal(0, 1, seeds)) for _ in range(3)]
        pairs = [paired("", "", both, log=True) for both in combinations(runs, 2)]
        wrong += any(pair.told for pair in holm(pairs))
    assert wrong / sweeps < 0.05 + 0.01


def test_as_many_seeds_as_said_tell_them_apart_in_four_of_five_studies():
    draw = np.random.default_rng(0)
    shift = draw.normal(size=6)
    shift = 0.8 + (shift - shift.mean()) / shift.std(ddof=1)
    pair = paired("a", "b", (np.zeros(6), shift), log=False)
    n = pair.seeds + more_seeds(pair, 0.05)
    studies = draw.normal(0.8, 1.0, (4000, n))
    power = np.mean(scipy.stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05)
    assert 0.78 < power < 0.88


def test_what_no_number_of_seeds_would_tell_has_none():
    draw = np.random.default_rng(0)
    noise = draw.normal(size=6)
    same = paired("a", "b", (np.zeros(6), 1e-6 + noise - noise.mean()), log=False)
    assert more_seeds(same, 0.05) is None
    missing = paired("a", "b", ([None, 1.0], [1.0, 1.0]), log=True)
    assert more_seeds(missing, 0.05) is None
    assert math.isfinite(missing.p)
