"""Tables that compare defenses with each other, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName, within
from reports.evidence.masking import defense_doubts
from reports.evidence.randomized import bound_note
from reports.runs.gaps import gaps_of
from reports.runs.labels import DECIMALS, NORM_LABELS
from reports.runs.run import Run, once_per_run
from reports.statistics.distances import accuracy_at
from reports.statistics.significance import cochran_q, holm, mcnemar, median_difference
from reports.tables.cells import ALPHA, accuracy_quantity, meant_for, measured_on, minimized, signs_of
from reports.tables.table import Cell, Quantity, Table, laid_out, sentences


@once_per_run
def mcnemar_table(run: Run, norm: NormName) -> Table:
    """Builds the table of p-values of McNemar's exact test for each pair of defenses, over all attacks.

    The test compares survival at the threshold under the per-sample minimum over attacks. It uses the samples whose
    distance is known for both defenses.
    """
    smallest, defenses = run.smallest(norm), run.defenses_in(norm)
    distances = smallest.pivot(index="sample", columns="defense", values="distance").reindex(columns=defenses)
    doubts = {defense: signs_of(*defense_doubts(run, norm, defense)) for defense in defenses}
    pairs = [(first, second) for row, first in enumerate(defenses) for second in defenses[:row]]
    cells = [_mcnemar_cell(run, norm, distances[first], distances[second], doubts) for first, second in pairs]
    adjusted = holm([cell.values[0] if cell.values else np.nan for cell in cells])
    shown = {
        pair: replace(cell, values=(*cell.values, p), significant=bool(p < ALPHA)) if cell.values else cell
        for pair, cell, p in zip(pairs, cells, adjusted, strict=True)
    }
    columns = defenses[:-1]
    rows = {first: [shown.get((first, second), Cell()) for second in columns] for first in defenses[1:]}
    known = distances.dropna()
    q, p = cochran_q(~within(known, run.threshold(norm))) if len(known) else (np.nan, np.nan)
    all_equal = (
        f"Cochran's Q that all {len(defenses)} do: {q:.3g}, p = {p:.2g}, on the {len(known)} known for all. "
        if len(known)
        else ""
    )
    tested = int(np.sum(~np.isnan(adjusted)))
    caption = sentences(
        f"p-values of McNemar's exact test (two-sided) that two defenses survive all {NORM_LABELS[norm]} attacks "
        f"within ε = {run.threshold(norm):g} equally often, raw / adjusted for {tested} pairs by Holm's "
        f"method, on {measured_on(run)}. {all_equal}Bold: adjusted p < {ALPHA:g}.",
        bound_note(run, [norm]),
    )
    return Table(
        name=f"mcnemar_{norm}",
        title=f"{NORM_LABELS[norm]}: McNemar p-values",
        caption=caption,
        frame=laid_out("defense", columns, rows),
        quantities=(Quantity("p", 3), Quantity("adjusted p", 3)),
    )


def baseline_table(run: Run, norm: NormName, baseline: str) -> Table:
    """Builds the table that compares every other defense with ``baseline``, under the per-sample minimum over attacks.

    Each row holds the difference of the medians with its paired bootstrap interval and the difference of the
    accuracies. It also holds the p-value of McNemar's test that the accuracies are equal, raw and adjusted.
    """
    smallest, defenses = run.smallest(norm), run.defenses_in(norm)
    distances = smallest.pivot(index="sample", columns="defense", values="distance").reindex(columns=defenses)
    others = [defense for defense in defenses if defense != baseline]
    doubts = {defense: signs_of(*defense_doubts(run, norm, defense)) for defense in defenses}
    tests = [_mcnemar_cell(run, norm, distances[other], distances[baseline], doubts) for other in others]
    adjusted = holm([cell.values[0] if cell.values else np.nan for cell in tests])
    rows: dict[str, list[Cell]] = {}
    for other, test, p in zip(others, tests, adjusted, strict=True):
        if not test.values:
            rows[other] = [test]
            continue
        pair = distances[[other, baseline]].dropna()
        both = minimized(run, norm, other) and minimized(run, norm, baseline)
        median = median_difference(pair[other], pair[baseline]) if both else (np.nan, np.nan, np.nan)
        accuracies = [accuracy_at(pair[name], run.threshold(norm)) for name in (other, baseline)]
        values = (*median, accuracies[0] - accuracies[1], test.values[0], float(p))
        rows[other] = [replace(test, values=values, significant=bool(p < ALPHA))]
    return Table(
        name=f"baseline_{norm}",
        title=f"{NORM_LABELS[norm]}: beside {baseline}",
        caption=sentences(
            f"Median {NORM_LABELS[norm]} distance minus that of {baseline}, with its 95 % paired bootstrap interval / "
            f"accuracy at ε = {run.threshold(norm):g} minus that of {baseline} / p-value of McNemar's exact test that "
            f"the accuracies are equal, raw / adjusted for their number by Holm's method, under all attacks, "
            f"on {measured_on(run)}. Where both medians are infinite, their difference is unknown. Bold: adjusted "
            f"p < {ALPHA:g}.",
            bound_note(run, [norm]),
        ),
        frame=laid_out("defense", [f"minus {baseline}"], rows),
        quantities=(
            Quantity("median", DECIMALS[norm], interval=True),
            accuracy_quantity(run),
            Quantity("p", 3),
            Quantity("adjusted p", 3),
        ),
    )


def _mcnemar_cell(
    run: Run, norm: NormName, first: pd.Series, second: pd.Series, doubts: Mapping[str, tuple[str, ...]]
) -> Cell:
    valid = first.notna() & second.notna()
    if not valid.any():
        return Cell(text="—", notes=("no image with a known distance for both",))
    epsilon = run.threshold(norm)
    samples = len(run.samples)
    notes = [] if valid.sum() == samples else [f"on the {valid.sum()} of {samples} images valid for both"]
    names = (str(first.name), str(second.name))
    notes += [f"not all attacks on {name} are complete" for name in names if gaps_of(run, norm, name)]
    if meant_for(run, norm, names[:1]) != meant_for(run, norm, names[1:]):
        notes.append("not under the same attacks")
    p = mcnemar(~within(first[valid], epsilon), ~within(second[valid], epsilon))
    return Cell((p,), notes=tuple(notes), doubts=tuple(f"{name}: {sign}" for name in names for sign in doubts[name]))
