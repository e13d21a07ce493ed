"""Two runs side by side: which cells moved, by how much, and whether the change is significant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from bench.contracts.errors import UserError
from bench.contracts.norms import NormName
from reports.runs.rows import all_attacks
from reports.runs.run import Run
from reports.statistics.distances import accuracy_at, median_distance
from reports.statistics.significance import SIGNIFICANCE_LEVEL, holm

TOGETHER = ""
"""Stands for an attack's label: the per-sample minimum over all attacks."""
COLUMNS = ("before", "after")
SAME = 1e-4
"""Relative difference below which two distances count as the same.

Another number of threads or another version of a library rounds differently.
"""


@dataclass(frozen=True)
class Comparison:
    """What changed from one run to another.

    Attributes:
        cells: the cells in which a distance differs, one row each. Columns: ``defense``, ``norm``, ``attack``,
            ``samples`` (number compared), ``median_before``, ``median_after``, ``accuracy_before`` and
            ``accuracy_after`` (at the first run's threshold), ``nearer`` and ``farther`` (numbers of samples whose
            adversarial example is now nearer or farther), ``p`` (two-sided sign test that nearer and farther are
            equally likely) and ``adjusted`` (p adjusted for the number of cells compared, by Holm's method).
        compared: number of cells with samples known in both runs.
        missing: one line for each cell that only one run has, and for each cell with images known in only one run or
            none known in both.
    """

    cells: pd.DataFrame
    compared: int
    missing: list[str]

    @property
    def significant(self) -> bool:
        """True if a cell changed significantly (adjusted p < `reports.statistics.significance.SIGNIFICANCE_LEVEL`)."""
        return bool((self.cells["adjusted"] < SIGNIFICANCE_LEVEL).any())


def compare(before: Run, after: Run) -> Comparison:
    """Compares every cell, and the minimum over attacks of each defense and norm, on the images of both runs.

    Raises:
        UserError: when the runs are of different datasets or have no image in common.
    """
    if before.dataset != after.dataset:
        raise UserError(f"the runs are of different datasets: {before.dataset} and {after.dataset}")
    if not set(before.records["sample_hash"]) & set(after.records["sample_hash"]):
        raise UserError("the runs have no image in common")
    first, second = _distances(before), _distances(after)
    rows, missing = [], []
    for place in [*first, *(place for place in second if place not in first)]:
        defense, norm, attack = place
        title = f"{defense} · {attack or all_attacks(norm)} · {norm}"
        if place not in first or place not in second:
            missing.append(f"{title}: only in the {'second' if place in second else 'first'} run")
            continue
        both = pd.concat([first[place], second[place]], axis=1, join="inner", keys=COLUMNS)
        pairs = both.dropna()
        lost, gained = (int((both[one].isna() & both[other].notna()).sum()) for one, other in (COLUMNS, COLUMNS[::-1]))
        if lost or gained:
            missing.append(f"{title}: {gained} images known in the first run only, {lost} in the second only")
        if pairs.empty:
            missing.append(f"{title}: no image with a known distance in both")
            continue
        rows.append({"defense": defense, "norm": norm, "attack": attack, **_moved(pairs, before.threshold(norm))})
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["adjusted"])
    if rows:
        frame["adjusted"] = holm(frame["p"])
        frame = frame[frame["nearer"] + frame["farther"] > 0].reset_index(drop=True)
    return Comparison(frame, len(rows), missing)


def _distances(run: Run) -> dict[tuple[str, NormName, str], pd.Series]:
    """Returns the distances by sample and sample hash of each defense, norm and attack label in a run.

    The label `TOGETHER` stands for all attacks.
    """
    found: dict[tuple[str, NormName, str], pd.Series] = {}
    for norm, attacks in run.in_norms.items():
        smallest = attacks.smallest.set_index(["sample", "sample_hash"])
        for row in attacks.rows:
            for defense in row.cells:
                records = attacks.records_of(row, defense)
                if records is not None:
                    found[defense, norm, row.label] = records.set_index(["sample", "sample_hash"])[norm.lower()]
        for name in run.defenses:
            own = smallest.loc[smallest["defense"] == name, "distance"]
            if len(own):
                found[name, norm, TOGETHER] = own
    return found


def _moved(pairs: pd.DataFrame, threshold: float) -> dict[str, float]:
    first, second = pairs["before"].to_numpy(), pairs["after"].to_numpy()
    moved = ~np.isclose(first, second, rtol=SAME, atol=0)
    nearer, farther = int(np.sum(moved & (second < first))), int(np.sum(moved & (second > first)))
    return {
        "samples": len(pairs),
        "median_before": median_distance(first),
        "median_after": median_distance(second),
        "accuracy_before": accuracy_at(first, threshold),
        "accuracy_after": accuracy_at(second, threshold),
        "nearer": nearer,
        "farther": farther,
        "p": binomtest(nearer, nearer + farther).pvalue if nearer + farther else 1.0,
    }
