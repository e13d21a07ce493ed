"""Median distances and accuracies of each attack (Schott et al. 2019, Table 1)."""

from __future__ import annotations

from reports.measures.facts import NormFacts
from reports.measures.numbers import ACCURACY, MEDIAN, Numbers
from reports.runs.labels import DECIMALS
from reports.runs.rows import CLEAN
from reports.tables.captions import BOLD, bound_note, measured_on, power_note
from reports.tables.cells import accuracy_quantity, blank_note, cell_of
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, laid_out, sentences


@table("summary", per="norm", order=10, heading="Each attack")
def summary_table(numbers: Numbers, norm: NormFacts) -> Table:
    """Builds the table of each defense's median distance and accuracy at the threshold under each attack.

    The layout follows Schott et al. 2019, Table 1. A bounded attack has an accuracy at its own epsilon and no median.
    The last row is the per-sample minimum over attacks.
    """
    labels = [CLEAN, *(row.label for row in norm.rows), norm.all_attacks]
    rows = {
        label: [cell_of(numbers.of(norm.norm, label, name), (MEDIAN, ACCURACY)) for name in norm.defenses]
        for label in labels
    }
    caption = sentences(
        f"Median {norm.label} distance of the smallest adversarials / accuracy at ε = {norm.threshold:g} "
        f"on {measured_on(numbers)}. A median of ∞: none found for at least half of the images. "
        f"The last row takes each image's smallest adversarial over all attacks. {BOLD}",
        bound_note([norm]),
        power_note([norm]),
        blank_note(rows.values()),
    )
    return Table(
        name=f"summary_{norm.norm}",
        title=f"{norm.label}: median distance / accuracy at ε = {norm.threshold:g}",
        caption=caption,
        frame=laid_out("attack", norm.defenses, rows),
        quantities=(Quantity(MEDIAN, DECIMALS[norm.norm]), accuracy_quantity(numbers)),
        rules=(1, len(rows) - 1),
    )
