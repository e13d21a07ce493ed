"""The smallest distance over all attacks, and why a place of a table has none, or one over fewer samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from reports.runs.run import AttackRow, Run, once_per_run
from reports.statistics.records import by_sample


@once_per_run
def smallest_of(run: Run, norm: NormName) -> dict[str, pd.Series]:
    """Returns the smallest distances over all attacks by sample, for each defense that has some."""
    return {str(name): by_sample(own, "distance") for name, own in run.smallest(norm).groupby("defense")}


@once_per_run
def gaps_of(run: Run, norm: NormName, defense: str) -> list[str]:
    """Returns the attacks on a defense whose cell has not run or lacks valid results, each with its problem.

    A missing result counts only on images for which another attack has a valid result. If no attack has any, it counts
    on all images.
    """
    distances = smallest_of(run, norm).get(defense, pd.Series(dtype=float))
    unknown = distances.index[distances.isna()]
    samples = unknown[:0] if len(unknown) == len(distances) else unknown
    gaps = ((row, problem_of(run, norm, row, defense, samples)) for row in run.attack_rows(norm))
    return [f"{row.label} {problem}" for row, problem in gaps if problem]


def problem_of(run: Run, norm: NormName, row: AttackRow, defense: str, passed_over: Collection[int] = ()) -> str:
    """Returns what is wrong with the cell of an attack on a defense; empty if there is no cell, or no problem.

    The text says that the cell has not run, or counts its images without a valid result. Samples in ``passed_over`` are
    ignored.
    """
    if defense not in row.cells:
        return ""
    records = run.cell_records(row.cells[defense])
    if records is None:
        return "not run yet"
    return invalid(records, norm, passed_over)


def invalid(records: pd.DataFrame, norm: NormName, passed_over: Collection[int] = ()) -> str:
    """Counts the records without a distance, by status and kind of reason; the text is empty if there are none."""
    unknown = np.isnan(records[norm.lower()].to_numpy(float))
    if unknown.any() and len(passed_over):
        unknown &= ~records["sample"].isin(list(passed_over)).to_numpy()
    if not unknown.any():
        return ""
    kinds = [
        f"{status}: {reason.partition(':')[0]}" if reason else status
        for status, reason in zip(records["status"][unknown], records["reason"][unknown], strict=True)
    ]
    return "; ".join(f"{kind} ({count}/{len(records)})" for kind, count in Counter(kinds).items())
