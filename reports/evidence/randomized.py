"""Numbers of randomized defenses: the judge's guarantees, and accuracy under three protocols.

Papers use "accuracy of a randomized defense" in different ways. The tables use the majority: an image is broken if most
answers to it are wrong. `PROTOCOLS` names two others. They ask how often the answers to each sample's likeliest image
within the threshold are right. For a deterministic defense all three are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.contracts.norms import NormName
from reports.runs.run import AttackRow, Run, once_per_run
from reports.statistics.protocols import likeliest, share_interval, survival

PROTOCOLS = ("one draw", "best of N")
"""Names of the two other protocols. N is the matrix's number of resubmissions."""
UNKNOWN = (np.nan,) * 3 * len(PROTOCOLS)
"""Used in place of the numbers of both protocols and their intervals."""


def quantity_names(run: Run) -> list[str]:
    """Returns `PROTOCOLS` with the run's number of resubmissions in place of N."""
    return [name.replace("N", str(run.manifest.resubmissions)) for name in PROTOCOLS]


@once_per_run
def with_protocols(run: Run, norm: NormName) -> bool:
    """True if a randomized defense has records of draws on its likeliest images in a norm."""
    draws = run.records["likely_draws"] > 0
    return run.manifest.resubmissions > 0 and bool((draws & (run.records["norm"] == norm)).any())


@once_per_run
def protocols(run: Run, norm: NormName, defense: str, row: AttackRow | None) -> tuple[float, ...]:
    """Computes the accuracy of a randomized defense at the threshold under each of `PROTOCOLS`.

    Each accuracy is followed by the ends of its 95 % interval.

    Args:
        run: a run with records of draws on the likeliest images.
        norm: the norm of the attacks.
        defense: the attacked defense.
        row: the attack; None for all attacks of the norm, where each sample's likeliest image over them counts.

    Returns:
        `UNKNOWN` for a deterministic defense, or without records of draws.
    """
    if defense not in run.randomized or not with_protocols(run, norm):
        return UNKNOWN
    columns = ["sample", norm.lower(), "likely_rate", "likely_errors", "likely_draws"]
    if row is None:
        records = run.records_against(defense, norm, columns)
    elif (found := run.cell_records(row.cells.get(defense, ""))) is not None:
        records = found[columns]
    else:
        return UNKNOWN
    chosen = likeliest(records.dropna(subset=[norm.lower()]))
    errors, draws = chosen["likely_errors"], chosen["likely_draws"]
    shares = (survival(errors, draws, submissions) for submissions in (1, run.manifest.resubmissions))
    return tuple(number for share in shares for number in share_interval(share))


def protocols_note(run: Run) -> str:
    """Returns what the protocols mean, for captions."""
    times = run.manifest.resubmissions
    return (
        "For randomized defenses, accuracy is by majority: an image is broken where most answers are wrong. Two more "
        "accuracies follow it, each on the likeliest image within ε: one draw is the expected share of right answers "
        f"when the image is submitted once, best of {times} the expected share of samples for which all of {times} "
        "submissions are answered right (intervals by bootstrap over samples; Wilson's where all samples agree)."
    )


@once_per_run
def bounded_cells(run: Run, norm: NormName, defense: str) -> list[float]:
    """Returns alpha of each cell of a randomized defense in a norm that has run and states one."""
    if defense not in run.randomized:
        return []
    own = (run.cells[cell] for cell in run.cells_of(defense, norm) if cell in run.facts)
    return [cell.alpha for cell in own if cell.alpha]


def bound_note(run: Run, norms: Sequence[NormName]) -> str:
    """Returns the judge's guarantees for randomized defenses in some norms, for captions; empty if there are none."""
    alphas = [alpha for norm in norms for name in run.randomized for alpha in bounded_cells(run, norm, name)]
    return (
        "On a randomized defense, a cell records a sample as broken by an image whose P(misclassified) is below one "
        f"half with probability at most α = {percentage(max(alphas))}; a row over m cells does so with at most m α."
        if alphas
        else ""
    )


def power_note(run: Run, norms: Sequence[NormName]) -> str:
    """Returns what "not found" means for a randomized defense, for captions; empty if there are none."""
    if not bound_note(run, norms):
        return ""
    return (
        "Not found on a randomized defense says that no tested candidate reaches P(misclassified) = .65; one between "
        ".5 and .65 may be given up (p = .55: in 75 % of cases). Undecided images count as not broken."
    )


def percentage(share: float) -> str:
    """Formats a small probability for print.

    >>> percentage(0.013)
    '1.3 %'
    """
    return f"{100 * share:.3g} %"
