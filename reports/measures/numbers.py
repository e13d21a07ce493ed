"""The numbers of a run: one long frame that tables, figures and pages read.

A row of the frame is a `Number`. A number that is missing has its reason in the same row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from reports.evidence.claims import WarmClaims
from reports.evidence.signs import Evidence
from reports.measures.facts import AttackFacts, DefenseFacts, NormFacts
from reports.statistics.estimates import MISSING, Estimate

MEDIAN, ACCURACY = "median", "accuracy"
FORWARDS, BACKWARDS, INNER_STEPS = "forwards", "backwards", "inner_steps"
PASSES, SECONDS = "passes", "seconds"
OPTIMALITY = "optimality"
SWEPT_ACCURACY = "swept accuracy"
"""Accuracy of a cell that belongs to a sweep. Clean errors alone suffice for it."""
EVERY_DEFENSE = "all defenses"
"""Stands in place of a defense for means over all defenses of a norm."""


class Number(NamedTuple):
    """One number of a run, or the reason why it is missing.

    Attributes:
        norm: the norm; empty if the number belongs to none.
        defense: the defense's name.
        attack: label of the attack's row (`reports.runs.rows`); empty for a study.
        epsilon: radius of the ball that the attack is bounded to; None for a minimal attack.
        quantity: what the number is. Shares are fractions in [0, 1].
        value: the number; NaN if it is missing.
        low: lower end of its 95 % confidence interval; NaN if it has none.
        high: upper end of the interval.
        n: number of images that it was computed from; 0 for costs, means and other protocols, which state none.
        reason: what is shown in its place if it is missing.
        notes: footnotes.
        doubts: signs that the number may be too good.
        significant: whether an accuracy is the highest of its row beyond chance.
    """

    norm: str
    defense: str
    attack: str
    epsilon: float | None
    quantity: str
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    reason: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    significant: bool = False

    @property
    def estimate(self) -> Estimate:
        """The number with its interval."""
        return Estimate(self.value, self.low, self.high)


class Place(NamedTuple):
    """Where numbers belong: the norm, the defense, the label of the attack's row and its epsilon (see `Number`)."""

    norm: str
    defense: str
    attack: str
    epsilon: float | None = None

    def number(
        self,
        quantity: str,
        estimate: Estimate = MISSING,
        *,
        n: int = 0,
        reason: str = "",
        notes: tuple[str, ...] = (),
        doubts: tuple[str, ...] = (),
    ) -> Number:
        """Returns a number of this place (see `Number`)."""
        return Number(*self, quantity, *estimate, n, reason, notes, doubts)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a run, and the facts that captions and pages state.

    Attributes:
        rows: all numbers.
        norms: the facts of each norm.
        dataset: the dataset's name.
        matrix: the matrix' name.
        samples: number of images.
        records: number of records.
        cells: number of planned cells.
        chosen: names of the attacks that were selected; None for all.
        defenses: the defenses, in the run's order.
        attacks: the attacks with their settings, in the run's order.
        attack_names: names of the attacks.
        evidence: every doubt.
        warm: what became of the claims of attacks whose queries were answered from earlier ones, by defense.
        problems: one line for each cell or study that is incomplete.
        baseline: the defense that all others are compared with; None if none was named.
        papers: the papers whose numbers are shown beside the run's (`reports.published.numbers.PAPERS`).
        resubmissions: N of the protocol "best of N"; 0 for a run before version 3 of the ledger.
        provenance: what says where the results come from, by name.
    """

    rows: Sequence[Number]
    norms: Mapping[NormName, NormFacts]
    dataset: str
    matrix: str
    samples: int
    records: int
    cells: int
    chosen: Sequence[str] | None
    defenses: Sequence[DefenseFacts]
    attacks: Sequence[AttackFacts]
    attack_names: Sequence[str]
    evidence: Sequence[Evidence]
    warm: Sequence[WarmClaims]
    problems: Sequence[str]
    baseline: str | None
    papers: Sequence[str]
    resubmissions: int
    provenance: Mapping[str, Any]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The numbers as a frame, one row each; the columns are the fields of `Number`."""
        return pd.DataFrame(self.rows, columns=list(Number._fields))

    @property
    def defense_names(self) -> list[str]:
        """Names of the defenses, in the run's order."""
        return [defense.name for defense in self.defenses]

    @property
    def randomized(self) -> list[str]:
        """Names of the defenses whose answers are random."""
        return [defense.name for defense in self.defenses if defense.randomized]

    def of(self, norm: str, attack: str, defense: str) -> Mapping[str, Number]:
        """Returns the numbers of an attack on a defense by quantity; empty if there are none."""
        return self._places.get((norm, attack, defense), {})

    def where(self, quantity: str, norm: str | None = None) -> list[Number]:
        """Returns all numbers of a quantity, in one norm or in all."""
        return [each for each in self.rows if each.quantity == quantity and norm in (None, each.norm)]

    @cached_property
    def _places(self) -> dict[tuple[str, str, str], dict[str, Number]]:
        places: dict[tuple[str, str, str], dict[str, Number]] = {}
        for number in self.rows:
            places.setdefault((number.norm, number.attack, number.defense), {})[number.quantity] = number
        return places
