"""Runs made from other runs: some attacks and norms of one run, or several runs combined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts.errors import UserError, unknown
from reports.runs.run import Run

Place = tuple[str, str, str, float | None]


def selected(run: Run, norms: Sequence[str] | None = None, attacks: Sequence[str] | None = None) -> Run:
    """Returns the run restricted to some norms and attacks.

    An attack's name without a variant selects all its variants.

    Raises:
        UserError: for a norm or an attack that the run does not have.
    """
    manifest = dict(run.manifest)
    labels = [attack["name"] for attack in manifest["attacks"]]
    for norm in norms or ():
        if norm not in run.norms:
            raise unknown("norm", norm, run.norms, "--norm")
    for name in attacks or ():
        if not any(_is(label, name) for label in labels):
            raise unknown("attack", name, labels, "--attacks")
    kept = [label for label in labels if attacks is None or any(_is(label, name) for name in attacks)]
    allowed = run.norms if norms is None else list(norms)
    manifest["thresholds"] = {norm: run.threshold(norm) for norm in run.norms if norm in allowed}
    manifest["attacks"] = [attack for attack in manifest["attacks"] if attack["name"] in kept]
    for key in ("cells", "not_applicable"):
        manifest[key] = [e for e in manifest[key] if e["attack"] in kept and e["norm"] in allowed]
    manifest["studies"] = [s for s in manifest.get("studies", []) if s["norm"] is None or s["norm"] in allowed]
    if attacks is not None:
        manifest["chosen"] = kept
    return replace(
        run,
        manifest=manifest,
        records=_of(run.records, manifest["cells"]),
        studies={kind: _of(records, manifest["studies"]) for kind, records in run.studies.items()},
    )


def combined(runs: Sequence[Run]) -> Run:
    """Combines runs on the same images into one, with the defenses and attacks of all.

    Raises:
        UserError: when the runs have different datasets, images, seeds or thresholds, define a defense differently, or
            measured the same thing in two ways.
    """
    first, *others = runs
    for other in others:
        _check_equal(first, other)
    manifests = [run.manifest for run in runs]
    cells = _once((cell["id"], cell) for manifest in manifests for cell in manifest["cells"])
    places: dict[Place, str] = {}
    for cell in cells:
        place = (cell["defense"], cell["attack"], cell["norm"], cell["epsilon"])
        if places.setdefault(place, cell["id"]) != cell["id"]:
            raise UserError(f"the runs have {cell['defense']} · {cell['attack']} · {cell['norm']} in two ways")
    measured = {place[:3] for place in places}
    missing = [(m["defense"], m["attack"], m["norm"], m) for manifest in manifests for m in manifest["not_applicable"]]
    studies = _once((study["id"], study) for manifest in manifests for study in manifest.get("studies", []))
    twice = Counter((study["defense"], study["kind"], study["norm"]) for study in studies)
    for (defense, kind, norm), count in twice.items():
        if count > 1:
            raise UserError(f"the runs have {' · '.join(filter(None, (defense, kind, norm)))} in two ways")
    owners = {work["id"]: run for run in reversed(runs) for work in _works(run)}
    attacks = _once((attack["name"], attack) for manifest in manifests for attack in manifest["attacks"])
    manifest = {
        **first.manifest,
        "matrix": " + ".join(dict.fromkeys(str(manifest["matrix"]) for manifest in manifests)),
        "thresholds": {norm: value for m in reversed(manifests) for norm, value in m["thresholds"].items()},
        "defenses": _once((d["name"], d) for manifest in manifests for d in manifest["defenses"]),
        "attacks": [_with_all_norms(attack, manifests) for attack in attacks],
        "cells": cells,
        "studies": studies,
        **_fewest_resubmissions(manifests),
        "not_applicable": _once(((*place, ""), m) for *place, m in missing if tuple(place) not in measured),
    }
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


def _of(records: pd.DataFrame, works: Collection[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns the records of some cells or studies."""
    return records[records["cell"].isin([work["id"] for work in works])] if len(records) else records


def _check_equal(first: Run, other: Run) -> None:
    if first.dataset != other.dataset:
        raise UserError(f"the runs are of different datasets: {first.dataset} and {other.dataset}")
    if first.samples != other.samples or not np.array_equal(first.clean, other.clean):
        raise UserError(f"the runs are on different images ({len(first.samples)} and {len(other.samples)} samples)")
    if first.manifest.get("seed") != other.manifest.get("seed"):
        raise UserError(f"the runs have different seeds: {first.manifest.get('seed')} and {other.manifest.get('seed')}")
    known = {defense["name"]: _measured(defense) for defense in first.manifest["defenses"]}
    for defense in other.manifest["defenses"]:
        if known.get(defense["name"], _measured(defense)) != _measured(defense):
            raise UserError(f"the runs have defense {defense['name']!r} with different parameters or weights")
    for norm in set(first.manifest["thresholds"]) & set(other.manifest["thresholds"]):
        if first.threshold(norm) != other.threshold(norm):
            raise UserError(
                f"the runs have different thresholds in {norm}: {first.threshold(norm):g} and {other.threshold(norm):g}"
            )


def _measured(defense: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a defense in a manifest that its numbers depend on."""
    return {key: value for key, value in defense.items() if key not in ("citation", "unrolled", "family", "parts")}


def _with_all_norms(attack: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns an attack with the norms of all runs that have it."""
    norms = [norm for m in manifests for own in m["attacks"] if own["name"] == attack["name"] for norm in own["norms"]]
    return {**attack, "norms": list(dict.fromkeys(norms))}


def _fewest_resubmissions(manifests: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the smallest number of resubmissions, because the draws of every run suffice for it.

    Runs before version 3 have none.
    """
    known = [manifest["resubmissions"] for manifest in manifests if "resubmissions" in manifest]
    return {"resubmissions": min(known)} if known else {}


def _works(run: Run) -> list[Mapping[str, Any]]:
    return [*run.manifest["cells"], *run.manifest.get("studies", [])]


def _once(pairs: Any) -> list[Any]:
    """Returns the first value of each key, in order."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return list(found.values())


def _distinct(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenates frames of records; a cell that several frames have counts once."""
    seen: set[str] = set()
    own = []
    for frame in frames:
        if len(frame):
            own.append(frame[~frame["cell"].isin(seen)])
            seen |= set(frame["cell"])
    return pd.concat(own, ignore_index=True) if own else frames[0]
