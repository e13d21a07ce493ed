"""Paired tests between defenses, with correction for multiple testing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom, chi2

from reports.statistics.distances import FloatArray

SIGNIFICANCE_LEVEL = 0.01
"""Significance level of the tests between defenses and between runs, as in the papers."""


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Returns the p-value of McNemar's exact test that two defenses survive equally often on the same samples.

    Let b samples survive only under the first defense, and c only under the second. The test is the two-sided binomial
    test of b out of b + c at one half: min(1, 2 P(X <= min(b, c))). The p-value is 1 if the defenses never differ.

    Args:
        first: survival of each sample under the first defense, bool (S,).
        second: survival of the same samples under the second defense, bool (S,).
    """
    survived, also = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int(np.sum(survived & ~also)), int(np.sum(also & ~survived))
    tail = binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)
    return min(1.0, 2 * float(tail))


def falls(smaller: ArrayLike, larger: ArrayLike) -> float:
    """Tests whether a larger setting of an attack breaks fewer images than a smaller one.

    Returns the one-sided p-value of McNemar's exact test, 1 if the two settings never differ.

    Args:
        smaller: whether the smaller setting breaks each image, bool (S,).
        larger: whether the larger setting breaks the same images, bool (S,).
    """
    before, after = np.asarray(smaller, dtype=bool), np.asarray(larger, dtype=bool)
    lost, gained = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    return float(binom.sf(lost - 1, lost + gained, 0.5))


def holm(p_values: ArrayLike) -> FloatArray:
    """Adjusts p-values for their number by Holm's step-down method (Holm 1979).

    The result has shape (M,). A NaN stays NaN and is not counted.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw)[: int(np.sum(~np.isnan(raw)))]  # NaN sorts last
    steps = raw[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(raw.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def significantly_best(survived: pd.DataFrame, alpha: float) -> str | None:
    """Returns the defense that survives most often, if it differs significantly from each of the others.

    The tests are McNemar's exact tests. Their p-values, adjusted for their number by `holm`, must all be below
    ``alpha``. Returns None otherwise.

    Args:
        survived: survival of each sample (rows) under each defense (columns), bool.
        alpha: significance level of the tests together.
    """
    best = str(survived.mean().idxmax()) if survived.size else ""
    others = [name for name in survived if name != best]
    p_values = holm([mcnemar(survived[best], survived[other]) for other in others])
    return best if others and bool((p_values < alpha).all()) else None


def cochran_q(survived: ArrayLike) -> tuple[float, float]:
    """Returns Cochran's Q and its p-value for the hypothesis that K defenses survive equally often (Cochran 1950).

    All defenses are measured on the same samples. Under the hypothesis, Q is approximately chi-squared with K - 1
    degrees of freedom. The result is (0, 1) if no sample distinguishes the defenses.

    Args:
        survived: survival of each sample under each defense, bool (S, K).
    """
    table = np.asarray(survived, dtype=np.float64)
    count = table.shape[1]
    columns, rows = table.sum(0), table.sum(1)
    spread = float(np.sum(rows * (count - rows)))
    if spread == 0:
        return 0.0, 1.0
    q = count * (count - 1) * float(np.sum((columns - columns.mean()) ** 2)) / spread
    return q, float(chi2.sf(q, count - 1))


def median_difference(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the median distance under ``first`` minus that under ``second``, and the ends of its bootstrap interval.

    The bootstrap is paired. It takes percentiles over resamples of the samples (Efron & Tibshirani 1993, section 13.3).
    If both medians are infinite, the difference is unknown. In the interval, an unknown difference counts as minus
    infinity at the lower end and as infinity at the upper end. All three numbers are NaN for no samples, or if any
    distance is NaN.

    Args:
        first: distances (S,).
        second: distances of the same samples, (S,).
        resamples: number of bootstrap resamples.
        confidence: confidence level of the interval.
        seed: seed of the resampling.
    """
    pairs = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    if pairs.shape[1] == 0 or np.isnan(pairs).any():
        return np.nan, np.nan, np.nan
    difference = _difference(*np.median(pairs, axis=1))
    drawn = np.random.default_rng(seed).integers(pairs.shape[1], size=(resamples, pairs.shape[1]))
    medians = np.median(pairs[:, drawn], axis=2)
    differences = _difference(*medians)
    tail = (1 - confidence) / 2
    low = np.quantile(np.nan_to_num(differences, nan=-np.inf, posinf=np.inf, neginf=-np.inf), tail, method="lower")
    high = np.quantile(np.nan_to_num(differences, nan=np.inf, posinf=np.inf, neginf=-np.inf), 1 - tail, method="higher")
    return float(difference), float(low), float(high)


def _difference(first: Any, second: Any) -> Any:
    with np.errstate(invalid="ignore"):
        return first - second
