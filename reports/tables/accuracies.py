"""Tables of accuracies, built from other tables.

One shows all norms together (as in Ju & Wagner 2020, Tables 1 to 4). The others show what each part of a defense
contributes (Table 5).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

import pandas as pd

from bench.contracts.norms import NormName
from reports.evidence.randomized import bound_note, power_note
from reports.runs.labels import NORM_LABELS
from reports.runs.run import Run
from reports.statistics.distances import accuracy_interval
from reports.tables.cells import (
    BOLD,
    CLEAN,
    NOT_PLANNED,
    accuracy_quantity,
    all_attacks,
    blank_note,
    clean_row,
    measured_on,
)
from reports.tables.table import Cell, Table, laid_out, sentences


def accuracy_table(run: Run, summaries: Mapping[NormName, Table], strengths: Mapping[NormName, Table]) -> Table:
    """Builds the table of clean accuracies, and of accuracies at the threshold under each attack of every norm.

    Args:
        run: the run that the tables describe.
        summaries: `reports.tables.summary.summary_table` of each norm.
        strengths: `reports.tables.strength.strength_table` of each norm.
    """
    clean = zip(run.defenses, clean_row(run, run.defenses), strict=True)
    rows = {CLEAN: [_with_interval(cell, run.clean_distances[name]) if cell.values else cell for name, cell in clean]}
    rules = []
    for norm, summary in summaries.items():
        rules.append(len(rows))
        for label in map(str, strengths[norm].frame.index):
            name = label if label == all_attacks(norm) else f"{label}, {NORM_LABELS[norm]}"
            bold = summary.row(label)
            cells = {
                defense: replace(cell, values=cell.values[3:6], significant=bold[defense].significant)
                for defense, cell in strengths[norm].row(label).items()
            }
            rows[name] = [cells.get(defense, NOT_PLANNED) for defense in run.defenses]
    return Table(
        name="accuracy",
        title="Accuracy under attack",
        caption=sentences(_caption(run), BOLD, blank_note(rows.values())),
        frame=laid_out("attack", run.defenses, rows),
        quantities=(replace(accuracy_quantity(run), interval=True),),
        rules=tuple(rules),
    )


def ablation_tables(run: Run, accuracies: Table) -> list[Table]:
    """Builds one table for each family of defenses: the parts that each member has, and its accuracies.

    Families with a single member get no table.

    Args:
        run: the run that the table describes.
        accuracies: its `accuracy_table`.
    """
    families: dict[str, dict[str, list[str]]] = {}
    for entry in run.manifest.defenses:
        if entry.family:
            families.setdefault(entry.family, {})[entry.name] = list(entry.parts)

    def columns_of(members: Collection[str]) -> list[str]:
        return [CLEAN, *(all_attacks(norm) for norm in run.norms if set(members) & set(run.defenses_in(norm)))]

    return [
        Table(
            name=f"ablation_{re.sub(r'[^a-z0-9]', '', family.lower())}{i or ''}",
            title=f"Ablation of {family}",
            caption=f"Parts of {family} and what they contribute. {_caption(run)}",
            frame=laid_out(
                "defense",
                ["parts", *columns_of(members)],
                {
                    name: [
                        Cell(text=", ".join(parts) or "none"),
                        *(replace(accuracies.row(row)[name], significant=False) for row in columns_of(members)),
                    ]
                    for name, parts in sorted(members.items(), key=lambda member: len(member[1]))
                },
            ),
            quantities=accuracies.quantities,
            prose=("parts",),
        )
        for i, (family, members) in enumerate(families.items())
        if len(members) > 1
    ]


def _caption(run: Run) -> str:
    thresholds = ", ".join(f"{run.threshold(norm):g} in {NORM_LABELS[norm]}" for norm in run.norms)
    return sentences(
        f"Accuracy, within ε = {thresholds} where a row names no other, on {measured_on(run)}; in brackets Wilson's "
        "95 % confidence intervals. A minimal attack counts where it found an adversarial within ε; all attacks count "
        "where any of them did.",
        bound_note(run, run.norms),
        power_note(run, run.norms),
    )


def _with_interval(cell: Cell, distances: pd.Series) -> Cell:
    """Returns a clean accuracy with its interval, from `Run.clean_distances`, without the cell's NaN median."""
    return replace(cell, values=(cell.values[1], *accuracy_interval(distances.dropna(), 0.0)))
