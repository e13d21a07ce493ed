"""Names of norms in print, and the number of decimals of their distances."""

from __future__ import annotations

from bench.contracts.norms import NormName

NORM_LABELS: dict[NormName, str] = {"L0": "L0", "L2": "L2", "Linf": "L∞"}
DECIMALS: dict[NormName, int] = {"L0": 1, "L2": 2, "Linf": 3}
"""Digits of a distance after the decimal point, in print."""
UNITS: dict[NormName, str] = {"L0": "pixels", "L2": "intensity", "Linf": "intensity"}
"""Units of distances, in print."""
