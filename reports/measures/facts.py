"""Facts of a run that its tables state besides numbers: norms, attacks with their settings, and defenses."""

from __future__ import annotations

from collections.abc import Mapping

from reports.evidence.randomized import bounded_cells, protocol_names
from reports.measures.attacks import Signs
from reports.measures.numbers import AttackFacts, DefenseFacts, NormFacts
from reports.measures.pairs import Comparisons
from reports.measures.sweeps import sweeps
from reports.runs.gaps import gaps_of
from reports.runs.norm_run import NormRun
from reports.runs.run import Run


def norm_facts(run: Run, attacks: NormRun, signs: Signs, baseline: str | None) -> NormFacts:
    """Returns the facts of one norm.

    Args:
        run: the run.
        attacks: the run in the norm.
        signs: the doubts of the run.
        baseline: a defense that all others are compared with.
    """
    defenses, several = attacks.defenses, len(attacks.defenses) > 1
    gaps = {defense: gaps_of(attacks, defense) for defense in defenses}
    planned = {
        name: frozenset(row.attack.partition(":")[0] for row in attacks.rows if row.concerns(name)) for name in defenses
    }
    minimized = {
        name
        for row in attacks.rows
        if row.epsilon is None
        for name in defenses
        if attacks.records_of(row, name) is not None
    }
    distances = attacks.smallest.pivot(index="sample", columns="defense", values="distance")
    compared = Comparisons(
        distances=distances.reindex(columns=list(defenses)),
        threshold=attacks.threshold,
        samples=len(run.samples),
        doubts={name: signs.get((name, attacks.norm, None), ()) for name in defenses},
        incomplete={name for name in defenses if gaps[name]},
        planned=planned,
        minimized=minimized,
    )
    alphas = [alpha for name in run.randomized for alpha in bounded_cells(attacks, name)]
    return NormFacts(
        norm=attacks.norm,
        threshold=attacks.threshold,
        defenses=defenses,
        rows=attacks.rows,
        minimized=minimized,
        planned=planned,
        gaps=gaps,
        alpha=max(alphas, default=None),
        protocols=protocol_names(attacks),
        equality=compared.equality() if several else None,
        pairs=compared.pairs(),
        against_baseline=compared.against(baseline) if baseline is not None and baseline in defenses else [],
        sweeps=sweeps(attacks.rows, {entry["name"]: entry for entry in run.attack_entries}, run.defenses),
        bounds=run.brackets(attacks.norm),
        distances=attacks.distances,
        records={
            row.label: {name: own for name in row.cells if (own := attacks.records_of(row, name)) is not None}
            for row in attacks.rows
            if row.cells
        },
    )


def defense_facts(run: Run) -> list[DefenseFacts]:
    """Returns the defenses, in the run's order."""
    return [
        DefenseFacts(
            name=entry["name"],
            randomized=entry["randomized"],
            parameters=_in_words(entry.get("parameters", {})),
            citation=entry["citation"],
            family=entry.get("family") or "",
            parts=tuple(entry.get("parts") or ()),
        )
        for entry in run.defense_entries
    ]


def attack_facts(run: Run) -> list[AttackFacts]:
    """Returns the attacks with each of their settings, in the run's order."""
    settings: dict[tuple[str, str, int], set[str]] = {}
    for cell in run.cell_entries:
        key = (cell["attack"], _in_words(cell["parameters"]), cell["budget"])
        settings.setdefault(key, set()).add(cell["defense"])
    found: list[AttackFacts] = []
    for entry in run.attack_entries:
        own = [(key, defenses) for key, defenses in settings.items() if key[0] == entry["name"]]
        for (name, parameters, budget), defenses in own:
            found.append(
                AttackFacts(
                    name=name,
                    norms=tuple(entry["norms"]),
                    kind=entry["kind"],
                    access=entry["access"],
                    budget=budget,
                    parameters=parameters,
                    against=() if len(own) == 1 else tuple(name for name in run.defenses if name in defenses),
                    citation=entry["citation"],
                )
            )
    return found


def _in_words(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())
