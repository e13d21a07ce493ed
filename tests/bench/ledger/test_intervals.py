"""Wilson's interval is statsmodels'."""

import pytest
from statsmodels.stats.proportion import proportion_confint

from bench.ledger.intervals import wilson_interval


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_wilson_interval_is_that_of_statsmodels(confidence):
    for k, n in [(0, 10), (3, 10), (50, 100), (99, 100)]:
        expected = proportion_confint(k, n, alpha=1 - confidence, method="wilson")
        assert wilson_interval(k / n, n, confidence) == pytest.approx(expected, abs=1e-9)
