"""Wilson's interval of a share. Imports no torch, so that reports can use it."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

FloatArray = NDArray[np.float64]


def wilson_interval(shares: ArrayLike, samples: ArrayLike, confidence: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Returns the lower and upper ends of Wilson's confidence intervals (Wilson 1927).

    ``shares`` are shares of ``samples`` samples, in [0, 1].
    """
    p, n = np.asarray(shares, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    z2 = _quantile(0.5 + confidence / 2) ** 2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)


@cache
def _quantile(probability: float) -> float:
    """Returns a quantile of the standard normal distribution."""
    return float(norm.ppf(probability))
