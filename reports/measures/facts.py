"""The facts of a run that its tables, figures and page state besides numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from reports.runs.labels import NORM_LABELS
from reports.runs.rows import AttackRow, all_attacks
from reports.statistics.estimates import MISSING, Estimate


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
        samples: its number of images, if fewer than the run's; None if all.
    """

    name: str
    randomized: bool
    parameters: str
    citation: str
    family: str
    parts: tuple[str, ...]
    samples: int | None


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
