"""Student's t agrees with SciPy."""

import numpy as np
import pytest
import scipy

from gdtrain.analysis.statistics.student_t import quantile, tail


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 29, 299, 2.5])
def test_probabilities_and_quantiles_are_those_of_scipy(freedom):
    for t in (0.0, 1e-9, 0.3, 1.0, 2.776, 12.0, -3.0, 300.0):
        assert tail(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(abs(t), freedom), rel=1e-9)
    for p in (0.5, 0.6, 0.8, 0.975, 0.9975, 1 - 1e-7, 0.025, 1e-5):
        exact = scipy.stats.t.ppf(p, freedom)
        assert quantile(p, freedom) == pytest.approx(exact, rel=1e-8, abs=1e-12)


def test_infinite_t_has_no_tail():
    assert tail(np.inf, 3) == 0.0
