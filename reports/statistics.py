"""Statistics of distances to the smallest adversarial: pure functions on arrays and on frames of records.

A distance is 0 for a sample that is misclassified as it is, finite where an adversarial is known, infinite where none
was found, and NaN where the attack failed or broke the rules (design.md, "Ledger").
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, chi2, mannwhitneyu, quantile_test

from bench.intervals import wilson_interval
from bench.norms import Norm, within

FloatArray = NDArray[np.float64]
COSTS = ("forwards", "backwards", "inner_steps", "seconds")
"""Columns that say what an attack spent on an image."""
REFUTED = 0.001
"""Level at which draws of their own refute the certificates of a randomized defense in a norm, together."""
ROUNDING = 1e-6
"""How far an adversarial may lie within a lower bound, relative to it, before it refutes the bound."""


def median_distance(distances: ArrayLike) -> float:
    """The mean of the two middle order statistics (they coincide for an odd count); infinite if the upper one is.

    So half of the samples have an adversarial at most this far away (Schott et al. 2019, section 6). NaN for no
    distances, or if any distance is NaN.
    """
    ordered = np.sort(np.asarray(distances, dtype=np.float64))
    if ordered.size == 0 or np.isnan(ordered[-1]):  # np.sort puts NaN last
        return np.nan
    return float((ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2)


def median_interval(distances: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """A distribution-free confidence interval of the median, between two order statistics, so that infinite distances
    count as large (Conover 1999, section 3.2).

    It is [0, infinity] where there are too few samples for more, and NaN for none or if any distance is NaN.
    """
    values = np.asarray(distances, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        return np.nan, np.nan
    low, high = _ranks(values.size, confidence)
    ordered = np.sort(values)
    return 0.0 if low is None else float(ordered[low]), np.inf if high is None else float(ordered[high])


@cache
def _ranks(samples: int, confidence: float) -> tuple[int | None, int | None]:
    """The order statistics, from 0, between which the median lies; None for one that there are too few samples for."""
    ends: Any = quantile_test(np.arange(samples), p=0.5).confidence_interval(confidence)
    low, high = (None if np.isnan(end) else int(end) for end in (ends.low, ends.high))
    return low, high


def accuracy_at(distances: ArrayLike, epsilon: float) -> float:
    """Share of samples that no adversarial within ``epsilon`` is known for; NaN for none, or if any distance is NaN."""
    values = np.asarray(distances, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        return np.nan
    return float(np.mean(~within(values, epsilon)))


def accuracy_interval(distances: ArrayLike, epsilon: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of `accuracy_at` (Wilson 1927); NaN where that is."""
    values = np.asarray(distances, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        return np.nan, np.nan
    low, high = wilson_interval(np.mean(~within(values, epsilon)), values.size, confidence)
    return float(low), float(high)


def curve_area(distances: ArrayLike, end: float) -> float:
    """Area under the accuracy-distortion curve from 0 to ``end``, which is the mean of the distances, none counting
    more than ``end``; NaN for none, or if any distance is NaN."""
    values = np.asarray(distances, dtype=np.float64)
    return float(np.minimum(values, end).mean()) if values.size else np.nan


def local_optimality(distances: ArrayLike, best: ArrayLike) -> float:
    """How near one attack on one defense comes to the best known adversarials, from 0 (it breaks nothing within the
    largest distance e that the best need) to 1 (AttackBench: Cina, Rony, Pintor, Demetrio, Demontis, Biggio, Ben Ayed &
    Roli 2024, "local optimality"; its global optimality is the mean over defenses).

    1 - (A - B) / (a e - B), where A and B are the areas under the attack's and the best curve up to e and a is the
    clean accuracy. NaN if any distance is, or where the best break nothing that is classified correctly.

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
    # Where all that the best break is as far away as the farthest, there is no area between best and nothing.
    return 1 - (curve_area(values, end) - least) / (most - least) if most > least else float(np.all(values <= smallest))


def accuracy_distortion_curve(distances: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The steps of accuracy against epsilon, for distances that are not NaN.

    Returns:
        ``epsilons``, ascending from 0, and ``accuracies``: the share of distances greater than each. The accuracy
        stays at a value until the next epsilon.
    """
    values = np.asarray(distances, dtype=np.float64)
    epsilons, counts = np.unique(np.append(values[np.isfinite(values)], 0.0), return_counts=True)
    counts[0] -= 1  # the appended 0 is no sample
    return epsilons, 1 - np.cumsum(counts) / max(values.size, 1)


def smallest_adversarials(records: pd.DataFrame, norm: Norm) -> pd.DataFrame:
    """For each defense and sample the record with the smallest distance in ``norm``: "All L2 attacks" of Schott et al.

    Every attack in that threat model takes part, bounded ones with the adversarials they found. A NaN is passed over:
    the answer is that of the other attacks, and NaN where none has one.

    Returns:
        The chosen records, with a column ``distance``, sorted by defense and sample.
    """
    own = np.flatnonzero(records["norm"] == norm)
    distances = records[norm.lower()].to_numpy(np.float64)[own]
    defenses = pd.factorize(records["defense"], sort=True)[0][own]
    samples = records["sample"].to_numpy()[own]
    places = defenses * (samples.max(initial=0) + 1) + samples
    order = np.lexsort((distances, places))  # in each place NaN is last
    _, first = np.unique(places[order], return_index=True)
    chosen = order[first]
    return records.iloc[own[chosen]].reset_index(drop=True).assign(distance=distances[chosen])


def survival(errors: ArrayLike, draws: ArrayLike, resubmissions: int) -> FloatArray:
    """Estimates the probability that a sample survives N submissions of the same image to a randomized defense.

    Of n draws of which k are wrong, it is the share of choices of N draws without a wrong one: C(n - k, N) / C(n, N).
    It is unbiased for N <= n. One submission (N = 1) gives 1 - k / n.

    Args:
        errors: k of each sample, (S,).
        draws: n of each sample.
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
    """The mean of one share per sample, and its bootstrap interval over the samples (percentiles; Efron & Tibshirani
    1993, section 13.3). Where all samples agree the bootstrap has nothing to vary, and the interval is Wilson's.

    NaN for no samples, or if any share is NaN.
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
    """For each sample the record of the attack whose likeliest image was misclassified most often when it was chosen.

    The choice uses ``likely_rate``, which comes from the choosing and deciding draws, so that ``likely_errors`` of
    ``likely_draws`` stay unbiased. Records without draws are passed over.

    Args:
        records: of one randomized defense in one norm.
    """
    drawn = records[records["likely_draws"] > 0]
    return drawn.sort_values("likely_rate", ascending=False, kind="stable").drop_duplicates("sample")


@dataclass(frozen=True)
class CellFacts:
    """What the records of one cell say together.

    Attributes:
        costs: means over the attacked images of the columns ``forwards``, ``backwards``, ``inner_steps`` and
            ``seconds``, by name; NaN where none was attacked.
        dubious: any record shows a useless derivative, an adversarial that vanished, a remark, an exhausted budget or a
            candidate with logits that are not finite.
        breaks: an attacked image was broken.
    """

    costs: dict[str, float]
    dubious: bool
    breaks: bool


def cell_facts(records: pd.DataFrame) -> dict[str, CellFacts]:
    """The facts of each cell, computed for all cells at once: there may be thousands."""
    codes, cells = pd.factorize(records["cell"])
    attacked = ~records["status"].isin(["clean_error", "failed"]).to_numpy()

    def sums(values: Any) -> FloatArray:
        return np.bincount(codes, np.asarray(values, dtype=np.float64), len(cells)).astype(np.float64)

    counts = sums(attacked)
    counts[counts == 0] = np.nan
    means = {cost: sums(np.where(attacked, records[cost], 0)) / counts for cost in COSTS}
    dubious = (
        (records["useless_gradients"] > 0) & (records["backwards"] > 0)
        | records["claimed"] & ~records["broken"]
        | (records["remarks"] != "")
        | (records["status"] == "budget")
        | (records["non_finite"] > 0)
    )
    found, breaking = sums(dubious) > 0, sums(attacked & records["broken"]) > 0
    return {
        str(cell): CellFacts(
            {cost: float(values[i]) for cost, values in means.items()}, bool(found[i]), bool(breaking[i])
        )
        for i, cell in enumerate(cells)
    }


def by_sample(records: pd.DataFrame, column: str) -> pd.Series:
    """A column of records, by sample."""
    return pd.Series(records[column].to_numpy(), index=records["sample"].to_numpy())


def brackets(
    records: pd.DataFrame,
    bounds: pd.DataFrame,
    norm: Norm,
    randomized: Collection[str] = (),
    refutations: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """For each defense and sample with a lower bound in ``norm``, the bound beside the smallest adversarial.

    Args:
        records: of attacks.
        bounds: of studies of lower bounds (`bench.bounds`).
        norm: of both.
        randomized: the defenses whose certificates are tested on draws.
        refutations: these tests' records, with the columns ``defense``, ``norm``, ``sample``, ``errors`` and ``draws``.

    Returns:
        The bounds' columns, with ``distance`` (infinity where no adversarial is known, NaN where that is unknown),
        ``refuted`` and ``untested``. A bound is refuted where an adversarial lies within it, but for rounding. For a
        certificate of a randomized defense, the draws of a test of its own have to show in addition that the
        adversarial is one (`significant_errors`); without that test it is untested.
    """
    if bounds.empty:
        return bounds.assign(distance=[], refuted=[], untested=[])
    own = bounds[(bounds["norm"] == norm) & (bounds["status"] == "bound")]
    merged = own.merge(
        smallest_adversarials(records, norm)[["defense", "sample", "distance"]], on=["defense", "sample"], how="left"
    )
    within_bound = merged["distance"] < merged["lower_bound"] * (1 - ROUNDING)
    drawn = merged["certificate"].astype(bool) & merged["defense"].isin(list(randomized))
    places = pd.MultiIndex.from_frame(merged[["defense", "sample"]])
    known = significant_errors(refutations, norm)
    tested, wrong = places.isin(known.index), places.isin(known.index[known])
    return merged.assign(refuted=within_bound & (~drawn | wrong), untested=within_bound & drawn & ~tested)


def significant_errors(refutations: pd.DataFrame | None, norm: Norm) -> pd.Series:
    """Whether draws show that an image is misclassified more often than not: by a one-sided exact binomial test of each
    sample, at `REFUTED` after Holm's adjustment for the tested samples of the same defense and norm.

    Returns:
        bool, by defense and sample; empty where nothing was tested.
    """
    nothing = pd.Series(dtype=bool, index=pd.MultiIndex.from_arrays([[], []], names=["defense", "sample"]))
    if refutations is None or refutations.empty:
        return nothing
    own = refutations[(refutations["norm"] == norm) & (refutations["draws"] > 0)]
    p = pd.Series(binom.sf(own["errors"] - 1, own["draws"], 0.5), index=[own["defense"], own["sample"]])
    return p.groupby(level=0).transform(holm) < REFUTED if len(p) else nothing


def detection(records: pd.DataFrame) -> dict[str, float]:
    """What one study of detection (`bench.detection_study`) found, as shares in [0, 1].

    Returns:
        Of the images that are classified correctly and, as adversarials, those of their PGD images that are not:
        ``false_alarms`` and ``detected``, the shares of clean images and of adversarials that are refused;
        ``accuracy``, the mean of the latter and of what is left of the former; ``auc``, the area under the receiver
        operating characteristic, which is the probability that an adversarial is more suspicious than a clean image
        (Mann and Whitney's statistic, ties counting one half). NaN where there are no such images. Of all images, the
        share that is right under PGD (``undefended``), or right or refused under PGD (``defended``) and under PGD that
        evades the detector too (``evading``).
    """
    right, fooled = records["status"] != "clean_error", records["fooled"].astype(bool)
    clean = records.loc[right, "clean_suspicion"].dropna().to_numpy(float)
    adversarial = records.loc[right & fooled, "adversarial_suspicion"].dropna().to_numpy(float)
    false_alarms = float(np.mean(clean > 0)) if len(clean) else np.nan
    detected = float(np.mean(adversarial > 0)) if len(adversarial) else np.nan
    pairs = len(clean) * len(adversarial)
    # Without a detector, suspicions are NaN and nothing is refused.
    passed = fooled & ~(records["adversarial_suspicion"] > 0) | ~right & ~(records["clean_suspicion"] > 0)
    return {
        "accuracy": (detected + 1 - false_alarms) / 2,
        "auc": float(mannwhitneyu(adversarial, clean).statistic) / pairs if pairs else np.nan,
        "detected": detected,
        "false_alarms": false_alarms,
        "undefended": float(1 - (fooled | ~right).mean()),
        "defended": float(1 - passed.mean()),
        "evading": float(1 - records["evaded"].astype(bool).mean()),
    }


def clean_distances(records: pd.DataFrame) -> pd.Series:
    """By sample, 0 where one defense misclassifies it when nobody attacks, and infinity where it does not.

    NaN for a sample without a clean prediction in any of ``records`` (of that defense, any attack and norm).
    """
    judged = (records["clean_prediction"] >= 0).groupby(records["sample"]).any()
    mistaken = (records["status"] == "clean_error").groupby(records["sample"]).any()
    return pd.Series(np.where(mistaken, 0.0, np.where(judged, np.inf, np.nan)), index=judged.index)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """p-value of McNemar's exact test that two defenses survive equally often on the same samples.

    With b samples that only the first survives and c that only the second does, it is the two-sided binomial test of b
    out of b + c at one half: min(1, 2 P(X <= min(b, c))). It is 1 where they never differ.

    Args:
        first: survival of each sample under the first defense, bool (S,).
        second: the same samples under the second.
    """
    survived, also = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int(np.sum(survived & ~also)), int(np.sum(also & ~survived))
    tail = binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)
    return min(1.0, 2 * float(tail))


def falls(smaller: ArrayLike, larger: ArrayLike) -> float:
    """One-sided p-value of McNemar's exact test that a larger setting of an attack breaks fewer images than a smaller
    one; 1 where they never differ.

    Args:
        smaller: whether each image is broken with the smaller setting, bool (S,).
        larger: the same images with the larger setting.
    """
    before, after = np.asarray(smaller, dtype=bool), np.asarray(larger, dtype=bool)
    lost, gained = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    return float(binom.sf(lost - 1, lost + gained, 0.5))


def holm(p_values: ArrayLike) -> FloatArray:
    """p-values adjusted for their number by Holm's step-down method (Holm 1979), (M,); a NaN stays and counts for
    nothing."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw)[: int(np.sum(~np.isnan(raw)))]  # NaN sorts last
    steps = raw[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(raw.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def significantly_best(survived: pd.DataFrame, alpha: float) -> str | None:
    """The defense that survives most often, where McNemar's exact test tells it from each of the others with a p-value
    below ``alpha``, adjusted for their number by `holm`; otherwise None.

    Args:
        survived: of each sample (rows) under each defense (columns), bool.
        alpha: level of the tests together.
    """
    best = str(survived.mean().idxmax()) if survived.size else ""
    others = [name for name in survived if name != best]
    p_values = holm([mcnemar(survived[best], survived[other]) for other in others])
    return best if others and bool((p_values < alpha).all()) else None


def cochran_q(survived: ArrayLike) -> tuple[float, float]:
    """Cochran's Q and its p-value, that K defenses survive equally often on the same samples (Cochran 1950).

    Under that hypothesis Q is about chi-squared with K - 1 degrees of freedom. (0, 1) where no sample tells the
    defenses apart.

    Args:
        survived: of each sample under each defense, bool (S, K).
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
    """The median distance under ``first`` minus that under ``second``, and its paired bootstrap interval (percentiles
    over resamples of the samples; Efron & Tibshirani 1993, section 13.3).

    Where both medians are infinite their difference is not known; it then counts as low as possible at the lower end
    and as high as possible at the upper one. NaN for no samples, or if any distance is NaN.

    Args:
        first: distances (S,).
        second: distances of the same samples.
        resamples: of the bootstrap.
        confidence: of the interval.
        seed: of the resamples.
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
