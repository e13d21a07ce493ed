"""The contents of table cells: numbers, or the reason why there are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName, within
from bench.ledger.schema import Status
from reports.evidence.masking import Doubt, cell_doubts, defense_doubts, judged_before
from reports.evidence.randomized import (
    bounded_cells,
    percentage,
)
from reports.runs.gaps import gaps_of, invalid, smallest_of
from reports.runs.labels import NORM_LABELS
from reports.runs.run import AttackRow, Run, once_per_run
from reports.statistics.distances import (
    accuracy_at,
    median_distance,
)
from reports.statistics.records import COSTS, by_sample
from reports.statistics.significance import significantly_best
from reports.tables.table import Cell, Quantity

CLEAN = "clean"
"""Label of the row of clean accuracies."""
NOT_APPLICABLE, NO_CELL = "n/a", "—"
"""Shown in place of numbers that will never exist."""
NOT_PLANNED = Cell()
"""The blank cell of an attack that the matrix does not run on the defense. `blank_note` explains it."""
ALPHA = 0.01
"""Significance level of the tests, as in the papers."""
BOLD = (
    "Bold: the highest accuracy of a row without a dagger, where McNemar's exact test tells it from every other one "
    f"(p < {ALPHA:g}, adjusted by Holm's method)."
)


def all_attacks(norm: NormName) -> str:
    """Returns the label of the row of per-sample minima over attacks."""
    return f"All {NORM_LABELS[norm]} attacks"


def clean_row(run: Run, defenses: list[str]) -> list[Cell]:
    """Returns the row of clean accuracies, one cell per defense; the median in each cell is NaN."""
    distances = {name: run.clean_distances[name] for name in defenses if name in run.clean_distances}
    return marked({name: clean_cell(run, name) for name in defenses}, run, distances, 0.0)


def accuracy_quantity(run: Run) -> Quantity:
    """Returns the accuracy as a quantity: a percentage without decimals below 1000 samples, otherwise with one."""
    return Quantity("accuracy", 0 if len(run.samples) < 1000 else 1, percent=True)


def marked(cells: Mapping[str, Cell], run: Run, distances: Mapping[Any, pd.Series], epsilon: float) -> list[Cell]:
    """Returns a row whose best accuracy at ``epsilon`` is marked as significant if the tests confirm it (`BOLD`).

    ``cells`` and ``distances`` are keyed by defense. Nothing is marked while the numbers of a defense are pending or
    unknown, because that defense may be better.
    """
    if not all(cell.values or cell.text in (NOT_APPLICABLE, NO_CELL, NOT_PLANNED.text) for cell in cells.values()):
        return list(cells.values())
    known = pd.DataFrame(dict(distances)).dropna()
    best = significantly_best(~within(known, epsilon), ALPHA) if len(known) else None
    return [
        replace(cell, significant=True) if name == best and cell.values and not cell.doubts else cell
        for name, cell in cells.items()
    ]


def clean_cell(run: Run, defense: str) -> Cell:
    """Returns the cell of a defense's clean accuracy."""
    if defense not in run.clean_distances:
        return Cell(text="not run yet")
    distances = run.clean_distances[defense]
    known = distances.dropna()
    if known.empty:
        return Cell(text="failed")
    missing = len(distances) - len(known)
    notes = (f"{len(known)} of {len(distances)}, {missing} failed",) if missing else ()
    doubts = signs_of(judged_before(run, defense, run.cells_of(defense)))
    return Cell((np.nan, accuracy_at(known, 0.0)), notes=notes, doubts=doubts)


def attack_cell(run: Run, norm: NormName, row: AttackRow, defense: str) -> Cell:
    """Returns the cell of a defense's median distance and accuracy under one attack."""
    records = records_of(run, row, defense)
    if isinstance(records, Cell):
        return records
    distances = records[norm.lower()].dropna()
    if len(distances) < len(records) and not distances.gt(0).any():
        # Clean errors say nothing about the attack.
        return Cell(text=invalid(records, norm), notes=_details(records, norm))
    notes = (*shortfall(records, norm), *undecided_note(records["status"].eq(Status.UNDECIDED)))
    doubts = signs_of(*cell_doubts(run, row, defense))
    if row.epsilon is not None:
        return Cell((np.nan, accuracy_at(distances, row.epsilon)), notes=notes, doubts=doubts)
    values = (median_distance(distances), accuracy_at(distances, run.threshold(norm)))
    return Cell(values, notes=notes, doubts=doubts)


def all_cell(run: Run, norm: NormName, defense: str, distances: pd.Series | None) -> Cell:
    """Returns the cell of the per-sample minimum over attacks.

    Footnotes name the attacks without complete results. If the matrix spares the defense some attacks, a footnote
    counts the attacks planned for it.
    """
    gaps = gaps_of(run, norm, defense)
    notes: tuple[str, ...] = (f"incomplete: {'; '.join(gaps)}",) if gaps else ()
    if spared(run, norm, defense):
        met, there_are = meant_for(run, norm, [defense]), meant_for(run, norm, run.defenses)
        notes += (f"under {len(met)} of {len(there_are)} attacks only",)
    if distances is None:
        return Cell(text="not run yet", notes=notes) if gaps else Cell(text=NO_CELL, notes=("no attack applies",))
    known = distances.dropna()
    if known.empty:
        return Cell(text=f"unknown ({len(distances)}/{len(distances)})", notes=notes)
    if len(known) < len(distances):
        smallest = run.smallest(norm)
        notes = (*shortfall(smallest[smallest["defense"] == defense], norm), *notes)
    records = run.records_against(defense, norm, ["sample", "status"])
    undecided = records.loc[records["status"] == Status.UNDECIDED, "sample"]
    notes += undecided_note(pd.Series(distances.index.isin(undecided) & np.isposinf(distances)))
    alphas = bounded_cells(run, norm, defense)
    if alphas:
        bound = percentage(min(1.0, sum(alphas)))
        notes += (f"over m = {len(alphas)} cells: broken by mistake with probability at most m α = {bound} per sample",)
    median = median_distance(known) if minimized(run, norm, defense) else np.nan
    doubts = signs_of(*defense_doubts(run, norm, defense))
    return Cell((median, accuracy_at(known, run.threshold(norm))), notes=notes, doubts=doubts)


def undecided_note(images: pd.Series) -> tuple[str, ...]:
    """Returns a footnote that counts the undecided images, or an empty tuple if there are none."""
    return (f"{images.sum()} of {len(images)} undecided",) if images.any() else ()


def spared(run: Run, norm: NormName, defense: str) -> bool:
    """True if the matrix plans an attack of this norm for some other defense but not for this one.

    An attack that is not applicable counts as planned.
    """
    return meant_for(run, norm, [defense]) != meant_for(run, norm, run.defenses)


def meant_for(run: Run, norm: NormName, defenses: Sequence[str]) -> set[str]:
    """Returns the names of the norm's attacks that the matrix has a place for on at least one of the defenses.

    Variants of an attack count as the same attack.
    """
    rows = run.attack_rows(norm)
    return {row.attack.partition(":")[0] for row in rows if any(row.concerns(defense) for defense in defenses)}


def minimized(run: Run, norm: NormName, defense: str) -> bool:
    """True if a minimal attack ran on the defense.

    Bounded attacks alone say nothing about the smallest distance: their adversarial examples lie near their epsilon.
    """
    return any(row.epsilon is None and row.cells.get(defense) in run.facts for row in run.attack_rows(norm))


def with_distances(run: Run, norm: NormName) -> list[str]:
    """Returns the defenses of a norm, without those on which only bounded attacks ran.

    Returns all defenses of the norm if none would remain.
    """
    bounded = {name for name in smallest_of(run, norm) if not minimized(run, norm, name)}
    return [name for name in run.defenses_in(norm) if name not in bounded] or run.defenses_in(norm)


def signs_of(*doubts: Doubt | None) -> tuple[str, ...]:
    """Returns the signs of the doubts, for footnotes."""
    return tuple(doubt.sign for doubt in doubts if doubt is not None)


def passes_and_seconds(run: Run, row: AttackRow, defense: str) -> tuple[float, float]:
    """Returns the mean passes and seconds of an attack per attacked image; NaN if no image was attacked."""
    costs = run.facts[row.cells[defense]].costs if row.cells.get(defense) in run.facts else dict.fromkeys(COSTS, np.nan)
    return costs["forwards"] + costs["backwards"], costs["seconds"]


@once_per_run
def distances_of(run: Run, norm: NormName, row: AttackRow) -> dict[str, pd.Series]:
    """Returns the distances of an attack by sample, for each defense whose cell has run."""
    found = {defense: run.cell_records(cell) for defense, cell in row.cells.items()}
    return {defense: by_sample(own, norm.lower()) for defense, own in found.items() if own is not None}


def records_of(run: Run, row: AttackRow, defense: str) -> pd.DataFrame | Cell:
    """Returns the records behind one cell of a table, or a cell that says why there are none."""
    if defense in row.cells:
        records = run.cell_records(row.cells[defense])
        return Cell(text="not run yet") if records is None else records
    if defense in row.not_applicable:
        return Cell(text=NOT_APPLICABLE, notes=(f"not applicable: {row.not_applicable[defense]}",))
    return NOT_PLANNED


def blank_note(rows: Iterable[Sequence[Cell]]) -> str:
    """Returns the caption's sentence on blank cells, or an empty text if no cell of the rows is blank."""
    return "Blank: not in the matrix." if any(cell == NOT_PLANNED for row in rows for cell in row) else ""


def shortfall(records: pd.DataFrame, norm: NormName) -> tuple[str, ...]:
    """Returns the footnotes of a number computed over records of which some have no distance.

    The first one reads like ``4 of 5, 1 failed (non_finite)``. Reasons that it shortens follow in full.
    """
    unknown = np.isnan(records[norm.lower()].to_numpy(float))
    if not unknown.any():
        return ()
    missing = records[unknown]
    reasons = missing["reason"].str.partition(":")[0]
    kinds = Counter(zip(missing["status"], reasons, strict=True))
    counts = [f"{count} {status}{f' ({reason})' if reason else ''}" for (status, reason), count in kinds.items()]
    return f"{len(records) - len(missing)} of {len(records)}, {', '.join(counts)}", *_details(records, norm)


def _details(records: pd.DataFrame, norm: NormName) -> tuple[str, ...]:
    """Returns in full the reasons that `invalid` and `shortfall` shorten."""
    reasons = records.loc[records[norm.lower()].isna(), "reason"]
    return tuple(reasons[reasons.str.contains(":")].unique())


def measured_on(run: Run) -> str:
    """Returns the number of images, the dataset and the versions, for captions.

    If attacks were selected, the text also names them.
    """
    chosen = "" if run.chosen is None else f", attacks {', '.join(run.chosen)} only"
    return f"{len(run.samples)} test images of {run.dataset} ({versions_of(run)}{chosen})"


def versions_of(run: Run) -> str:
    """Returns the versions that the numbers depend on, for captions."""
    versions = run.manifest.provenance["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("assay", "torch") if name in versions)
