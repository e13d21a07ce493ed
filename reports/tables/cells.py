"""The contents of table cells: numbers, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reports.measures.numbers import ACCURACY, Number, Numbers
from reports.measures.reasons import NOT_PLANNED
from reports.tables.table import Quantity, TableCell

BLANK = TableCell()
"""The cell of an attack that the matrix does not run on the defense. `blank_note` explains it."""


def blank_note(rows: Iterable[Sequence[TableCell]]) -> str:
    """Returns the caption's sentence on blank cells, or an empty text if no cell of the rows is blank."""
    return "Blank: not in the matrix." if any(cell == BLANK for row in rows for cell in row) else ""


def cell_of(found: Mapping[str, Number], quantities: Sequence[str], decisive: str = ACCURACY) -> TableCell:
    """Returns the cell that shows some numbers of an attack on a defense.

    Args:
        found: the numbers, by quantity. Without any, the cell is blank.
        quantities: the quantities to show.
        decisive: the quantity that the cell's text, footnotes and doubts are those of.
    """
    if decisive not in found or found[decisive].reason == NOT_PLANNED:
        return BLANK
    number = found[decisive]
    if number.reason:
        return TableCell(text=number.reason, notes=number.notes, doubts=number.doubts)
    values = {name: found[name].estimate for name in quantities if name in found and not found[name].reason}
    return TableCell(values, notes=number.notes, doubts=number.doubts, significant=number.significant)


def accuracy_quantity(numbers: Numbers, *, interval: bool = False) -> Quantity:
    """Returns the accuracy as a quantity: a percentage without decimals below 1000 samples, otherwise with one."""
    return Quantity(ACCURACY, 0 if numbers.samples < 1000 else 1, percent=True, interval=interval)
