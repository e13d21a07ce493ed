"""The facts of a norm."""

from __future__ import annotations

from reports.evidence.randomized import bounded_cells, protocol_names
from reports.evidence.signs import Signs
from reports.measures.facts import NormFacts
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
        sweeps=sweeps(attacks.rows, {attack.name: attack for attack in run.manifest.attacks}, run.defenses),
        bounds=run.brackets(attacks.norm),
        distances=attacks.distances,
        records={
            row.label: {name: own for name in row.cells if (own := attacks.records_of(row, name)) is not None}
            for row in attacks.rows
            if row.cells
        },
    )
