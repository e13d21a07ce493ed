"""The defenses of a run, and its attacks with their settings."""

from __future__ import annotations

from collections.abc import Mapping

from reports.measures.facts import AttackFacts, DefenseFacts
from reports.runs.run import Run


def defense_facts(run: Run) -> list[DefenseFacts]:
    """Returns the defenses, in the run's order."""
    return [
        DefenseFacts(
            name=entry.name,
            randomized=entry.randomized,
            parameters=_in_words(entry.parameters),
            citation=entry.citation,
            family=entry.family,
            parts=entry.parts,
            samples=entry.samples,
        )
        for entry in run.manifest.defenses
    ]


def attack_facts(run: Run) -> list[AttackFacts]:
    """Returns the attacks with each of their settings, in the run's order."""
    settings: dict[tuple[str, str, int], set[str]] = {}
    for cell in run.manifest.cells:
        start = {"start": " + ".join(cell.start)} if cell.start else {}
        key = (cell.attack, _in_words({**cell.parameters, **start}), cell.budget)
        settings.setdefault(key, set()).add(cell.defense)
    found: list[AttackFacts] = []
    for entry in run.manifest.attacks:
        own = [(key, defenses) for key, defenses in settings.items() if key[0] == entry.name]
        for (name, parameters, budget), defenses in own:
            found.append(
                AttackFacts(
                    name=name,
                    norms=entry.norms,
                    kind=entry.kind,
                    access=entry.access,
                    budget=budget,
                    parameters=parameters,
                    against=() if len(own) == 1 else tuple(name for name in run.defenses if name in defenses),
                    citation=entry.citation,
                )
            )
    return found


def _in_words(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())
