"""Data of the page's leaderboard: the distances behind a norm's tables, for the reader to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts.norms import TOLERANCE, NormName
from bench.ledger.schema import Status
from reports.evidence.masking import defense_doubts
from reports.evidence.randomized import with_protocols
from reports.runs.gaps import gaps_of
from reports.runs.labels import DECIMALS, NORM_LABELS
from reports.runs.run import AttackRow, Run
from reports.statistics.distances import accuracy_at
from reports.tables.cells import accuracy_quantity, signs_of, spared

LARGEST = 250_000
"""Number of records above which a page has no leaderboards. The distances would make it too large."""
NONE_FOUND, UNDECIDED = -1, -2
"""Stand for an infinite distance and an undecided one. An unknown distance is null."""
DIGITS = 9
"""Significant digits of a distance.

With fewer digits, two distances on different sides of an epsilon could become equal.
"""


def leaderboard(run: Run, norm: NormName) -> dict[str, Any]:
    """Returns the data that ``templates/leaderboard.js`` reads, ready for JSON; empty if the run is too large."""
    if len(run.records) > LARGEST:
        return {}
    return {
        "norm": NORM_LABELS[norm],
        "epsilon": run.threshold(norm),
        "tolerance": TOLERANCE,
        "samples": len(run.samples),
        "decimals": DECIMALS[norm],
        "percent_decimals": accuracy_quantity(run).decimals,
        "undecided": UNDECIDED,
        "resubmissions": run.manifest.resubmissions if with_protocols(run, norm) else None,
        "defenses": [
            {
                "name": name,
                "randomized": name in run.randomized,
                "clean": _clean_accuracy(run, name),
                "doubts": signs_of(*defense_doubts(run, norm, name)),
                "gaps": gaps_of(run, norm, name),
                "spared": spared(run, norm, name),
            }
            for name in run.defenses_in(norm)
        ],
        "attacks": [
            {
                "label": row.label,
                "epsilon": row.epsilon,
                "distances": {defense: _distances(records, norm) for defense, records in found.items()},
                "likeliest": {
                    defense: _likeliest(records, norm)
                    for defense, records in found.items()
                    if defense in run.randomized and with_protocols(run, norm)
                },
            }
            for row, found in _found(run, norm)
        ],
    }


def _found(run: Run, norm: NormName) -> Iterator[tuple[AttackRow, dict[str, pd.DataFrame]]]:
    """Yields each attack that has cells, with its records by defense in the order of the samples."""
    for row in run.attack_rows(norm):
        records = {defense: run.cell_records(cell) for defense, cell in row.cells.items()}
        if row.cells:
            yield row, {name: own.sort_values("sample") for name, own in records.items() if own is not None}


def _distances(records: pd.DataFrame, norm: NormName) -> list[float | None]:
    undecided = records["status"].eq(Status.UNDECIDED)
    return [UNDECIDED if u else _number(value) for value, u in zip(records[norm.lower()], undecided, strict=True)]


def _likeliest(records: pd.DataFrame, norm: NormName) -> list[tuple[float, int, int] | None]:
    """Returns, for each sample, the rate, errors and draws of its likeliest image; None without a result.

    The image was chosen by the rate. The errors are those among the fresh draws.
    """
    valid = records[norm.lower()].notna() & (records["likely_draws"] > 0)
    columns = (records[name] for name in ("likely_rate", "likely_errors", "likely_draws"))
    return [(float(rate), int(k), int(n)) if own else None for own, rate, k, n in zip(valid, *columns, strict=True)]


def _clean_accuracy(run: Run, defense: str) -> float | None:
    known = run.clean_distances.get(defense, pd.Series(dtype=float)).dropna()
    return _number(accuracy_at(known, 0.0))


def _number(value: float) -> float | None:
    if pd.isna(value):
        return None
    return NONE_FOUND if np.isinf(value) else float(f"{value:.{DIGITS}g}")
