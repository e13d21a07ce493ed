"""The rows of a norm's tables: each attack, and their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.contracts.norms import NormName
from reports.runs.labels import NORM_LABELS

CLEAN = "clean"
"""Label of the row of clean accuracies."""


def all_attacks(norm: NormName) -> str:
    """Returns the label of the row of per-sample minima over attacks."""
    return f"All {NORM_LABELS[norm]} attacks"


@dataclass(frozen=True)
class AttackRow:
    """One attack against every defense, at one epsilon if the attack is bounded.

    Attributes:
        attack: the attack's name.
        access: what the attack may ask of a defense.
        epsilon: radius of the ball that the attack is bounded to; None for a minimal attack.
        cells: id of the cell, for each defense that has one.
        not_applicable: the reason, for each defense that the attack cannot be run against.
    """

    attack: str
    access: str
    epsilon: float | None
    cells: Mapping[str, str]
    not_applicable: Mapping[str, str]

    def concerns(self, defense: str) -> bool:
        """True if the matrix has a cell for this attack on the defense, or states that the attack is not applicable."""
        return defense in self.cells or defense in self.not_applicable

    @property
    def label(self) -> str:
        """The row's heading."""
        return self.attack if self.epsilon is None else f"{self.attack} (ε={self.epsilon:g})"
