"""What the page's leaderboard computes with: the distances behind a norm's tables, for the reader to choose from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bench.norms import TOLERANCE, Norm
from reports.masking import defense_doubts
from reports.runs import Run
from reports.statistics import accuracy_at
from reports.tables import DECIMALS, NORM_LABELS, accuracy_quantity, gaps_of, signs_of, spared

LARGEST = 250_000
"""Records from which on a page would be too large with their distances in it; it then has no leaderboards."""
NONE_FOUND = -1
"""Stands for an infinite distance; an unknown one is null."""
DIGITS = 9
"""Significant ones of a distance: two distances that fewer tell apart may lie on both sides of an epsilon."""


def leaderboard(run: Run, norm: Norm) -> dict[str, Any]:
    """What ``templates/leaderboard.js`` reads, ready for JSON; empty for a run that is too large."""
    if len(run.records) > LARGEST:
        return {}
    return {
        "norm": NORM_LABELS[norm],
        "epsilon": run.threshold(norm),
        "tolerance": TOLERANCE,
        "samples": len(run.samples),
        "decimals": DECIMALS[norm],
        "percent_decimals": accuracy_quantity(run).decimals,
        "defenses": [
            {
                "name": name,
                "clean": _number(accuracy_at(run.clean_distances.get(name, ()), 0.0)),
                "doubts": signs_of(defense_doubts(run, norm, name)),
                "gaps": gaps_of(run, norm, name),
                "spared": spared(run, norm, name),
            }
            for name in run.defenses_in(norm)
        ],
        "attacks": [
            {
                "label": row.label,
                "epsilon": row.epsilon,
                "distances": {
                    defense: [_number(value) for value in found.sort_values("sample")[norm.lower()]]
                    for defense, cell in row.cells.items()
                    if (found := run.cell_records(cell)) is not None
                },
            }
            for row in run.attack_rows(norm)
            if row.cells
        ],
    }


def _number(value: float) -> float | None:
    if pd.isna(value):
        return None
    return NONE_FOUND if np.isinf(value) else float(f"{value:.{DIGITS}g}")
