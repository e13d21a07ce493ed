"""What each part of a defense contributes (Ju & Wagner 2020, Table 5)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from reports.measures.facts import DefenseFacts
from reports.measures.numbers import ACCURACY, Numbers
from reports.runs.rows import CLEAN
from reports.tables.accuracy import accuracy_caption
from reports.tables.cells import accuracy_quantity, blank_note, cell_of
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, laid_out, sentences


@table("ablation", per="run", order=30)
def ablation_tables(numbers: Numbers) -> list[Table]:
    """Builds one table for each family of defenses: the parts that each member has, and its accuracies.

    Families with a single member get no table.
    """
    families: dict[str, list[DefenseFacts]] = {}
    for defense in numbers.defenses:
        if defense.family:
            families.setdefault(defense.family, []).append(defense)
    return [
        _ablation_table(numbers, family, members, f"{i or ''}")
        for i, (family, members) in enumerate(families.items())
        if len(members) > 1 and numbers.norms
    ]


def _ablation_table(numbers: Numbers, family: str, members: Sequence[DefenseFacts], suffix: str) -> Table:
    columns = _columns(numbers, {member.name for member in members})

    def row(member: DefenseFacts) -> list[TableCell]:
        shown = (cell_of(numbers.of(norm, label, member.name), [ACCURACY]) for norm, label in columns)
        return [
            TableCell(text=", ".join(member.parts) or "none"),
            *(replace(cell, significant=False) for cell in shown),
        ]

    rows = {member.name: row(member) for member in sorted(members, key=lambda member: len(member.parts))}
    return Table(
        name=f"ablation_{re.sub(r'[^a-z0-9]', '', family.lower())}{suffix}",
        title=f"Ablation of {family}",
        caption=sentences(
            f"Parts of {family} and what they contribute. {accuracy_caption(numbers)}", blank_note(rows.values())
        ),
        frame=laid_out("defense", ["parts", *(label for _, label in columns)], rows),
        quantities=(accuracy_quantity(numbers, interval=True),),
        prose=("parts",),
    )


def _columns(numbers: Numbers, members: Collection[str]) -> list[tuple[str, str]]:
    """Returns norm and row label of the accuracies that are shown of some defenses."""
    attacked = (norm for norm in numbers.norms.values() if not set(members).isdisjoint(norm.defenses))
    return [("", CLEAN), *((norm.norm, norm.all_attacks) for norm in attacked)]
