"""Numbers of each attack on each defense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName, within
from bench.ledger.schema import Status
from reports.evidence.randomized import protocols
from reports.evidence.signs import OLD_RULE, Signs
from reports.measures.facts import NormFacts
from reports.measures.numbers import (
    ACCURACY,
    BACKWARDS,
    EVERY_DEFENSE,
    FORWARDS,
    INNER_STEPS,
    MEDIAN,
    OPTIMALITY,
    PASSES,
    SECONDS,
    SWEPT_ACCURACY,
    Number,
    Place,
)
from reports.measures.reasons import BOUNDED, DETERMINISTIC, NO_CELL, NOT_APPLICABLE, NOT_ATTACKED, NOT_PLANNED, UNKNOWN
from reports.runs.gaps import NOT_RUN, details, invalid, shortfall
from reports.runs.norm_run import NormRun
from reports.runs.rows import AttackRow
from reports.statistics.distances import local_optimality
from reports.statistics.estimates import Estimate, accuracy_estimate, median_estimate
from reports.statistics.records import by_sample
from reports.statistics.significance import SIGNIFICANCE_LEVEL, significantly_best

COST_QUANTITIES = (FORWARDS, BACKWARDS, INNER_STEPS, PASSES, SECONDS)


def attack_numbers(run: NormRun, facts: NormFacts, signs: Signs) -> Iterator[Number]:
    """Yields the numbers of each attack of a norm on each defense, then their means over the defenses.

    Args:
        run: the run in the norm.
        facts: the norm's facts.
        signs: the doubts of the run.
    """
    swept = {label for sweep in facts.sweeps for _, label in sweep.steps}
    for row in run.rows:
        numbers: list[Number] = []
        for defense in run.defenses:
            records = run.records_of(row, defense)
            if records is None:
                quantities = _quantities(row, facts.protocols, row.label in swept)
                numbers += _missing(_place(run.norm, row, defense), row, quantities)
                continue
            cell = _Cell(run, row, defense, records, signs.get((defense, run.norm, row.label), ()))
            numbers += cell.outcome()
            numbers += protocol_numbers(cell.place, run, facts.protocols, records)
            numbers += cell.costs()
            numbers += [cell.optimality()] if row.epsilon is None else []
            numbers += [cell.swept()] if row.label in swept else []
        yield from marked(numbers, distances_of(run, row), run.threshold if row.epsilon is None else row.epsilon)
        if row.epsilon is None and row.cells:
            yield from _means(row, run.norm, numbers)


def distances_of(run: NormRun, row: AttackRow) -> dict[str, pd.Series]:
    """Returns the distances of an attack by sample, for each defense whose cell has run."""
    found = {defense: run.records_of(row, defense) for defense in row.cells}
    return {defense: by_sample(own, run.norm.lower()) for defense, own in found.items() if own is not None}


def marked(numbers: Sequence[Number], distances: Mapping[str, pd.Series], epsilon: float) -> list[Number]:
    """Returns the numbers of a row, in which the best accuracy is marked as significant if the tests confirm it.

    Nothing is marked while the accuracy of a defense is pending or unknown, because that defense may be better. A
    doubtful accuracy is never marked.

    Args:
        numbers: the numbers of one row.
        distances: the distances by sample of each defense.
        epsilon: the epsilon of the accuracies.
    """
    accuracies = [number for number in numbers if number.quantity == ACCURACY]
    if not all(number.reason in ("", NOT_APPLICABLE, NO_CELL, NOT_PLANNED) for number in accuracies):
        return list(numbers)
    known = pd.DataFrame(dict(distances)).dropna()
    best = significantly_best(~within(known, epsilon), SIGNIFICANCE_LEVEL) if len(known) else None
    return [
        number._replace(significant=True)
        if number.quantity == ACCURACY and number.defense == best and not number.reason and not number.doubts
        else number
        for number in numbers
    ]


def undecided_note(images: pd.Series) -> tuple[str, ...]:
    """Returns a footnote that counts the undecided images, or an empty tuple if there are none."""
    return (f"{images.sum()} of {len(images)} undecided",) if images.any() else ()


@dataclass(frozen=True)
class _Cell:
    """One attack on one defense, with its records and the signs of doubt about its numbers."""

    run: NormRun
    row: AttackRow
    defense: str
    records: pd.DataFrame
    doubts: tuple[str, ...]

    @property
    def place(self) -> Place:
        return _place(self.run.norm, self.row, self.defense)

    @cached_property
    def known(self) -> pd.Series:
        """The distances that are known, by sample."""
        return by_sample(self.records, self.run.norm.lower()).dropna()

    @cached_property
    def shortfall(self) -> tuple[str, ...]:
        return shortfall(self.records, self.run.norm)

    def outcome(self) -> list[Number]:
        """Returns the median and the accuracy."""
        run, known, epsilon = self.run, self.known, self.row.epsilon
        if len(known) < len(self.records) and not known.gt(0).any():
            # Clean errors say nothing about the attack.
            reason, full = invalid(self.records, run.norm), details(self.records, run.norm)
            return [self.place.number(quantity, reason=reason, notes=full) for quantity in (MEDIAN, ACCURACY)]
        notes = (*self.shortfall, *undecided_note(self.records["status"].eq(Status.UNDECIDED)))
        accuracy = accuracy_estimate(known, run.threshold if epsilon is None else epsilon)
        median = (
            self.place.number(MEDIAN, median_estimate(known), n=len(known), notes=notes, doubts=self.doubts)
            if epsilon is None
            else self.place.number(MEDIAN, reason=BOUNDED)
        )
        return [median, self.place.number(ACCURACY, accuracy, n=len(known), notes=notes, doubts=self.doubts)]

    def costs(self) -> list[Number]:
        """Returns the means per attacked image."""
        costs = self.run.facts[self.row.cells[self.defense]].costs
        if np.isnan(costs[FORWARDS]):
            return [self.place.number(cost, reason=NO_CELL, notes=(NOT_ATTACKED,)) for cost in COST_QUANTITIES]
        found = {**costs, PASSES: costs[FORWARDS] + costs[BACKWARDS]}
        return [self.place.number(cost, Estimate(found[cost])) for cost in COST_QUANTITIES]

    def optimality(self) -> Number:
        """Returns how near the attack comes to the best known adversarial examples."""
        best = self.run.distances[self.defense].reindex(self.known.index)
        optimality = local_optimality(self.known, best)
        if np.isnan(optimality):
            return self.place.number(OPTIMALITY, reason=UNKNOWN, notes=self.shortfall)
        old, n = tuple(sign for sign in self.doubts if sign == OLD_RULE), len(self.known)
        return self.place.number(OPTIMALITY, Estimate(optimality), n=n, notes=self.shortfall, doubts=old)

    def swept(self) -> Number:
        """Returns the accuracy within the attack's ball, also if only clean errors are known."""
        known, epsilon = self.known, self.row.epsilon
        if known.empty or epsilon is None:
            return self.place.number(SWEPT_ACCURACY, reason=UNKNOWN)
        accuracy, n = accuracy_estimate(known, epsilon), len(known)
        return self.place.number(SWEPT_ACCURACY, accuracy, n=n, notes=self.shortfall, doubts=self.doubts)


def protocol_numbers(place: Place, run: NormRun, names: Sequence[str], records: pd.DataFrame) -> list[Number]:
    """Returns the accuracies of a defense under the other protocols of randomized defenses.

    Args:
        place: the defense and the attack.
        run: the run in a norm.
        names: names of the protocols; empty if the run has none.
        records: the records of the attack, or of all attacks.
    """
    if place.defense not in run.randomized:
        return [place.number(name, reason=DETERMINISTIC) for name in names]
    if not run.resubmissions or not names:
        return []
    found = protocols(records, run.norm, run.resubmissions)
    return [
        place.number(name, Estimate(*share), reason=UNKNOWN if np.isnan(share[0]) else "")
        for name, share in zip(names, found, strict=True)
    ]


def _quantities(row: AttackRow, protocols: Sequence[str], swept: bool) -> list[str]:
    return [
        *(MEDIAN, ACCURACY, *protocols, *COST_QUANTITIES),
        *([OPTIMALITY] if row.epsilon is None else []),
        *([SWEPT_ACCURACY] if swept else []),
    ]


def _missing(place: Place, row: AttackRow, quantities: Sequence[str]) -> list[Number]:
    """Returns the numbers of an attack on a defense without records: only the reason why there are none."""
    if place.defense in row.cells:
        return [place.number(quantity, reason=NOT_RUN) for quantity in quantities]
    if place.defense in row.not_applicable:
        notes = (f"not applicable: {row.not_applicable[place.defense]}",)
        return [place.number(quantity, reason=NOT_APPLICABLE, notes=notes) for quantity in quantities]
    return [place.number(quantity, reason=NOT_PLANNED) for quantity in quantities]


def _place(norm: NormName, row: AttackRow, defense: str) -> Place:
    return Place(norm, defense, row.label, row.epsilon)


def _means(row: AttackRow, norm: NormName, numbers: Sequence[Number]) -> list[Number]:
    """Returns the means of a minimal attack's optimality and costs over the defenses of a norm."""

    def values(quantity: str) -> list[float]:
        return [number.value for number in numbers if number.quantity == quantity]

    optimality = values(OPTIMALITY)
    known = [value for value in optimality if not np.isnan(value)]
    place = _place(norm, row, EVERY_DEFENSE)
    if not known:
        return [place.number(quantity, reason=UNKNOWN) for quantity in (OPTIMALITY, PASSES, SECONDS)]
    notes = () if len(known) == len(optimality) else (f"over {len(known)} of {len(optimality)} defenses",)
    return [
        place.number(OPTIMALITY, Estimate(float(np.mean(known))), notes=notes),
        *(place.number(cost, Estimate(float(np.nanmean(values(cost)))), notes=notes) for cost in (PASSES, SECONDS)),
    ]
