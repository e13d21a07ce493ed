"""Attacks in order of their strength."""

from __future__ import annotations

from reports.measures.facts import NormFacts
from reports.measures.numbers import EVERY_DEFENSE, OPTIMALITY, PASSES, SECONDS, Numbers
from reports.tables.captions import measured_on
from reports.tables.cells import blank_note, cell_of
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, laid_out, sentences


@table("ranking", per="norm", order=80)
def ranking_table(numbers: Numbers, norm: NormFacts) -> Table | None:
    """Builds the table of a norm's minimal attacks, strongest first, or returns None if there are none.

    Each row says how near an attack comes to the best known adversarial examples of each defense (AttackBench's local
    optimality). It also gives the mean over defenses (global optimality) and the attack's cost.
    """
    means = [number for number in numbers.where(OPTIMALITY, norm.norm) if number.defense == EVERY_DEFENSE]
    if not means:
        return None
    ranked = sorted(means, key=lambda mean: 1.0 if mean.reason else -mean.value)
    columns = [EVERY_DEFENSE, *norm.defenses]
    rows = {
        mean.attack: [
            cell_of(
                numbers.of(norm.norm, mean.attack, column),
                (OPTIMALITY, PASSES, SECONDS) if column == EVERY_DEFENSE else (OPTIMALITY,),
                decisive=OPTIMALITY,
            )
            for column in columns
        ]
        for mean in ranked
    }
    return Table(
        name=f"ranking_{norm.norm}",
        title=f"{norm.label}: ranking of the attacks",
        caption=sentences(
            f"Optimality of each {norm.label} attack (Cina et al. 2024): 1 where its adversarials are the "
            "nearest known ones, 0 where it breaks nothing within the largest distance that these need; the mean over "
            f"the defenses it ran on / mean passes / mean seconds per attacked image, then each. On "
            f"{measured_on(numbers)}. Known are the adversarials of this run's attacks: with few attacks, all look "
            "good.",
            blank_note(rows.values()),
        ),
        frame=laid_out("attack", columns, rows),
        quantities=(Quantity(OPTIMALITY, 2), Quantity(PASSES), Quantity(SECONDS, 2)),
    )
