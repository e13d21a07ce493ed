"""Lower bounds on the distance, compared with the smallest adversarial examples."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
from scipy.stats import binom

from bench.contracts.norms import NormName
from reports.statistics.records import smallest_adversarials
from reports.statistics.significance import holm

REFUTATION_LEVEL = 0.001
"""Significance level of the test on fresh draws that refutes certificates of a randomized defense.

It holds for all certificates of a defense and norm together.
"""
ROUNDING = 1e-6
"""Relative margin by which an adversarial example must lie within a lower bound to refute the bound."""


def brackets(
    records: pd.DataFrame,
    bounds: pd.DataFrame,
    norm: NormName,
    randomized: Collection[str] = (),
    refutations: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compares each lower bound in ``norm`` with the smallest adversarial example of the same defense and sample.

    Args:
        records: records of attacks.
        bounds: records of studies of lower bounds (`bench.studies.bounds`).
        norm: the norm of the bounds and distances that are compared.
        randomized: the defenses whose certificates are tested on draws.
        refutations: records of these tests, with the columns ``defense``, ``norm``, ``sample``, ``errors`` and
            ``draws``.

    Returns:
        The columns of the bounds, with ``distance``, ``refuted`` and ``untested`` added. ``distance`` is infinity if
        no adversarial example was found, and NaN if the result is unknown. A bound is refuted if an adversarial
        example lies within it by more than rounding. For a certificate of a randomized defense, a separate test on
        fresh draws must also show that the example is adversarial (`significant_errors`). Without this test the
        certificate is untested.
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


def significant_errors(refutations: pd.DataFrame | None, norm: NormName) -> pd.Series:
    """Tests, by draws, whether images are misclassified more often than not.

    Each sample gets a one-sided exact binomial test at level `REFUTATION_LEVEL`. Holm's method adjusts for the tested
    samples of the same defense and norm.

    Returns:
        bool, indexed by defense and sample; empty if nothing was tested.
    """
    nothing = pd.Series(dtype=bool, index=pd.MultiIndex.from_arrays([[], []], names=["defense", "sample"]))
    if refutations is None or refutations.empty:
        return nothing
    own = refutations[(refutations["norm"] == norm) & (refutations["draws"] > 0)]
    p = pd.Series(binom.sf(own["errors"] - 1, own["draws"], 0.5), index=[own["defense"], own["sample"]])
    return p.groupby(level=0).transform(holm) < REFUTATION_LEVEL if len(p) else nothing
