"""What each attack spends on an image."""

from __future__ import annotations

from reports.measures.numbers import BACKWARDS, FORWARDS, INNER_STEPS, Numbers
from reports.tables.captions import measured_on
from reports.tables.cells import blank_note, cell_of
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, laid_out, sentences

SHOWN_COSTS = {
    FORWARDS: "forward passes",
    BACKWARDS: "backward passes",
    INNER_STEPS: "steps of an optimization inside the defense",
}


@table("cost", per="run", order=60)
def cost_table(numbers: Numbers) -> Table:
    """Builds the table of mean passes and inner optimization steps per attacked image, for each attack and defense."""
    rows = {
        f"{row.label}, {norm.label}": [
            cell_of(numbers.of(norm.norm, row.label, name), list(SHOWN_COSTS), decisive=FORWARDS)
            for name in numbers.defense_names
        ]
        for norm in numbers.norms.values()
        for row in norm.rows
    }
    return Table(
        name="cost",
        title="Cost",
        caption=sentences(
            f"Mean {' / '.join(SHOWN_COSTS.values())}, per attacked image (clean errors are not attacked), "
            f"on {measured_on(numbers)}.",
            _warm_note(numbers),
            blank_note(rows.values()),
        ),
        frame=laid_out("attack", numbers.defense_names, rows),
        quantities=tuple(map(Quantity, SHOWN_COSTS)),
    )


def _warm_note(numbers: Numbers) -> str:
    """Returns what an approximation cost: the share of claims that the judge refuted."""
    if not numbers.warm:
        return ""
    refuted = ", ".join(map(str, numbers.warm))
    return f"Answers inside attacks start from those before; of what they claimed, the exact judge refuted: {refuted}."
