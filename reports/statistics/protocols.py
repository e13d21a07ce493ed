"""Accuracy of randomized defenses under three protocols."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bench.ledger.intervals import wilson_interval
from reports.statistics.distances import FloatArray


def survival(errors: ArrayLike, draws: ArrayLike, resubmissions: int) -> FloatArray:
    """Estimates the probability that a sample survives N submissions of the same image to a randomized defense.

    With k wrong draws among n, the estimate is C(n - k, N) / C(n, N). This is the share of choices of N draws that
    contain no wrong one. The estimate is unbiased for N <= n. One submission (N = 1) gives 1 - k / n.

    Args:
        errors: k of each sample, (S,).
        draws: n of each sample, (S,).
        resubmissions: N.

    Returns:
        Probabilities (S,) in [0, 1]; NaN where n < N.
    """
    k, n = (np.asarray(counts, dtype=np.float64)[..., None] for counts in (errors, draws))
    done = np.arange(resubmissions)
    with np.errstate(divide="ignore", invalid="ignore"):
        right = np.clip((n - k - done) / (n - done), 0, 1)
    return np.asarray(np.where(n[..., 0] < resubmissions, np.nan, right.prod(-1)))


def share_interval(
    shares: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the mean of one share per sample, and the lower and upper end of its bootstrap interval over samples.

    The interval takes percentiles (Efron & Tibshirani 1993, section 13.3). If all shares are equal, the bootstrap
    cannot vary, and the interval is Wilson's. All three numbers are NaN for no samples, or if any share is NaN.
    """
    values = np.asarray(shares, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        return np.nan, np.nan, np.nan
    mean = float(values.mean())
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) == 1:
        low, high = wilson_interval(distinct[0], values.size, confidence)
        return mean, float(low), float(high)
    # A resample is determined by how often it holds each value.
    drawn = np.random.default_rng(seed).multinomial(values.size, counts / values.size, size=resamples)
    low, high = np.quantile(drawn @ distinct / values.size, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return mean, float(low), float(high)


def likeliest(records: pd.DataFrame) -> pd.DataFrame:
    """Returns, for each sample, the record of the attack whose likeliest image was misclassified most often.

    The choice uses ``likely_rate``, a rate over the choosing and deciding draws. So ``likely_errors`` among
    ``likely_draws`` stay unbiased. Records without draws are skipped.

    Args:
        records: records of one randomized defense in one norm.
    """
    drawn = records[records["likely_draws"] > 0]
    return drawn.sort_values("likely_rate", ascending=False, kind="stable").drop_duplicates("sample")
