"""Attacks in order of their strength."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.contracts.norms import NormName
from reports.evidence.masking import judged_before
from reports.runs.gaps import smallest_of
from reports.runs.labels import NORM_LABELS
from reports.runs.run import Run
from reports.statistics.distances import (
    local_optimality,
)
from reports.tables.cells import (
    blank_note,
    distances_of,
    measured_on,
    passes_and_seconds,
    records_of,
    shortfall,
    signs_of,
)
from reports.tables.table import Cell, Quantity, Table, laid_out, sentences


def ranking_table(run: Run, norm: NormName) -> Table | None:
    """Builds the table of a norm's minimal attacks, strongest first, or returns None if there are none.

    Each row says how near an attack comes to the best known adversarial examples of each defense (AttackBench's local
    optimality). It also gives the mean over defenses (global optimality) and the attack's cost.
    """
    best = smallest_of(run, norm)
    rows: dict[str, list[Cell]] = {}
    for row in run.attack_rows(norm):
        if row.epsilon is not None or not row.cells:
            continue
        shown, local, costs = [], [], []
        for defense in run.defenses_in(norm):
            records = records_of(run, row, defense)
            if isinstance(records, Cell):
                shown.append(records)
                continue
            distances = distances_of(run, norm, row)[defense].dropna()
            optimality = local_optimality(distances, best[defense].reindex(distances.index))
            doubts = signs_of(judged_before(run, defense, [row.cells[defense]]))
            cell = Cell(text="unknown") if np.isnan(optimality) else Cell((optimality,), doubts=doubts)
            shown.append(replace(cell, notes=shortfall(records, norm)))
            local.append(optimality)
            costs.append(passes_and_seconds(run, row, defense))
        known = [value for value in local if not np.isnan(value)]
        gap = (
            ()
            if len(known) == len(run.defenses_in(norm))
            else (f"over {len(known)} of {len(run.defenses_in(norm))} defenses",)
        )
        mean = Cell(text="unknown")
        if known:
            passes, seconds = (float(np.nanmean(values)) for values in zip(*costs, strict=True))
            mean = Cell((float(np.mean(known)), passes, seconds), notes=gap)
        rows[row.label] = [mean, *shown]
    if not rows:
        return None
    order = sorted(rows, key=lambda label: -(rows[label][0].values or (-1.0,))[0])
    columns = ["all defenses", *run.defenses_in(norm)]
    return Table(
        name=f"ranking_{norm}",
        title=f"{NORM_LABELS[norm]}: ranking of the attacks",
        caption=sentences(
            f"Optimality of each {NORM_LABELS[norm]} attack (Cina et al. 2024): 1 where its adversarials are the "
            "nearest known ones, 0 where it breaks nothing within the largest distance that these need; the mean over "
            f"the defenses it ran on / mean passes / mean seconds per attacked image, then each. On {measured_on(run)}."
            " Known are the adversarials of this run's attacks: with few attacks, all look good.",
            blank_note(rows.values()),
        ),
        frame=laid_out("attack", columns, {label: rows[label] for label in order}),
        quantities=(Quantity("optimality", 2), Quantity("passes"), Quantity("seconds", 2)),
    )
