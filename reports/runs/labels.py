"""Names of norms in print, and the number of decimals of their distances."""

from __future__ import annotations

from bench.contracts.norms import NORMS

NORM_LABELS = {name: norm.label for name, norm in NORMS.items()}
DECIMALS = {name: norm.decimals for name, norm in NORMS.items()}
"""Digits of a distance after the decimal point, in print."""
UNITS = {name: norm.unit for name, norm in NORMS.items()}
"""Units of distances, in print."""
