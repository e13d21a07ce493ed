"""How easily noise is driven to confidence in a class (Schott et al. 2019, section 7)."""

from __future__ import annotations

from reports.measures.numbers import Number, Numbers
from reports.measures.studies import DISTAL, REACHED, STEPS, STUDY
from reports.tables.captions import versions_of
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, laid_out


@table("distal", per="run", order=10)
def distal_table(numbers: Numbers) -> Table | None:
    """Builds the table of distal adversarial examples and of the calibration that makes confidences comparable.

    Returns None if this was not studied.
    """
    found = {name: numbers.of("", STUDY, name) for name in numbers.defense_names}
    rows = {name: [_cell(own[quantity]) for quantity in DISTAL] for name, own in found.items() if REACHED in own}
    if not rows:
        return None
    return Table(
        name="distal",
        title="Distal adversarials",
        caption=(
            "Images of uniform noise that gradient ascent drove to a confidence of 0.9 in a given class under the "
            "graded softmax (Schott et al. 2019, equation 4), whose alpha minimizes the cross-entropy and whose eta "
            f"makes the median confidence 0.9 on the first test images of {numbers.dataset} ({versions_of(numbers)}). "
            "Whether they look like their class is for the eye to judge."
        ),
        frame=laid_out("defense", DISTAL, rows),
        prose=DISTAL,
    )


def _cell(number: Number) -> TableCell:
    text = f"{number.value:g}" if number.quantity == STEPS else f"{number.value:.3g}"
    if number.quantity == REACHED:
        text = f"{number.value:.0f} of {number.n}"
    return TableCell(text=number.reason or text, notes=number.notes)
