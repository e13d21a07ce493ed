"""Accuracies under the attacks of all norms (Ju & Wagner 2020, Tables 1 to 4)."""

from __future__ import annotations

from reports.measures.numbers import ACCURACY, Numbers
from reports.runs.rows import CLEAN
from reports.tables.captions import BOLD, bound_note, measured_on, power_note
from reports.tables.cells import accuracy_quantity, blank_note, cell_of
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, laid_out, sentences


@table("accuracy", per="run", order=20)
def accuracy_table(numbers: Numbers) -> Table | None:
    """Builds the table of clean accuracies, and of accuracies at the threshold under each attack of every norm.

    Returns None if the run has no attacks.
    """
    if not numbers.norms:
        return None
    rows = {CLEAN: accuracy_row(numbers, "", CLEAN)}
    rules = []
    for norm in numbers.norms.values():
        rules.append(len(rows))
        for row in norm.rows:
            rows[f"{row.label}, {norm.label}"] = accuracy_row(numbers, norm.norm, row.label)
        rows[norm.all_attacks] = accuracy_row(numbers, norm.norm, norm.all_attacks)
    return Table(
        name="accuracy",
        title="Accuracy under attack",
        caption=sentences(accuracy_caption(numbers), BOLD, blank_note(rows.values())),
        frame=laid_out("attack", numbers.defense_names, rows),
        quantities=(accuracy_quantity(numbers, interval=True),),
        rules=tuple(rules),
    )


def accuracy_row(numbers: Numbers, norm: str, label: str) -> list[TableCell]:
    """Returns the accuracy of each of the run's defenses in a row of a norm; the norm of clean accuracies is empty."""
    return [cell_of(numbers.of(norm, label, name), [ACCURACY]) for name in numbers.defense_names]


def accuracy_caption(numbers: Numbers) -> str:
    """Returns what the accuracies are."""
    norms = list(numbers.norms.values())
    thresholds = ", ".join(f"{norm.threshold:g} in {norm.label}" for norm in norms)
    return sentences(
        f"Accuracy, within ε = {thresholds} where a row names no other, on {measured_on(numbers)}; in brackets "
        "Wilson's 95 % confidence intervals. A minimal attack counts where it found an adversarial within ε; all "
        "attacks count where any of them did.",
        bound_note(norms),
        power_note(norms),
    )
