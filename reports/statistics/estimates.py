"""Numbers with the ends of their confidence intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from reports.statistics.distances import accuracy_at, accuracy_interval, median_distance, median_interval


class Estimate(NamedTuple):
    """A number with the ends of its 95 % confidence interval; NaN for what is missing."""

    value: float
    low: float = np.nan
    high: float = np.nan


MISSING = Estimate(np.nan)


def median_estimate(distances: ArrayLike) -> Estimate:
    """Returns the median distance with its interval (`reports.statistics.distances`)."""
    return Estimate(median_distance(distances), *median_interval(distances))


def accuracy_estimate(distances: ArrayLike, epsilon: float) -> Estimate:
    """Returns the accuracy at ``epsilon`` with its interval (`reports.statistics.distances`)."""
    return Estimate(accuracy_at(distances, epsilon), *accuracy_interval(distances, epsilon))
