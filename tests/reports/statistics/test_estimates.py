"""Estimates are numbers with the intervals of the functions that they are named after."""

import numpy as np

from reports.statistics.distances import accuracy_interval, median_interval
from reports.statistics.estimates import MISSING, accuracy_estimate, median_estimate

DISTANCES = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.inf]


def test_estimates_hold_the_number_and_its_interval():
    assert median_estimate(DISTANCES) == (3.5, *median_interval(DISTANCES))
    assert accuracy_estimate(DISTANCES, 1.5) == (0.75, *accuracy_interval(DISTANCES, 1.5))


def test_what_is_missing_is_no_number():
    assert np.isnan(MISSING).all()
    assert np.isnan(accuracy_estimate([], 1.0)).all()
