"""Reduces records to one value per sample, and to facts about single cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from bench.contracts.norms import NormName
from bench.ledger.schema import Status
from reports.statistics.distances import FloatArray

COSTS = ("forwards", "backwards", "inner_steps", "seconds")
"""Columns that hold what an attack spent on an image."""


def smallest_adversarials(records: pd.DataFrame, norm: NormName) -> pd.DataFrame:
    """Returns, for each defense and sample, the record with the smallest distance in ``norm``.

    This is the row "All L2 attacks" of Schott et al. Every attack in that threat model takes part. Bounded attacks take
    part with the adversarial examples they found. NaN is skipped, so the other attacks decide. The distance is NaN if
    no attack has one.

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


@dataclass(frozen=True)
class CellFacts:
    """Facts about one cell, computed from all its records.

    Attributes:
        costs: means over the attacked images of the columns ``forwards``, ``backwards``, ``inner_steps`` and
            ``seconds``, by name; NaN if no image was attacked.
        dubious: whether any record shows a useless derivative, a vanished adversarial example, a remark, an exhausted
            budget or a candidate with logits that are not finite.
        breaks: whether an attacked image was broken.
    """

    costs: dict[str, float]
    dubious: bool
    breaks: bool


def cell_facts(records: pd.DataFrame) -> dict[str, CellFacts]:
    """Returns the facts of each cell, keyed by its id.

    All cells are computed at once because there may be thousands.
    """
    codes, cells = pd.factorize(records["cell"])
    attacked = ~records["status"].isin([Status.CLEAN_ERROR, Status.FAILED]).to_numpy()

    def sums(values: Any) -> FloatArray:
        return np.bincount(codes, np.asarray(values, dtype=np.float64), len(cells)).astype(np.float64)

    counts = sums(attacked)
    counts[counts == 0] = np.nan
    means = {cost: sums(np.where(attacked, records[cost], 0)) / counts for cost in COSTS}
    dubious = (
        (records["useless_gradients"] > 0) & (records["backwards"] > 0)
        | records["claimed"] & ~records["broken"]
        | (records["remarks"] != "")
        | (records["status"] == Status.BUDGET)
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
    """Returns a column of records, indexed by sample."""
    return pd.Series(records[column].to_numpy(), index=records["sample"].to_numpy())


def detection(records: pd.DataFrame) -> dict[str, float]:
    """Returns what one study of detection (`bench.studies.detection`) found, as shares in [0, 1].

    Returns:
        Four numbers compare clean images with adversarial examples. The clean images are those that are classified
        correctly. The adversarial examples are their PGD images that are misclassified. The numbers are NaN if there
        are no such images.

        - ``false_alarms``: share of the clean images that are refused.
        - ``detected``: share of the adversarial examples that are refused.
        - ``accuracy``: mean of ``detected`` and 1 - ``false_alarms``.
        - ``auc``: area under the receiver operating characteristic. It is the probability that an adversarial example
          is more suspicious than a clean image (Mann and Whitney's statistic, where ties count one half).

        Three numbers are shares of all images.

        - ``undefended``: right under PGD.
        - ``defended``: right or refused under PGD.
        - ``evading``: right or refused under PGD that also evades the detector.
    """
    right, fooled = records["status"] != Status.CLEAN_ERROR, records["fooled"].astype(bool)
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
    """Returns 0 for each sample that one defense misclassifies without attack, and infinity for the others.

    The value is NaN if no record of the sample has a clean prediction. ``records`` are of one defense, with any attacks
    and norms.
    """
    judged = (records["clean_prediction"] >= 0).groupby(records["sample"]).any()
    mistaken = (records["status"] == Status.CLEAN_ERROR).groupby(records["sample"]).any()
    return pd.Series(np.where(mistaken, 0.0, np.where(judged, np.inf, np.nan)), index=judged.index)
