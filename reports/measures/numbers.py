"""The numbers of a run: one long frame that tables, figures and pages read.

A row of the frame is a `Number`. A number that is missing has its reason in the same row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from reports.evidence.signs import Doubt
from reports.runs.labels import NORM_LABELS
from reports.runs.rows import AttackRow, all_attacks
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
        n: number of images that it was computed from.
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
class Pair:
    """Two defenses of a norm, compared image by image under the per-sample minimum over attacks.

    Attributes:
        first: a defense.
        second: the defense that it is compared with.
        p: p-value of McNemar's exact test that both survive equally often; NaN if it is missing.
        adjusted: the p-value adjusted for the number of pairs by Holm's method.
        reason: what is shown in place of missing numbers.
        notes: footnotes.
        doubts: signs that the numbers may be wrong.
        significant: whether the adjusted p-value is below `reports.statistics.significance.SIGNIFICANCE_LEVEL`.
        median: the first median minus the second, with the ends of its 95 % paired bootstrap interval; NaN if unknown.
        accuracy: the first accuracy at the threshold minus the second.
    """

    first: str
    second: str
    p: float = np.nan
    adjusted: float = np.nan
    reason: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    significant: bool = False
    median: Estimate = MISSING
    accuracy: float = np.nan


@dataclass(frozen=True)
class Equality:
    """The test that all defenses of a norm survive equally often.

    Attributes:
        q: Cochran's Q.
        p: its p-value.
        n: number of images known for all defenses.
    """

    q: float
    p: float
    n: int


@dataclass(frozen=True)
class Sweep:
    """A sweep: bounded attacks of one kind that differ only in one parameter.

    Attributes:
        attack: name of the attack, without a variant.
        parameter: name of the parameter.
        epsilon: the radius that all are bounded to.
        steps: the values of the parameter in ascending order, each with the label of its attack's row.
        defenses: the defenses that enough of the attacks were planned for.
    """

    attack: str
    parameter: str
    epsilon: float
    steps: tuple[tuple[float, str], ...]
    defenses: tuple[str, ...]


@dataclass(frozen=True)
class NormFacts:
    """What tables and figures of one norm need to know besides its numbers.

    Attributes:
        norm: the norm.
        threshold: the epsilon at which accuracies are stated.
        defenses: the defenses for which an attack is planned or not applicable.
        rows: the attacks, in the order of rows.
        minimized: the defenses that a minimal attack ran on.
        planned: names of the attacks, without variants, that the matrix has a place for on each defense.
        gaps: the attacks on each defense that are incomplete, each with its problem.
        alpha: the largest error probability of the judge in a cell of a randomized defense; None if there is none.
        protocols: names of the other accuracies of randomized defenses; empty if there are none.
        equality: the test that all defenses survive equally often; None if no image is known for all.
        pairs: each pair of defenses.
        against_baseline: each other defense beside the baseline; empty if none was named.
        sweeps: the sweeps.
        bounds: `reports.statistics.brackets.brackets`.
        distances: the smallest distances over all attacks by sample, for each defense that has some.
        records: the records of each attack, by row label and defense. Attacks without cells are left out.
    """

    norm: NormName
    threshold: float
    defenses: Sequence[str]
    rows: Sequence[AttackRow]
    minimized: Collection[str]
    planned: Mapping[str, frozenset[str]]
    gaps: Mapping[str, Sequence[str]]
    alpha: float | None
    protocols: tuple[str, ...]
    equality: Equality | None
    pairs: Sequence[Pair]
    against_baseline: Sequence[Pair]
    sweeps: Sequence[Sweep]
    bounds: pd.DataFrame
    distances: Mapping[str, pd.Series]
    records: Mapping[str, Mapping[str, pd.DataFrame]]

    @property
    def label(self) -> str:
        """The norm's name in print."""
        return NORM_LABELS[self.norm]

    @property
    def all_attacks(self) -> str:
        """Label of the row of per-sample minima over attacks."""
        return all_attacks(self.norm)

    @property
    def with_distances(self) -> list[str]:
        """The defenses without those on which only bounded attacks ran; all defenses if none would remain."""
        bounded = {name for name in self.distances if name not in self.minimized}
        return [name for name in self.defenses if name not in bounded] or list(self.defenses)

    def spared(self, defense: str) -> bool:
        """True if the matrix plans an attack of this norm for some other defense but not for this one.

        An attack that is not applicable counts as planned.
        """
        return self.planned[defense] != self.planned_for_any

    @property
    def planned_for_any(self) -> frozenset[str]:
        """Names of the attacks, without variants, that the matrix has a place for on some defense."""
        return frozenset[str]().union(*self.planned.values())


@dataclass(frozen=True)
class DefenseFacts:
    """A defense of a run.

    Attributes:
        name: its name.
        randomized: whether its answers are random.
        parameters: its parameters, in words.
        citation: its citation.
        family: the family of defenses that it belongs to; empty if it belongs to none.
        parts: the parts of the family that it has.
    """

    name: str
    randomized: bool
    parameters: str
    citation: str
    family: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class AttackFacts:
    """An attack of a run with one of its settings.

    Attributes:
        name: its name.
        norms: the attack's norms.
        kind: minimal or bounded.
        access: what it may ask of a defense.
        budget: forward plus backward passes per image.
        parameters: its parameters, in words.
        against: the defenses that meet this setting; empty if the attack has only one.
        citation: its citation.
    """

    name: str
    norms: tuple[NormName, ...]
    kind: str
    access: str
    budget: int
    parameters: str
    against: tuple[str, ...]
    citation: str


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
        evidence: every doubt: defense, norm, label of the attack's row (None for all attacks), and the doubt.
        problems: one line for each cell or study that is incomplete.
        baseline: the defense that all others are compared with; None if none was named.
        papers: the papers whose numbers are shown beside the run's (`reports.published.numbers.PAPERS`).
        resubmissions: N of the protocol "best of N"; None for a run before version 3 of the ledger.
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
    evidence: Sequence[tuple[str, NormName, str | None, Doubt]]
    problems: Sequence[str]
    baseline: str | None
    papers: Sequence[str]
    resubmissions: int | None
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
