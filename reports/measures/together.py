"""Numbers of each defense without attack, and under all attacks of a norm together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.ledger.schema import Status
from reports.evidence.randomized import DRAWS, bounded_cells, percentage
from reports.evidence.signs import OLD_RULE, Signs
from reports.measures.attacks import marked, protocol_numbers, undecided_note
from reports.measures.facts import NormFacts
from reports.measures.numbers import ACCURACY, MEDIAN, Number, Place
from reports.measures.reasons import BOUNDED, NO_ATTACK, NO_CELL
from reports.runs.gaps import NOT_RUN, shortfall
from reports.runs.norm_run import NormRun
from reports.runs.rows import CLEAN
from reports.statistics.estimates import accuracy_estimate, median_estimate


def clean_numbers(norm: str, defenses: Sequence[str], clean: Mapping[str, pd.Series], signs: Signs) -> list[Number]:
    """Returns the clean accuracies of some defenses.

    Args:
        norm: the norm whose tables show them; empty for the table of all norms.
        defenses: the defenses.
        clean: `reports.runs.run.Run.clean_distances`.
        signs: the doubts of the run.
    """
    old = {defense for (defense, _, attack), found in signs.items() if attack is None and OLD_RULE in found}
    numbers = [_clean_number(norm, name, clean.get(name), (OLD_RULE,) if name in old else ()) for name in defenses]
    return marked(numbers, {name: clean[name] for name in defenses if name in clean}, 0.0)


def _clean_number(norm: str, defense: str, distances: pd.Series | None, doubts: tuple[str, ...]) -> Number:
    place = Place(norm, defense, CLEAN)
    if distances is None:
        return place.number(ACCURACY, reason=NOT_RUN)
    known = distances.dropna()
    if known.empty:
        return place.number(ACCURACY, reason="failed")
    missing = len(distances) - len(known)
    notes = (f"{len(known)} of {len(distances)}, {missing} failed",) if missing else ()
    return place.number(ACCURACY, accuracy_estimate(known, 0.0), n=len(known), notes=notes, doubts=doubts)


def together_numbers(run: NormRun, facts: NormFacts, signs: Signs) -> list[Number]:
    """Returns the numbers of the per-sample minimum over all attacks of a norm.

    Args:
        run: the run in the norm.
        facts: the norm's facts.
        signs: the doubts of the run.
    """
    numbers = [
        number
        for defense in run.defenses
        for number in _Together(run, facts, defense).numbers(signs.get((defense, run.norm, None), ()))
    ]
    # A defense that was attacked by fewer methods is never the best.
    return [
        number._replace(significant=number.significant and not facts.spared(number.defense))
        for number in marked(numbers, run.distances, run.threshold)
    ]


@dataclass(frozen=True)
class _Together:
    """All attacks of a norm on one defense."""

    run: NormRun
    facts: NormFacts
    defense: str

    @property
    def place(self) -> Place:
        return Place(self.run.norm, self.defense, self.facts.all_attacks)

    def numbers(self, doubts: tuple[str, ...]) -> list[Number]:
        """Returns the median, the accuracy and the accuracies under the other protocols."""
        distances, gaps = self.run.distances.get(self.defense), self._gaps()
        if distances is None:
            return (
                self._missing(NOT_RUN, gaps) if self.facts.gaps[self.defense] else self._missing(NO_CELL, (NO_ATTACK,))
            )
        known = distances.dropna()
        if known.empty:
            return self._missing(f"unknown ({len(distances)}/{len(distances)})", gaps)
        notes, accuracy = self._notes(distances, gaps), accuracy_estimate(known, self.run.threshold)
        records = self.run.records_against(self.defense, [*DRAWS, self.run.norm.lower()])
        return [
            self.place.number(MEDIAN, median_estimate(known), n=len(known), notes=notes, doubts=doubts)
            if self.defense in self.facts.minimized
            else self.place.number(MEDIAN, reason=BOUNDED),
            self.place.number(ACCURACY, accuracy, n=len(known), notes=notes, doubts=doubts),
            *protocol_numbers(self.place, self.run, self.facts.protocols, records),
        ]

    def _missing(self, reason: str, notes: tuple[str, ...]) -> list[Number]:
        quantities = (MEDIAN, ACCURACY, *self.facts.protocols)
        return [self.place.number(quantity, reason=reason, notes=notes) for quantity in quantities]

    def _gaps(self) -> tuple[str, ...]:
        """Returns the footnotes that name incomplete attacks, and count the attacks if the matrix spares some."""
        found, facts = self.facts.gaps[self.defense], self.facts
        notes: tuple[str, ...] = (f"incomplete: {'; '.join(found)}",) if found else ()
        if facts.spared(self.defense):
            notes += (f"under {len(facts.planned[self.defense])} of {len(facts.planned_for_any)} attacks only",)
        return notes

    def _notes(self, distances: pd.Series, gaps: tuple[str, ...]) -> tuple[str, ...]:
        run, notes = self.run, gaps
        if distances.isna().any():
            notes = (*shortfall(run.smallest[run.smallest["defense"] == self.defense], run.norm), *notes)
        records = run.records_against(self.defense, ["sample", "status"])
        undecided = records.loc[records["status"] == Status.UNDECIDED, "sample"]
        notes += undecided_note(pd.Series(distances.index.isin(undecided) & np.isposinf(distances)))
        alphas = bounded_cells(run, self.defense)
        if alphas:
            bound = percentage(min(1.0, sum(alphas)))
            notes += (
                f"over m = {len(alphas)} cells: broken by mistake with probability at most m α = {bound} per sample",
            )
        return notes
