"""Measures a run: walks its records once, and returns every number that a report shows."""

from __future__ import annotations

from collections.abc import Sequence

from reports.evidence.claims import warm_claims
from reports.evidence.masking import evidence
from reports.evidence.problems import problems
from reports.evidence.signs import signs_of
from reports.measures.attacks import attack_numbers
from reports.measures.norms import norm_facts
from reports.measures.numbers import Numbers
from reports.measures.settings import attack_facts, defense_facts
from reports.measures.studies import bound_numbers, detection_numbers, distal_numbers
from reports.measures.together import clean_numbers, together_numbers
from reports.runs.run import Run


def measure(run: Run, *, baseline: str | None = None, papers: Sequence[str] = ()) -> Numbers:
    """Returns the numbers of a run.

    Args:
        run: the run.
        baseline: a defense that all others are compared with.
        papers: the papers whose numbers are to be shown beside the run's.
    """
    found = list(evidence(run))
    signs = signs_of(found)
    norms = {norm: norm_facts(run, attacks, signs, baseline) for norm, attacks in run.in_norms.items()}
    rows = clean_numbers("", run.defenses, run.clean_distances, signs)
    for norm, attacks in run.in_norms.items():
        facts = norms[norm]
        rows += clean_numbers(norm, facts.defenses, run.clean_distances, signs)
        rows += attack_numbers(attacks, facts, signs)
        rows += together_numbers(attacks, facts, signs)
        rows += bound_numbers(norm, run.defenses, facts.bounds, signs)
    rows += distal_numbers(run.defenses, run.study_records("distal"))
    rows += detection_numbers(run.study_records("detection"), run.manifest.thresholds)
    return Numbers(
        rows=rows,
        norms=norms,
        dataset=run.dataset,
        matrix=run.manifest.matrix,
        samples=len(run.samples),
        records=len(run.records),
        cells=len(run.manifest.cells),
        chosen=run.chosen,
        defenses=defense_facts(run),
        attacks=attack_facts(run),
        attack_names=[attack.name for attack in run.manifest.attacks],
        evidence=found,
        warm=warm_claims(run),
        problems=problems(run),
        baseline=baseline,
        papers=papers,
        resubmissions=run.manifest.resubmissions,
        provenance=run.manifest.provenance,
    )
