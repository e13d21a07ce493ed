"""Problems that keep a run's numbers from being final.

They are cells and studies that have not run or failed, and certificates that are wrong.
"""

from __future__ import annotations

from collections import Counter

from bench.ledger.schema import Status
from reports.runs.gaps import problem_of
from reports.runs.labels import NORM_LABELS
from reports.runs.run import Run


def problems(run: Run) -> list[str]:
    """Returns one line for each cell or study that has not run or has samples without a valid result."""
    of_cells = [
        f"{defense}, {NORM_LABELS[norm]}: {row.label} {problem}"
        for norm, attacks in run.in_norms.items()
        for defense in run.defenses
        for row in attacks.rows
        if (problem := problem_of(attacks, row, defense))
    ]
    return [*of_cells, *_study_problems(run)]


def _study_problems(run: Run) -> list[str]:
    lines = []
    for study in run.manifest.studies:
        records = run.study_records(study.kind)
        own = records[records["cell"] == study.id] if len(records) else records
        norm = f", {NORM_LABELS[study.norm]}" if study.norm else ""
        place = f"{study.defense}{norm}: {study.kind.replace('_', ' ')}"
        if own.empty:
            lines.append(f"{place} not run yet")
            continue
        failed = own.loc[own["status"] == Status.FAILED, "reason"].tolist()
        lines += [f"{place} failed: {reason} ({count}/{len(own)})" for reason, count in Counter(failed).items()]
    return lines


def refuted_certificates(run: Run) -> list[str]:
    """Returns one line for each defense and norm with a refuted certificate (`statistics.brackets`)."""
    lines = []
    for norm in run.norms:
        known = run.brackets(norm)
        if known.empty:
            continue
        wrong = known[known["refuted"] & known["certificate"].astype(bool)]
        for defense, own in wrong.groupby("defense", sort=False):
            first = own.iloc[0]
            lines.append(
                f"{defense}, {NORM_LABELS[norm]}: {len(own)} certificates exceed found adversarials "
                f"(sample {first['sample']}: {first['lower_bound']:.4g} against {first['distance']:.4g})"
            )
    return lines
