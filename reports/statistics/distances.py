"""Statistics of distances to the smallest adversarial examples: pure functions on arrays.

A distance is 0 for a clean error, finite if an adversarial example is known, and infinite if none was found. It is NaN
if the attack failed or broke the rules (design.md, "Ledger").
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import quantile_test

from bench.contracts.norms import within
from bench.ledger.intervals import wilson_interval

FloatArray = NDArray[np.float64]


def median_distance(distances: ArrayLike) -> float:
    """Returns the median: the mean of the two middle order statistics. The two coincide for an odd count.

    Half of the samples have an adversarial example at most this far away (Schott et al. 2019, section 6). The median is
    infinite if the upper order statistic is infinite. It is NaN for no distances, or if any distance is NaN.
    """
    ordered = np.sort(np.asarray(distances, dtype=np.float64))
    if ordered.size == 0 or np.isnan(ordered[-1]):  # np.sort puts NaN last
        return np.nan
    return float((ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2)


def median_interval(distances: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Returns a distribution-free confidence interval of the median (Conover 1999, section 3.2).

    Its ends are two order statistics, so infinite distances count as large. An end is 0 or infinity if there are too
    few samples for an order statistic. Both ends are NaN for no samples, or if any distance is NaN.
    """
    values = np.asarray(distances, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        return np.nan, np.nan
    low, high = order_statistics(values.size, confidence)
    ordered = np.sort(values)
    return 0.0 if low is None else float(ordered[low]), np.inf if high is None else float(ordered[high])


@cache
def order_statistics(samples: int, confidence: float) -> tuple[int | None, int | None]:
    """Returns the positions, from 0, of the order statistics that enclose the median.

    A position is None if there are too few samples for it.
    """
    ends: Any = quantile_test(np.arange(samples), p=0.5).confidence_interval(confidence)
    low, high = (None if np.isnan(end) else int(end) for end in (ends.low, ends.high))
    return low, high


def accuracy_at(distances: ArrayLike, epsilon: float) -> float:
    """Returns the share of samples without a known adversarial example within ``epsilon``.

    The share is NaN for no samples, or if any distance is NaN.
    """
    values = np.asarray(distances, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        return np.nan
    return float(np.mean(~within(values, epsilon)))


def accuracy_interval(distances: ArrayLike, epsilon: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's confidence interval of `accuracy_at` (Wilson 1927), NaN if the accuracy is NaN."""
    values = np.asarray(distances, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        return np.nan, np.nan
    low, high = wilson_interval(np.mean(~within(values, epsilon)), values.size, confidence)
    return float(low), float(high)


def curve_area(distances: ArrayLike, end: float) -> float:
    """Returns the area under the accuracy-distortion curve from 0 to ``end``.

    It equals the mean of the distances after clipping at ``end``. It is NaN for no distances, or if any distance is
    NaN.
    """
    values = np.asarray(distances, dtype=np.float64)
    return float(np.minimum(values, end).mean()) if values.size else np.nan


def local_optimality(distances: ArrayLike, best: ArrayLike) -> float:
    """Returns how near one attack on one defense comes to the best known adversarial examples, from 0 to 1.

    It is 1 if the attack finds the nearest known ones. It is 0 if the attack breaks nothing within e, the largest
    distance that the best ones need. The measure is the "local optimality" of AttackBench (Cina, Rony, Pintor,
    Demetrio, Demontis, Biggio, Ben Ayed & Roli 2024). The mean over defenses is their global optimality.

    The value is 1 - (A - B) / (a e - B). A and B are the areas under the attack's and the best curve up to e, and a is
    the clean accuracy. The value is NaN if any distance is NaN, or if the best break no correctly classified image.

    Args:
        distances: of the attack, (S,).
        best: the smallest distances that any attack found for the same samples, (S,).
    """
    values, smallest = np.asarray(distances, dtype=np.float64), np.asarray(best, dtype=np.float64)
    finite = smallest[np.isfinite(smallest)]
    end = float(finite.max()) if finite.size else 0.0
    if end == 0 or np.isnan(values).any() or np.isnan(smallest).any():
        return np.nan
    least, most = curve_area(smallest, end), float(np.mean(smallest > 0)) * end
    # If all images that the best break lie at distance e, the two areas are equal and the ratio is undefined.
    return 1 - (curve_area(values, end) - least) / (most - least) if most > least else float(np.all(values <= smallest))


def accuracy_distortion_curve(distances: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Returns the steps of accuracy against epsilon, for distances without NaN.

    Returns:
        ``epsilons``, ascending from 0, and ``accuracies``: the share of distances greater than each epsilon. The
        accuracy is constant up to the next epsilon.
    """
    values = np.asarray(distances, dtype=np.float64)
    epsilons, counts = np.unique(np.append(values[np.isfinite(values)], 0.0), return_counts=True)
    counts[0] -= 1  # the appended 0 is no sample
    return epsilons, 1 - np.cumsum(counts) / max(values.size, 1)
