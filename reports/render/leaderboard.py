"""Data of the page's leaderboard: the distances behind a norm's tables, for the reader to choose from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bench.contracts.norms import TOLERANCE, NormName
from bench.ledger.schema import Status
from reports.evidence.signs import signs_of
from reports.measures.facts import NormFacts
from reports.measures.numbers import ACCURACY, Numbers
from reports.runs.labels import DECIMALS
from reports.runs.rows import CLEAN
from reports.tables.cells import accuracy_quantity

LARGEST = 250_000
"""Number of records above which a page has no leaderboards. The distances would make it too large."""
NONE_FOUND, UNDECIDED = -1, -2
"""Stand for an infinite distance and an undecided one. An unknown distance is null."""
DIGITS = 9
"""Significant digits of a distance.

With fewer digits, two distances on different sides of an epsilon could become equal.
"""


def leaderboard(numbers: Numbers, norm: NormFacts) -> dict[str, Any]:
    """Returns the data that ``templates/leaderboard.js`` reads, ready for JSON; empty if the run is too large."""
    if numbers.records > LARGEST:
        return {}
    signs = signs_of(numbers.evidence)
    return {
        "norm": norm.label,
        "epsilon": norm.threshold,
        "tolerance": TOLERANCE,
        "samples": numbers.samples,
        "decimals": DECIMALS[norm.norm],
        "percent_decimals": accuracy_quantity(numbers).decimals,
        "undecided": UNDECIDED,
        "resubmissions": numbers.resubmissions if norm.protocols else None,
        "defenses": [
            {
                "name": name,
                "randomized": name in numbers.randomized,
                "clean": _number(numbers.of("", CLEAN, name)[ACCURACY].value),
                "doubts": signs.get((name, norm.norm, None), ()),
                "gaps": norm.gaps[name],
                "spared": norm.spared(name),
            }
            for name in norm.defenses
        ],
        "attacks": [
            {
                "label": row.label,
                "epsilon": row.epsilon,
                "distances": {name: _distances(own, norm.norm) for name, own in norm.records[row.label].items()},
                "likeliest": {
                    name: _likeliest(own, norm.norm)
                    for name, own in norm.records[row.label].items()
                    if name in numbers.randomized and norm.protocols
                },
            }
            for row in norm.rows
            if row.cells
        ],
    }


def _distances(records: pd.DataFrame, norm: NormName) -> list[float | None]:
    ordered = records.sort_values("sample")
    undecided = ordered["status"].eq(Status.UNDECIDED)
    return [UNDECIDED if u else _number(value) for value, u in zip(ordered[norm.lower()], undecided, strict=True)]


def _likeliest(records: pd.DataFrame, norm: NormName) -> list[tuple[float, int, int] | None]:
    """Returns, for each sample, the rate, errors and draws of its likeliest image; None without a result.

    The image was chosen by the rate. The errors are those among the fresh draws.
    """
    ordered = records.sort_values("sample")
    valid = ordered[norm.lower()].notna() & (ordered["likely_draws"] > 0)
    columns = (ordered[name] for name in ("likely_rate", "likely_errors", "likely_draws"))
    return [(float(rate), int(k), int(n)) if own else None for own, rate, k, n in zip(valid, *columns, strict=True)]


def _number(value: float) -> float | None:
    if np.isnan(value):
        return None
    return NONE_FOUND if np.isinf(value) else float(f"{value:.{DIGITS}g}")
