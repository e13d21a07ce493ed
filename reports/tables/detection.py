"""How well each defense's score tells adversarial examples from clean images (Maggipinto, Terzi & Susto 2020)."""

from __future__ import annotations

from reports.measures.numbers import Number, Numbers
from reports.measures.studies import DETECTION, SHARE
from reports.published.numbers import published_detection
from reports.tables.captions import measured_on
from reports.tables.published import beside
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, TableCell, laid_out


@table("detection", per="run", order=40)
def detection_tables(numbers: Numbers) -> list[Table]:
    """Builds the table of detection, and the parts of it that papers have numbers for.

    It includes what remains of detection if the attacker knows the detector (Maggipinto, Terzi & Susto 2020, section
    6). Returns no table if this was not studied.
    """
    decisive = numbers.where(DETECTION["accuracy"])
    if not decisive:
        return []
    rows: dict[str, list[TableCell]] = {}
    for number in decisive:
        own = numbers.of(number.norm, number.attack, number.defense)
        rows[f"{number.defense}, {number.attack}"] = [_cell(own[quantity]) for quantity in DETECTION.values()]
    shown = Table(
        name="detection",
        title="Detection",
        caption=(
            f"A logistic detector on each defense's own score, fitted to training images and their adversarials, on "
            f"{measured_on(numbers)}. Its accuracy weighs clean images and adversarials the same. Right or refused: "
            "images that are not both misclassified and accepted, under PGD that knows of no detector and under "
            "selective PGD that evades it too. Refusing costs nothing there: mind the clean images refused."
        ),
        frame=laid_out("defense", list(DETECTION.values()), rows),
        quantities=(Quantity(SHARE, 3),),
    )
    return [shown, *beside(shown, {paper: published_detection(numbers, paper) for paper in numbers.papers})]


def _cell(number: Number) -> TableCell:
    if number.reason:
        return TableCell(text=number.reason, notes=number.notes)
    return TableCell({SHARE: number.estimate})
