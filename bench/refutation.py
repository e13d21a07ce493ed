"""Puts contested certificates to the test: those within which a run has an adversarial of a randomized defense.

The adversarial was selected among many, on the draws that accepted it. So the certificate is tested on draws of its own
after all cells have run. `reports.statistics` corrects for the number of images tested.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bench.ballot import Ballot
from bench.datasets import Dataset
from bench.ledger import (
    ledger_dir,
    load_adversarials,
    load_ledger,
    load_manifest,
    load_studies,
    write_manifest,
    write_study,
)
from bench.norms import Norm
from bench.protocols import Defense
from bench.studies import ENTRY, Study, records, schema, state_of
from bench.verdicts import each_draw

if TYPE_CHECKING:  # see `bench.studies`
    from bench.loading import LoadedDefense

KIND = "refutation"
DRAWS = 400
"""On each contested image."""
ROUNDING = 1e-6
"""How far an adversarial may lie within a lower bound, relative to it, before it contests the bound."""
SCHEMA = schema(
    ("lower_bound", pa.float64()), ("distance", pa.float64()), ("errors", pa.int64()), ("draws", pa.int64())
)
"""One record per contested image: the certified distance, that of the nearest adversarial, and how many of the draws
misclassify it. ``status`` is ``tested``."""


def contested(run: Path, defense: str, norm: Norm) -> pd.DataFrame:
    """The nearest adversarials of a run that lie within a certificate: ``sample``, ``label``, ``lower_bound``,
    ``distance``, and the ``cell`` that found each; ordered by sample."""
    bounds, found = load_studies(run, "lower_bound"), load_ledger(run)
    if bounds.empty:
        return bounds
    certified = bounds[bounds["certificate"].astype(bool) & bounds["status"].eq("bound")]
    own = certified[certified["defense"].eq(defense) & certified["norm"].eq(norm)][["sample", "lower_bound"]]
    broken = found[found["broken"] & found["defense"].eq(defense) & found["norm"].eq(norm)]
    broken = broken.assign(distance=broken[norm.lower()]).sort_values(["distance", "cell"], kind="stable")
    nearest = broken.groupby("sample", as_index=False)[["label", "distance", "cell"]].first()
    both = own.merge(nearest, on="sample")
    return both[both["distance"] < both["lower_bound"] * (1 - ROUNDING)].sort_values("sample").reset_index(drop=True)


def put_to_test(
    run: Path,
    defenses: Mapping[str, LoadedDefense],
    dataset: Dataset,
    seed: int,
    device: torch.device,
    provenance: Mapping[str, Any],
) -> None:
    """Tests the contested certificates of all randomized defenses of a run, and enters the results into its ledger."""
    manifest = load_manifest(run)
    entries = []
    for name, loaded in defenses.items():
        if not loaded.card.randomized:
            continue
        for norm in manifest["thresholds"]:
            rows = contested(run, name, norm)
            if len(rows):
                study = _study(name, loaded, norm, rows, dataset, seed)
                if not (ledger_dir(run) / study.file).exists():
                    _measure(run, study, loaded, rows, dataset, device, provenance)
                entries.append({key: getattr(study, key) for key in ENTRY})
    others = [study for study in manifest["studies"] if study["kind"] != KIND]
    if [*others, *entries] != manifest["studies"]:
        write_manifest(run, {**manifest, "studies": [*others, *entries]})


def errors_on(
    run: Path, rows: pd.DataFrame, defense: Defense, classes: int, seed: int, device: torch.device
) -> NDArray[np.int64]:
    """How many of the draws misclassify each of the `contested` images (N,)."""
    found = {cell: load_adversarials(run, cell) for cell in rows["cell"].unique()}
    images = np.stack([found[cell][sample] for cell, sample in zip(rows["cell"], rows["sample"], strict=True)])
    x, y = torch.from_numpy(images).to(device), torch.tensor(rows["label"].to_numpy(), device=device)
    ballot = Ballot(defense, classes, x, y, rows["sample"].tolist(), seed=seed, purpose="certificate")
    drawn, numbers = each_draw(torch.full((len(x),), DRAWS, device=device))
    return torch.bincount(drawn[ballot(drawn, numbers)], minlength=len(x)).cpu().numpy()


def _study(name: str, loaded: LoadedDefense, norm: Norm, rows: pd.DataFrame, dataset: Dataset, seed: int) -> Study:
    digest = hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]
    return Study(
        kind=KIND,
        dataset=dataset.name,
        defense=name,
        norm=norm,
        epsilon=None,
        seed=seed,
        samples=len(rows),
        batch_size=loaded.card.batch_size,
        timeout=None,
        state={**state_of(KIND, loaded, dataset), "contested": digest},
    )


def _measure(
    run: Path,
    study: Study,
    loaded: LoadedDefense,
    rows: pd.DataFrame,
    dataset: Dataset,
    device: torch.device,
    provenance: Mapping[str, Any],
) -> None:
    started = time.perf_counter()
    errors = errors_on(run, rows, loaded.defense, dataset.classes, study.seed, device)
    frame = records(
        study,
        range(len(rows)),
        status="tested",
        lower_bound=rows["lower_bound"].to_numpy(),
        distance=rows["distance"].to_numpy(),
        errors=errors,
        draws=DRAWS,
        forwards=float(DRAWS),
        seconds=(time.perf_counter() - started) / len(rows),
    )
    frame["sample"] = rows["sample"].to_numpy()
    facts = {**provenance, "batch_size": study.batch_size, "state": study.state}
    write_study(ledger_dir(run) / study.file, frame, SCHEMA, facts, None)
