"""Why numbers are missing: what is shown in their place, and the footnotes that explain it."""

from __future__ import annotations

NOT_APPLICABLE, NO_CELL = "n/a", "—"
"""Reasons of numbers that will never exist."""
UNKNOWN = "unknown"
BOUNDED = "bounded attacks do not search for the smallest distance"
DETERMINISTIC = "equal to the accuracy: the defense is deterministic"
NOT_PLANNED = "not in the matrix"
"""Shown as a blank, which the caption explains (`reports.tables.cells.blank_note`)."""
NOT_ATTACKED = "no image was attacked"
NO_ATTACK = "no attack applies"
