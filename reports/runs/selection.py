"""Runs made from other runs: some attacks and norms of one run, or several runs combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bench.contracts.errors import UserError, unknown
from bench.ledger.entries import WorkEntry
from bench.ledger.manifest import combined as combined_manifest
from reports.runs.run import Run


def selected(run: Run, norms: Sequence[str] | None = None, attacks: Sequence[str] | None = None) -> Run:
    """Returns the run restricted to some norms and attacks.

    An attack's name without a variant selects all its variants.

    Raises:
        UserError: for a norm or an attack that the run does not have.
    """
    labels = [attack.name for attack in run.manifest.attacks]
    for norm in norms or ():
        if norm not in run.norms:
            raise unknown("norm", norm, run.norms, "--norm")
    for name in attacks or ():
        if not any(_is(label, name) for label in labels):
            raise unknown("attack", name, labels, "--attacks")
    kept = tuple(label for label in labels if attacks is None or any(_is(label, name) for name in attacks))
    manifest = run.manifest.selected([norm for norm in run.norms if norms is None or norm in norms], kept)
    return replace(
        run,
        manifest=manifest,
        records=_of(run.records, manifest.cells),
        studies={kind: _of(records, manifest.studies) for kind, records in run.studies.items()},
        chosen=run.chosen if attacks is None else kept,
    )


def combined(runs: Sequence[Run]) -> Run:
    """Combines runs on the same images into one, with the defenses and attacks of all.

    Raises:
        UserError: when the runs have different images, or their manifests cannot be combined
            (`bench.ledger.manifest.combined`).
    """
    first, *others = runs
    manifest = combined_manifest([run.manifest for run in runs])
    if not all(np.array_equal(first.clean, other.clean) for other in others):
        raise UserError("the runs are on different images, although of the same samples")
    owners = {work.id: run for run in reversed(runs) for work in run.manifest.works}
    kinds = dict.fromkeys(kind for run in runs for kind in run.studies)
    return Run(
        records=_distinct([run.records for run in runs]),
        manifest=manifest,
        clean=first.clean,
        adversarials=lambda cell: owners[cell].adversarials(cell),
        studies={kind: _distinct([run.study_records(kind) for run in runs]) for kind in kinds},
        study_images=lambda study: owners[study].study_images(study),
    )


def _is(label: str, name: str) -> bool:
    return name in (label, label.partition(":")[0])


def _of(records: pd.DataFrame, works: Sequence[WorkEntry]) -> pd.DataFrame:
    """Returns the records of some cells or studies."""
    return records[records["cell"].isin([work.id for work in works])] if len(records) else records


def _distinct(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenates frames of records; a cell that several frames have counts once."""
    seen: set[str] = set()
    own = []
    for frame in frames:
        if len(frame):
            own.append(frame[~frame["cell"].isin(seen)])
            seen |= set(frame["cell"])
    return pd.concat(own, ignore_index=True) if own else frames[0]
