"""The interval is SciPy's."""

import pytest
from scipy.stats import binomtest

from pipeline.evaluation.interval import wilson


@pytest.mark.parametrize(("wrong", "seen"), [(0, 15), (9, 15), (15, 15), (1, 3), (437, 1000), (21_000, 50_000)])
def test_the_interval_is_scipys(wrong, seen):
    wanted = binomtest(wrong, seen).proportion_ci(0.95, method="wilson")
    assert wilson(wrong, seen) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_nothing_seen_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
