"""Enters the studies of contested certificates (`bench.studies.refutation`) into a run's ledger."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.contracts.norms import NormName
from bench.contracts.source import Sources
from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.ledger.entries import StudyEntry
from bench.ledger.files import write_study
from bench.ledger.manifest_file import load_manifest, write_manifest
from bench.ledger.schema import ledger_dir
from bench.studies.catalog import state_of
from bench.studies.refutation import DRAWS, KIND, SCHEMA, contested, errors_on
from bench.studies.study import records
from bench.training.loading import LoadedDefense


def put_to_test(
    run: Path,
    defenses: Mapping[str, LoadedDefense],
    dataset: Dataset,
    seed: int,
    device: torch.device,
    provenance: Mapping[str, Any],
) -> None:
    """Tests the contested certificates of all randomized defenses of a run and enters the results into its ledger."""
    manifest = load_manifest(run)
    entries = []
    for name, loaded in defenses.items():
        if not loaded.card.randomized:
            continue
        for norm in manifest.thresholds:
            rows = contested(run, name, norm)
            if len(rows):
                study = _study(name, loaded, norm, rows, dataset, seed)
                if not (ledger_dir(run) / study.file()).exists():
                    _measure(run, study, loaded, rows, dataset, device, provenance)
                entries.append(StudyEntry.of(study))
    tested = manifest.with_studies(KIND, entries)
    if tested != manifest:
        write_manifest(run, tested)


def _study(name: str, loaded: LoadedDefense, norm: NormName, rows: pd.DataFrame, dataset: Dataset, seed: int) -> Study:
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
        state={**state_of(Sources().closure(errors_on.__module__), loaded, dataset), "contested": digest},
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
        SCHEMA,
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
    write_study(ledger_dir(run) / study.file(), frame, SCHEMA, facts, None)
