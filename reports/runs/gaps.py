"""Why a place of a table has no number, or one over fewer samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from reports.runs.norm_run import NormRun
from reports.runs.rows import AttackRow

NOT_RUN = "not run yet"
"""The problem of a cell that has not run."""


def gaps_of(run: NormRun, defense: str) -> list[str]:
    """Returns the attacks on a defense whose cell has not run or lacks valid results, each with its problem.

    A missing result counts only on images for which another attack has a valid result. If no attack has any, it counts
    on all images.
    """
    distances = run.distances.get(defense, pd.Series(dtype=float))
    unknown = distances.index[distances.isna()]
    samples = unknown[:0] if len(unknown) == len(distances) else unknown
    gaps = ((row, problem_of(run, row, defense, samples)) for row in run.rows)
    return [f"{row.label} {problem}" for row, problem in gaps if problem]


def problem_of(run: NormRun, row: AttackRow, defense: str, passed_over: Collection[int] = ()) -> str:
    """Returns what is wrong with the cell of an attack on a defense; empty if there is no cell, or no problem.

    The text says that the cell has not run, or counts its images without a valid result. Samples in ``passed_over`` are
    ignored.
    """
    if defense not in row.cells:
        return ""
    records = run.records_of(row, defense)
    return NOT_RUN if records is None else invalid(records, run.norm, passed_over)


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


def shortfall(records: pd.DataFrame, norm: NormName) -> tuple[str, ...]:
    """Returns the footnotes of a number computed over records of which some have no distance.

    The first one reads like ``4 of 5, 1 failed (non_finite)``. Reasons that it shortens follow in full.
    """
    unknown = np.isnan(records[norm.lower()].to_numpy(float))
    if not unknown.any():
        return ()
    missing = records[unknown]
    reasons = missing["reason"].str.partition(":")[0]
    kinds = Counter(zip(missing["status"], reasons, strict=True))
    counts = [f"{count} {status}{f' ({reason})' if reason else ''}" for (status, reason), count in kinds.items()]
    return f"{len(records) - len(missing)} of {len(records)}, {', '.join(counts)}", *details(records, norm)


def details(records: pd.DataFrame, norm: NormName) -> tuple[str, ...]:
    """Returns in full the reasons that `invalid` and `shortfall` shorten."""
    reasons = records.loc[records[norm.lower()].isna(), "reason"]
    return tuple(reasons[reasons.str.contains(":")].unique())
