"""Masking evidence: the reasons to doubt each number of a run (`reports.evidence.signs`)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bench.contracts.cards import GRANTS
from bench.contracts.norms import within
from bench.ledger.schema import Status
from reports.evidence.signs import (
    COLUMNS,
    FALLING,
    INVALID,
    NEVER,
    NO_GRADIENT_FREE,
    NO_GRADIENTS,
    NOT_UNROLLED,
    OLD_RULE,
    SMALL_BUDGET,
    Doubt,
    Evidence,
    beaten,
    cut_short,
    failed,
    found_late,
    non_finite,
    remarks,
    unbroken,
    useless_gradients,
    valid_records,
    vanished,
)
from reports.runs.norm_run import NormRun
from reports.runs.rows import AttackRow
from reports.runs.run import Run
from reports.statistics.significance import falls

FALL = 0.01
"""Significance level of the one-sided test that a larger setting of an attack breaks fewer images."""
OTHERS = 3
"""Number of images that other attacks must break before an attack that never succeeds raises a doubt."""
GRADIENTS = tuple(access for access, granted in GRANTS.items() if "gradient" in granted)
"""Kinds of access that include gradients."""
UNROLLED_NORMS = ("L2", "Linf")
"""Norms of the attacks with access to unrolled gradients."""
GRADIENT_FREE = ("decision", "score")
"""Kinds of access of attacks that need only the defense's answers."""


def evidence(run: Run) -> Iterator[Evidence]:
    """Yields every doubt of a run."""
    smaller = {norm: smaller_settings(attacks) for norm, attacks in run.in_norms.items()}
    for defense in run.defenses:
        for norm, attacks in run.in_norms.items():
            attacked = Attacked(attacks, defense)
            yield from ((defense, norm, None, doubt) for doubt in defense_doubts(attacked))
            for row in attacks.rows:
                doubts = cell_doubts(attacked, row, smaller[norm])
                yield from ((defense, norm, row.label, doubt) for doubt in doubts)


@dataclass(frozen=True)
class Attacked:
    """A defense under the attacks of one norm.

    Attributes:
        run: the run in that norm.
        defense: the defense's name.
    """

    run: NormRun
    defense: str

    @cached_property
    def broken(self) -> frozenset[int]:
        """The attacked images that any attack broke."""
        records = self.run.records_against(self.defense, ["sample", "status", "broken"])
        return frozenset(records.loc[records["broken"] & (records["status"] != Status.CLEAN_ERROR), "sample"])

    @cached_property
    def met_gradient_free(self) -> bool:
        """True if an attack that needs only the defense's answers has a valid result, or has not run yet."""
        rows = [row for row in self.run.rows if row.access in GRADIENT_FREE and self.defense in row.cells]
        found = (self.run.records_of(row, self.defense) for row in rows)
        return any(records is None or not records["status"].isin(INVALID).all() for records in found)

    def why_none(self, accesses: Collection[str]) -> str:
        """Returns the reasons why no attack with one of these kinds of access has a result."""
        rows = [row for row in self.run.rows if row.access in accesses]
        reasons = [row.not_applicable[self.defense] for row in rows if self.defense in row.not_applicable]
        reasons += ["failed" for row in rows if self.defense in row.cells]
        return "; ".join(dict.fromkeys(reasons)) or "none is in the matrix"


def cell_doubts(attacked: Attacked, row: AttackRow, smaller: Mapping[str, list[str]]) -> list[Doubt]:
    """Returns the reasons to doubt one attack's number for a defense.

    ``smaller`` is `smaller_settings` of the norm.
    """
    run, defense = attacked.run, attacked.defense
    records = run.records_of(row, defense)
    if records is None:
        return []
    cell = row.cells[defense]
    found = [judged_before(run, defense, [cell]), small_budget(run, cell)]
    if row.epsilon is not None or run.facts[cell].dubious:
        valid = valid_records(records[COLUMNS])
        found += [useless_gradients(valid), vanished(valid), remarks(valid), cut_short(valid), non_finite(valid)]
        if row.epsilon is not None:
            found.append(found_late(valid))
    if row.epsilon is None and row.access in GRADIENTS and not run.facts[cell].breaks:
        found.append(never_succeeds(attacked, valid_records(records[COLUMNS])))
    fallen = (falling(run, cell, other) for other in smaller.get(cell, ()))
    found.append(next((doubt for doubt in fallen if doubt is not None), None))
    return [doubt for doubt in found if doubt is not None]


def defense_doubts(attacked: Attacked) -> list[Doubt]:
    """Returns the reasons to doubt a defense's number under all attacks of a norm."""
    run, defense = attacked.run, attacked.defense
    rows = {row.cells[defense]: row for row in run.rows if defense in row.cells}
    everything = run.records_against(defense, COLUMNS)
    everything = everything[everything["cell"].isin(rows)]
    records, judged = valid_records(everything), judged_before(run, defense, rows)
    if records.empty:
        return [judged] if judged is not None else []
    found = [judged, useless_gradients(records), vanished(records), remarks(records)]
    found += [non_finite(records), failed(everything)]
    access = records["cell"].map({cell: row.access for cell, row in rows.items()})
    if all(cell in run.records for cell, row in rows.items() if row.access in GRADIENTS):
        with_gradients = records[access.isin(GRADIENTS)]
        if len(with_gradients):
            without = records[~access.isin([*GRADIENTS, "imported"])]
            found += [beaten(with_gradients, without, run.norm, run.threshold), unbroken(with_gradients)]
            found.append(not_unrolled(attacked, access))
        else:
            found.insert(0, Doubt(NO_GRADIENTS, attacked.why_none(GRADIENTS)))
        if not attacked.met_gradient_free:
            found.append(Doubt(NO_GRADIENT_FREE, attacked.why_none(GRADIENT_FREE)))
    return [doubt for doubt in found if doubt is not None]


def judged_before(run: NormRun, defense: str, cells: Collection[str]) -> Doubt | None:
    """Returns a doubt if some cells of a randomized defense have run but state no bound on the judge's error.

    Such cells come from a run before version 3 of the ledger.
    """
    if defense not in run.randomized:
        return None
    done = [cell for cell in cells if cell in run.records]
    old = [cell for cell in done if not run.entries[cell].alpha]
    return Doubt(OLD_RULE, f"{len(old)} of {len(done)} cells") if old else None


def small_budget(run: NormRun, cell: str) -> Doubt | None:
    """Returns a doubt if a cell's budget is below the attack's default, or allows a randomized defense few answers."""
    entry = run.entries[cell]
    if entry.budget >= entry.reference_budget:
        return None
    return Doubt(SMALL_BUDGET, f"{entry.budget:,} of {entry.reference_budget:,} passes")


def not_unrolled(attacked: Attacked, access: pd.Series) -> Doubt | None:
    """Returns a doubt if the defense optimizes at inference and no attack used gradients through that.

    ``access`` has the access of each valid record's attack. In norms other than `UNROLLED_NORMS` no attack
    could, so the result is None.
    """
    run, defense = attacked.run, attacked.defense
    if run.norm not in UNROLLED_NORMS or (access == "unrolled").any():
        return None
    if defense in run.unrolled:
        return Doubt(NOT_UNROLLED, "gradients hold its end fixed")
    return Doubt(NOT_UNROLLED, "the defense gives no gradient through it") if defense in run.optimizing else None


def never_succeeds(attacked: Attacked, records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if a minimal attack with gradients broke nothing and gave up on at least `OTHERS` images.

    Only images that other attacks break count. All images count if `Attacked.met_gradient_free` is False. Images whose
    budget was exhausted do not count, because they are not the attack's failure. ``records`` are the attack's records
    with a valid result.
    """
    gave_up = records[records["status"].eq(Status.NOT_FOUND) & ~records["claimed"]]
    if attacked.met_gradient_free:
        gave_up = gave_up[gave_up["sample"].isin(attacked.broken)]
    return Doubt(NEVER, f"0 of {len(gave_up)} images") if len(gave_up) >= OTHERS else None


def falling(run: NormRun, cell: str, smaller: str) -> Doubt | None:
    """Returns a doubt if a cell breaks significantly fewer images than an otherwise equal smaller cell.

    Smaller means a smaller epsilon or fewer steps of the same attack. The test is McNemar's exact test (one-sided,
    `FALL`). It uses the images that both cells attacked with a valid result. A minimal attack breaks an image if it
    found an adversarial example within the threshold.
    """
    if smaller not in run.records or cell not in run.records:
        return None
    bounded = run.entries[cell].epsilon is not None
    less, more = (valid_records(run.records[each]).set_index("sample")[run.norm.lower()] for each in (smaller, cell))
    both = less.index.intersection(more.index)
    before, after = (
        np.isfinite(distances[both]) if bounded else within(distances[both], run.threshold)
        for distances in (less, more)
    )
    if falls(before, after) >= FALL:
        return None
    return Doubt(FALLING, f"{after.sum()} of {len(both)} images, {before.sum()} with {_difference(run, smaller, cell)}")


def smaller_settings(run: NormRun) -> dict[str, list[str]]:
    """Maps each cell to the otherwise equal cells of the same attack and defense with a smaller setting.

    A smaller setting is a smaller epsilon or fewer steps.
    """
    alike: dict[str, list[tuple[float, str]]] = {}
    for id_, cell in run.entries.items():
        place = [cell.attack.partition(":")[0], cell.defense, cell.budget]
        epsilon, parameters = cell.epsilon, cell.parameters
        if epsilon is not None:
            alike.setdefault(json.dumps([*place, parameters]), []).append((epsilon, id_))
        if isinstance(steps := parameters.get("steps"), int):
            rest = {**parameters, "steps": None}
            alike.setdefault(json.dumps([*place, rest, epsilon], sort_keys=True), []).append((steps, id_))
    smaller: dict[str, list[str]] = {}
    for settings in alike.values():
        for size, id_ in settings:
            if others := [other for less, other in settings if less < size]:
                smaller.setdefault(id_, []).extend(others)
    return smaller


def _difference(run: NormRun, smaller: str, cell: str) -> str:
    """Describes what is smaller in the first of two cells."""
    less, more = run.entries[smaller], run.entries[cell]
    if less.epsilon != more.epsilon:
        return f"epsilon {less.epsilon:g} instead of {more.epsilon:g}"
    return f"{less.parameters['steps']} steps instead of {more.parameters['steps']}"
