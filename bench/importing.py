"""Adversarials from outside: anyone may hand in candidates; the engine judges them as it does an attack's."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cells import Cell
from bench.contract import examined
from bench.datasets import Dataset, load_dataset
from bench.engine import CellResult, run_cell
from bench.errors import UserError, unknown
from bench.ledger import ledger_dir, load_manifest, write_cell, write_manifest
from bench.loading import LoadedDefense, load_trained
from bench.norms import Norm
from bench.oracle import Oracle
from bench.provenance import provenance
from bench.registry import Registry


@dataclass(frozen=True)
class Candidates:
    """What a file holds.

    Attributes:
        label: what the ledger calls the attack: ``imported:``, the file's name and the beginning of its digest.
        images: by the sample's index in the test set, (C, H, W) float32.
        digest: of the file's content.
    """

    label: str
    images: dict[int, Tensor]
    digest: str


def read_candidates(path: Path, dataset: Dataset, samples: int) -> Candidates:
    """Reads a file of NumPy arrays (npz): ``adversarials`` (N, C, H, W), numbers in [0, 1], and ``samples`` (N,), their
    indices in the test set, which without that array are 0 to N - 1. Those beyond the run's samples are left out.

    Raises:
        UserError: when the file is missing, no such file, or its arrays do not fit the dataset.
    """
    try:
        with zipfile.ZipFile(path):  # np.load takes other files too
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # whatever is wrong with the file, zip, zlib and NumPy have errors of their own for it
        raise UserError(f"{path}: not an npz file of plain arrays ({type(error).__name__}: {error})") from None
    if "adversarials" not in arrays:
        raise UserError(f"{path}: has no array 'adversarials', but {', '.join(arrays) or 'none at all'}")
    images = arrays["adversarials"]
    if images.shape[1:] != dataset.shape or not np.issubdtype(images.dtype, np.floating):
        wanted = f"floats (N, {', '.join(map(str, dataset.shape))})"
        raise UserError(f"{path}: adversarials are {images.dtype} {images.shape}; {dataset.name} needs {wanted}")
    indices = arrays.get("samples", np.arange(len(images)))
    available = len(dataset.test.labels)
    if indices.shape != (len(images),) or not np.issubdtype(indices.dtype, np.integer):
        found = f"{indices.dtype} {indices.shape}"
        raise UserError(f"{path}: samples are {found}; one integer for each adversarial is needed")
    if len(set(indices.tolist())) < len(indices):
        raise UserError(f"{path}: samples holds an index twice")
    if len(indices) and not 0 <= indices.min() <= indices.max() < available:
        ends = f"from {indices.min()} to {indices.max()}"
        raise UserError(f"{path}: samples go {ends}; the test set has {available} images")
    known = {i: torch.from_numpy(x.astype(np.float32)) for i, x in zip(indices.tolist(), images, strict=True)}
    stem = re.sub(r"[^a-z0-9_]+", "_", path.stem.lower())
    digest = hashlib.sha256(images.tobytes() + indices.tobytes()).hexdigest()[:16]
    return Candidates(f"imported:{stem}_{digest[:6]}", {i: x for i, x in known.items() if i < samples}, digest)


def import_adversarials(
    path: Path,
    run: Path,
    defense: str,
    dataset: str,
    *,
    data_dir: Path | None,
    device: torch.device,
    plugins: Sequence[str | Path] = (),
) -> dict[Norm, CellResult]:
    """Judges the candidates of a file in every norm of a run and enters them into its ledger as an attack; returns the
    results by norm. A sample without a candidate counts as not found.

    Raises:
        UserError: when there is no such run, it does not have the dataset or the defense or was made with other
            weights, or the file does not fit.
    """
    manifest = load_manifest(run)
    if manifest["dataset"]["name"] != dataset:
        raise UserError(f"--dataset {dataset}: run {run} is on {manifest['dataset']['name']}")
    entries = {entry["name"]: entry for entry in manifest["defenses"]}
    if defense not in entries:
        raise unknown("defense", defense, entries, f"run {run}")
    variants = {name: (entry["plugin"], entry["set"]) for name, entry in entries.items() if entry.get("plugin")}
    data = load_dataset(dataset, data_dir)
    samples = len(manifest["samples"])
    candidates = read_candidates(path, data, samples)
    loaded = load_trained(defense, data, Registry(plugins, variants), manifest["seed"], device)
    if entries[defense].get("weights") != loaded.fingerprint:
        raise UserError(f"run {run} was made with other weights of {defense}; repeat the assay run that made it first")
    origin = provenance(str(device), manifest["seed"])
    results, cells = {}, []
    for norm in manifest["thresholds"]:
        cell = _cell(candidates, loaded, data, norm, samples, manifest["seed"])
        results[norm] = _judged(cell, candidates, loaded, data, device)
        facts = {**origin, "parameters": cell.parameters, "file": path.name, "state": cell.state}
        write_cell(ledger_dir(run) / cell.file, results[norm].records, results[norm].adversarials, facts)
        cells.append(cell)
    write_manifest(run, _with(manifest, cells))
    return results


def still_valid(
    entries: Sequence[Mapping[str, Any]], defenses: Mapping[str, LoadedDefense], data: Dataset, samples: int
) -> list[Any]:
    """The imported cells of a manifest that are about the same images, defenses and weights as a run is now."""
    current = {name: _state(loaded, data, samples) for name, loaded in defenses.items()}
    return [entry for entry in entries if entry["imported"] == current.get(entry["defense"])]


def attack_entries(cells: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What a manifest says of the attacks of imported cells."""
    norms: dict[str, list[str]] = {}
    for cell in cells:
        of_label = norms.setdefault(cell["attack"], [])
        of_label += [cell["norm"]] if cell["norm"] not in of_label else []
    return [
        {
            "name": label,
            "norms": of_label,
            "kind": "minimal",
            "access": "imported",
            "parameters": {},
            "budget": 1,
            "citation": "",
        }
        for label, of_label in norms.items()
    ]


def _state(loaded: LoadedDefense, data: Dataset, samples: int) -> dict[str, str]:
    return {**loaded.state(data), "samples": str(samples)}


def _cell(candidates: Candidates, loaded: LoadedDefense, data: Dataset, norm: Norm, samples: int, seed: int) -> Cell:
    return Cell(
        dataset=data.name,
        defense=loaded.card.name,
        attack=candidates.label,
        function="imported",
        norm=norm,
        epsilon=None,
        access="decision",
        parameters={},
        budget=1,
        seed=seed,
        samples=samples,
        chunk=loaded.card.batch_size,
        batch_size=loaded.card.batch_size,
        timeout=None,
        state={**_state(loaded, data, samples), "attack": candidates.digest},
    )


def _judged(
    cell: Cell, candidates: Candidates, loaded: LoadedDefense, data: Dataset, device: torch.device
) -> CellResult:
    """The engine's result for an "attack" that hands out the candidates."""
    # What an attack sees of a sample is its image.
    own = {data.test.images[i].numpy().tobytes(): x for i, x in candidates.images.items()}

    def imported(oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([own.get(image.cpu().numpy().tobytes(), image).to(x) for image in x])

    remarks = examined(loaded.defense, data, device)
    result = run_cell(cell, loaded.defense, imported, data, device, remarks=remarks)
    records = result.records
    absent = records["reason"].eq("unperturbed")
    records.loc[absent, ["status", "reason"]] = ["not_found", ""]
    records.loc[absent, ["l0", "l2", "linf"]] = np.inf
    return result


def _with(manifest: dict[str, Any], cells: list[Cell]) -> dict[str, Any]:
    """The manifest with imported cells, which it also lists apart: those that a run has no use for now stay there."""
    entries = [
        {
            "id": cell.id,
            "defense": cell.defense,
            "attack": cell.attack,
            "norm": cell.norm,
            "epsilon": None,
            "file": cell.file,
            "parameters": {},
            "budget": 1,
            "imported": {key: value for key, value in cell.state.items() if key != "attack"},
        }
        for cell in cells
    ]
    new = [entry for entry in entries if entry["id"] not in {cell["id"] for cell in manifest["cells"]}]
    known = [entry for entry in manifest.get("imported", []) if entry["id"] not in {cell.id for cell in cells}]
    labels = {attack["name"] for attack in manifest["attacks"]}
    attacks = [attack for attack in attack_entries(new) if attack["name"] not in labels]
    return {
        **manifest,
        "attacks": [*manifest["attacks"], *attacks],
        "cells": [*manifest["cells"], *new],
        "imported": [*known, *entries],
    }
