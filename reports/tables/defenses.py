"""The defenses of a run."""

from __future__ import annotations

from reports.measures.numbers import Numbers
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, laid_out


@table("defenses", per="run", order=80)
def defenses_table(numbers: Numbers) -> Table:
    """Builds the table of the defenses: whether each is randomized, its parameters and its citation.

    Columns without any entry are left out.
    """
    texts = {
        defense.name: {
            "randomized": "yes" if defense.randomized else "no",
            "parameters": defense.parameters,
            "citation": defense.citation,
        }
        for defense in numbers.defenses
    }
    columns = [name for name in ("randomized", "parameters", "citation") if any(row[name] for row in texts.values())]
    rows = {name: [TableCell(text=row[column]) for column in columns] for name, row in texts.items()}
    return Table(
        name="defenses",
        title="Defenses",
        caption="Defenses of this run. Randomized ones are judged over many draws.",
        frame=laid_out("defense", columns, rows),
        prose=tuple(column for column in ("parameters", "citation") if column in columns),
    )
