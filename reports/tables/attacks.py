"""Each attack's budget and parameters."""

from __future__ import annotations

from reports.measures.facts import AttackFacts
from reports.measures.numbers import Numbers
from reports.runs.labels import NORM_LABELS
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, listed


@table("attacks", per="run", order=70)
def attacks_table(numbers: Numbers) -> Table:
    """Builds the table of each attack's budget and parameters, one row per setting.

    Columns without any entry are left out.
    """
    texts = [_texts(attack) for attack in numbers.attacks]
    columns = [name for name in dict.fromkeys(name for row in texts for name in row) if any(row[name] for row in texts)]
    rows = [
        (attack.name, [TableCell(text=row[name]) for name in columns])
        for attack, row in zip(numbers.attacks, texts, strict=True)
    ]
    return Table(
        name="attacks",
        title="Attacks and budgets",
        caption="Attacks with their parameters. The budget is in forward plus backward passes per image.",
        frame=listed("attack", columns, rows),
        prose=tuple(column for column in ("parameters", "against", "citation") if column in columns),
    )


def _texts(attack: AttackFacts) -> dict[str, str]:
    return {
        "norms": ", ".join(NORM_LABELS[norm] for norm in attack.norms),
        "kind": attack.kind,
        "access": attack.access,
        "budget": f"{attack.budget}",
        "parameters": attack.parameters,
        "against": ", ".join(attack.against),
        "citation": attack.citation,
    }
