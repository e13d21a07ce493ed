"""Median distances and accuracies of each attack (Schott et al. 2019, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench.contracts.norms import NormName
from reports.evidence.randomized import (
    bound_note,
    power_note,
)
from reports.runs.gaps import smallest_of
from reports.runs.labels import DECIMALS, NORM_LABELS
from reports.runs.run import Run, once_per_run
from reports.tables.cells import (
    BOLD,
    CLEAN,
    accuracy_quantity,
    all_attacks,
    all_cell,
    attack_cell,
    blank_note,
    clean_row,
    distances_of,
    marked,
    measured_on,
    spared,
)
from reports.tables.table import Cell, Published, Quantity, Table, laid_out, sentences


@once_per_run
def summary_table(run: Run, norm: NormName) -> Table:
    """Builds the table of each defense's median distance and accuracy at the threshold under each attack.

    The layout follows Schott et al. 2019, Table 1. A bounded attack has an accuracy at its own epsilon and no median.
    The last row is the per-sample minimum over attacks.
    """
    attacks = run.attack_rows(norm)
    defenses = run.defenses_in(norm)
    rows = {CLEAN: clean_row(run, defenses)}
    for row in attacks:
        cells = {defense: attack_cell(run, norm, row, defense) for defense in defenses}
        epsilon = run.threshold(norm) if row.epsilon is None else row.epsilon
        rows[row.label] = marked(cells, run, distances_of(run, norm, row), epsilon)
    smallest = smallest_of(run, norm)
    cells = {defense: all_cell(run, norm, defense, smallest.get(defense)) for defense in defenses}
    # Not bold: it was attacked by fewer methods.
    rows[all_attacks(norm)] = [
        replace(cell, significant=False) if spared(run, norm, defense) else cell
        for defense, cell in zip(defenses, marked(cells, run, smallest, run.threshold(norm)), strict=True)
    ]
    caption = sentences(
        f"Median {NORM_LABELS[norm]} distance of the smallest adversarials / accuracy at ε = {run.threshold(norm):g} "
        f"on {measured_on(run)}. A median of ∞: none found for at least half of the images. "
        f"The last row takes each image's smallest adversarial over all attacks. {BOLD}",
        bound_note(run, [norm]),
        power_note(run, [norm]),
        blank_note(rows.values()),
    )
    return Table(
        name=f"summary_{norm}",
        title=f"{NORM_LABELS[norm]}: median distance / accuracy at ε = {run.threshold(norm):g}",
        caption=caption,
        frame=laid_out("attack", defenses, rows),
        quantities=(
            Quantity("median", DECIMALS[norm]),
            accuracy_quantity(run),
        ),
        rules=(1, len(rows) - 1),
    )


def with_published(
    table: Table, numbers: Mapping[tuple[str, str], Published], paper: str, reference: str
) -> Table | None:
    """Returns the part of ``table`` for which a paper has numbers, with these numbers in its cells.

    ``numbers`` is keyed by row and column label. Returns None if the paper has none for the table.
    """
    rows = [str(row) for row in table.frame.index if any(str(row) == label for label, _ in numbers)]
    columns = [str(column) for column in table.frame if any(str(column) == name for _, name in numbers)]
    if not rows:
        return None
    shown = {row: [_beside(table.row(row)[column], numbers.get((row, column))) for column in columns] for row in rows}
    return replace(
        table,
        name=f"{table.name.replace('summary', 'published')}_{paper}",
        title=f"{table.title}, beside published numbers",
        caption=f"{table.caption} In parentheses: {reference}.",
        frame=laid_out(str(table.frame.index.name), columns, shown),
        rules=tuple(i for i, row in enumerate(rows) if list(table.frame.index).index(row) in table.rules),
    )


def _beside(cell: Cell, published: Published | None) -> Cell:
    if published is None:
        return cell
    return replace(cell, published=published.values, notes=(*cell.notes, *published.notes))
