"""The strength of each attack, with confidence intervals, and its cost."""

from __future__ import annotations

from dataclasses import replace

from reports.measures.facts import NormFacts
from reports.measures.numbers import ACCURACY, MEDIAN, PASSES, SECONDS, Numbers
from reports.runs.labels import DECIMALS
from reports.tables.captions import bound_note, measured_on, power_note, protocols_note
from reports.tables.cells import accuracy_quantity, blank_note, cell_of
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, laid_out, sentences


@table(
    "strength",
    per="norm",
    order=70,
    heading="How strong is each attack, how sure is that, and what does it cost?",
)
def strength_table(numbers: Numbers, norm: NormFacts) -> Table:
    """Builds the table of each attack's strength and cost, with confidence intervals.

    Cells of randomized defenses also hold the accuracies under the other protocols of `reports.evidence.randomized`.
    Passes and seconds are means per attacked image.
    """
    quantities = (MEDIAN, ACCURACY, *norm.protocols, PASSES, SECONDS)
    labels = [*(row.label for row in norm.rows), norm.all_attacks]
    rows = {
        label: [
            replace(cell_of(numbers.of(norm.norm, label, name), quantities), significant=False)
            for name in norm.defenses
        ]
        for label in labels
    }
    accuracy = accuracy_quantity(numbers, interval=True)
    return Table(
        name=f"strength_{norm.norm}",
        title=f"{norm.label}: strength and cost of the attacks",
        caption=sentences(
            f"Median {norm.label} distance / accuracy at ε = {norm.threshold:g} / mean forward plus "
            f"backward passes / mean seconds per attacked image, on {measured_on(numbers)}; in brackets 95 % "
            "confidence intervals (between order statistics; Wilson's). Seconds depend on the machine and on what else "
            "it does.",
            protocols_note(numbers) if norm.protocols else "",
            bound_note([norm]),
            power_note([norm]),
            blank_note(rows.values()),
        ),
        frame=laid_out("attack", norm.defenses, rows),
        quantities=(
            Quantity(MEDIAN, DECIMALS[norm.norm], interval=True),
            accuracy,
            *(replace(accuracy, name=name) for name in norm.protocols),
            Quantity(PASSES),
            Quantity(SECONDS, 2),
        ),
        rules=(len(rows) - 1,),
    )
