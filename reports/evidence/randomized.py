"""Numbers of randomized defenses: the judge's guarantees, and accuracy under three protocols.

Papers use "accuracy of a randomized defense" in different ways. The tables use the majority: an image is broken if most
answers to it are wrong. `PROTOCOLS` names two others. They ask how often the answers to each sample's likeliest image
within the threshold are right. For a deterministic defense all three are equal.
"""

from __future__ import annotations

import pandas as pd

from bench.contracts.norms import NormName
from reports.runs.norm_run import NormRun
from reports.statistics.protocols import likeliest, share_interval, survival

PROTOCOLS = ("one draw", "best of N")
"""Names of the two other protocols. N is the matrix's number of resubmissions."""
DRAWS = ["sample", "likely_rate", "likely_errors", "likely_draws"]
"""Columns of the records that the protocols need, besides the distance."""


def protocol_names(run: NormRun) -> tuple[str, ...]:
    """Returns `PROTOCOLS` with the run's number of resubmissions in place of N.

    The result is empty if no randomized defense has records of draws on its likeliest images.
    """
    if not run.resubmissions:
        return ()
    drawn = (run.all_records["likely_draws"] > 0) & (run.all_records["norm"] == run.norm)
    return tuple(name.replace("N", str(run.resubmissions)) for name in PROTOCOLS) if drawn.any() else ()


def protocols(records: pd.DataFrame, norm: NormName, resubmissions: int) -> list[tuple[float, float, float]]:
    """Computes the accuracy of a randomized defense at the threshold under each of `PROTOCOLS`.

    Each accuracy stands with the ends of its 95 % interval. All are NaN without draws.

    Args:
        records: records of one attack, or of several, where each sample's likeliest image over them counts.
        norm: the norm of the attacks.
        resubmissions: N of "best of N".
    """
    chosen = likeliest(records[[*DRAWS, norm.lower()]].dropna(subset=[norm.lower()]))
    errors, draws = chosen["likely_errors"], chosen["likely_draws"]
    return [share_interval(survival(errors, draws, submissions)) for submissions in (1, resubmissions)]


def bounded_cells(run: NormRun, defense: str) -> list[float]:
    """Returns alpha of each cell of a randomized defense in a norm that has run and states one."""
    if defense not in run.randomized:
        return []
    own = (entry for cell, entry in run.entries.items() if entry.defense == defense and cell in run.records)
    return [entry.alpha for entry in own if entry.alpha]


def percentage(share: float) -> str:
    """Formats a small probability for print.

    >>> percentage(0.013)
    '1.3 %'
    """
    return f"{100 * share:.3g} %"
