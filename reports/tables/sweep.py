"""Accuracy under a bounded attack as one of its parameters grows."""

from __future__ import annotations

from reports.measures.facts import NormFacts, Sweep
from reports.measures.numbers import ACCURACY, SWEPT_ACCURACY, Numbers
from reports.tables.captions import bound_note, measured_on
from reports.tables.cells import accuracy_quantity, blank_note, cell_of
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, laid_out, sentences


@table("sweep", per="norm", order=90)
def sweep_tables(numbers: Numbers, norm: NormFacts) -> list[Table]:
    """Builds one table for each sweep: the accuracy of each defense for each value of the attack's parameter."""
    return [_sweep_table(numbers, norm, sweep) for sweep in norm.sweeps]


def _sweep_table(numbers: Numbers, norm: NormFacts, sweep: Sweep) -> Table:
    def cell(label: str, defense: str) -> TableCell:
        swept = numbers.of(norm.norm, label, defense)[SWEPT_ACCURACY]
        return cell_of({ACCURACY: swept}, [ACCURACY])

    rows = {f"{value:g}": [cell(label, defense) for defense in sweep.defenses] for value, label in sweep.steps}
    return Table(
        name=f"sweep_{norm.norm}_{sweep.attack}_{sweep.parameter}",
        title=f"{norm.label}: {sweep.attack} with more {sweep.parameter}",
        caption=sentences(
            f"Accuracy under {sweep.attack} within ε = {sweep.epsilon:g} in {norm.label} for each value of its "
            f"parameter {sweep.parameter}, on {measured_on(numbers)}; in brackets Wilson's 95 % confidence intervals.",
            bound_note([norm]),
            blank_note(rows.values()),
        ),
        frame=laid_out(sweep.parameter, sweep.defenses, rows),
        quantities=(accuracy_quantity(numbers, interval=True),),
    )
