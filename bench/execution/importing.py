"""Imports candidates from outside. The engine judges them like the candidates of an attack.

The author of an import may know all earlier verdicts. Therefore each import to a randomized defense is judged on draws
with a fresh key. The imports k = 1, 2, ... to the same defense and sample spend a share of 6 / (pi k)^2 of alpha each.
The same file imported again keeps its key and its verdict.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.conformance.examination import examined
from bench.contracts.errors import UserError, unknown
from bench.contracts.norms import NormName
from bench.contracts.work import ALPHA, SCHEMA_VERSION, Cell, Judging
from bench.datasets.dataset import Dataset, load_dataset
from bench.engine.cell import CellResult, run_cell
from bench.engine.oracle import DefenseOracle
from bench.ledger.files import read_provenance, write_cell
from bench.ledger.manifest import is_finished, load_manifest, write_manifest
from bench.ledger.provenance import provenance
from bench.ledger.schema import DISTANCES, Status, ledger_dir
from bench.planning.imported import state_of_import
from bench.planning.staleness import answers, difference
from bench.plugins.registry import Registry
from bench.training.loading import LoadedDefense, load_trained


@dataclass(frozen=True)
class Candidates:
    """The candidates of a file.

    Attributes:
        label: name of the attack in the ledger: ``imported:``, the file's name and the first digits of its digest.
        images: images (C, H, W) float32, by the sample's index in the test set.
        digest: digest of the file's arrays.
        stretched: True if the candidates are also post-processed and moved outward, like an attack's.
    """

    label: str
    images: dict[int, Tensor]
    digest: str
    stretched: bool = False


def read_candidates(path: Path, dataset: Dataset, samples: int, *, stretched: bool = False) -> Candidates:
    """Reads candidates from a file of NumPy arrays (npz).

    ``adversarials`` (N, C, H, W) holds floats in [0, 1]. ``samples`` (N,) holds integer indices in the test set. The
    default is 0 to N - 1. Candidates beyond the run's samples are left out.

    Raises:
        UserError: when the file is missing or not an npz file, or when its arrays do not fit the dataset.
    """
    try:
        with zipfile.ZipFile(path):  # np.load accepts other files, too
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # zipfile, zlib and NumPy each raise their own errors on a broken file
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
    label = f"imported:{stem}_{digest[:6]}" + ("_stretched" if stretched else "")
    return Candidates(label, {i: x for i, x in known.items() if i < samples}, digest, stretched)


def range_seen(candidates: Candidates) -> str:
    """Returns the range of the candidates' values as text, with a hint if values lie outside [0, 1]."""
    values = torch.stack(list(candidates.images.values()))
    if not torch.isfinite(values).all():
        return "some values are not finite"
    low, high = float(values.min()), float(values.max())
    if low >= 0 and 2 < high <= 255:
        hint = "; divide by 255?"
    elif low < 0 or high > 1:
        hint = "; undo the normalization?"
    else:
        hint = ""
    return f"values from {low:.3g} to {high:.3g}, allowed are 0 to 1{hint}"


def import_adversarials(
    path: Path,
    run: Path,
    defense: str,
    dataset: str,
    *,
    data_dir: Path | None,
    device: torch.device,
    plugins: Sequence[str | Path] = (),
    stretch: bool = False,
) -> tuple[Candidates, dict[NormName, CellResult]]:
    """Judges the candidates of a file in every norm of a run and enters them into its ledger as an attack.

    Returns the candidates, and the results by norm. A sample without a candidate counts as not found. Candidates are
    judged unmodified. With ``stretch``, they are also judged post-processed and moved outward. If a modified
    candidate is recorded, the record's reason is ``stretched``.

    Raises:
        UserError: when the run does not exist, lacks the dataset or the defense, or has another schema version; when
            the defense has other weights or answers than in the run; or when the file does not fit.
    """
    manifest = load_manifest(run)
    if manifest["schema"] != SCHEMA_VERSION:
        raise UserError(
            f"run {run}: schema version {manifest['schema']}; run its matrix again before importing into it"
        )
    if manifest["dataset"]["name"] != dataset:
        raise UserError(f"--dataset {dataset}: run {run} is on {manifest['dataset']['name']}")
    entries = {entry["name"]: entry for entry in manifest["defenses"]}
    if defense not in entries:
        raise unknown("defense", defense, entries, f"run {run}")
    variants = {name: (entry["plugin"], entry["set"]) for name, entry in entries.items() if entry.get("plugin")}
    data = load_dataset(dataset, data_dir)
    samples = len(manifest["samples"])
    candidates = read_candidates(path, data, samples, stretched=stretch)
    loaded = load_trained(defense, data, Registry(plugins, variants), manifest["seed"], device)
    if entries[defense].get("weights") != loaded.fingerprint:
        raise UserError(f"run {run} was made with other weights of {defense}; repeat the assay run that made it first")
    logits = answers(loaded.defense, data, device)
    for entry in manifest["cells"]:
        file = ledger_dir(run) / entry["file"]
        before = read_provenance(file).get("logits", {}) if file.exists() else {}
        if defense in before:
            found = difference(before[defense], logits)
            if found:
                raise UserError(
                    f"run {run} was made when {defense} gave other logits ({found}); repeat the assay run that made it "
                    "first"
                )
    origin = provenance(str(device), manifest["seed"])
    results, cells = {}, []
    state = {**state_of_import(loaded, data, samples), "attack": candidates.digest}
    turn = _turn(manifest, candidates, defense, state) if loaded.card.randomized else None
    if turn is not None and turn not in manifest.get("turns", []):
        # Written before judging, because an interrupted import must count as a turn.
        manifest = {**manifest, "turns": [*manifest.get("turns", []), turn]}
        write_manifest(run, manifest, finished=is_finished(run, manifest))
    for norm, threshold in manifest["thresholds"].items():
        judging = None
        if turn is not None:
            judging = Judging(tuple(turn["alpha"]), manifest["estimation_draws"], threshold, turn["seed"])
        cell = _cell(candidates, loaded, data, norm, samples, manifest["seed"], state, judging)
        results[norm] = _judged(cell, candidates, loaded, data, device)
        facts = {
            **origin,
            "parameters": cell.parameters,
            "file": path.name,
            "judging": judging and asdict(judging),
            "state": cell.state,
            "logits": {defense: logits},
        }
        path_of_cell = ledger_dir(run) / cell.file
        write_cell(path_of_cell, results[norm].records, results[norm].adversarials, facts, results[norm].likeliest)
        cells.append(cell)
    entered = _with(manifest, cells, sorted(candidates.images))
    write_manifest(run, entered, finished=is_finished(run, entered))
    return candidates, results


def attack_entries(cells: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns the manifest's entries of the attacks of imported cells."""
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


def _turn(
    manifest: Mapping[str, Any], candidates: Candidates, defense: str, state: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the key and the shares of alpha of an import to a randomized defense, as the manifest stores them.

    An earlier import of the same file and state is reused.
    """
    turns = [turn for turn in manifest.get("turns", []) if turn["defense"] == defense]
    for turn in turns:
        if turn["attack"] == candidates.label and turn["state"] == state:
            return dict(turn)
    earlier = Counter(sample for turn in turns for sample in turn["samples"])
    shares = [6 / (math.pi * (1 + earlier[i])) ** 2 for i in range(len(manifest["samples"]))]
    return {
        "defense": defense,
        "attack": candidates.label,
        "state": state,
        "samples": sorted(candidates.images),
        "seed": secrets.randbits(63),
        "alpha": [ALPHA * share for share in shares],
    }


def _cell(
    candidates: Candidates,
    loaded: LoadedDefense,
    data: Dataset,
    norm: NormName,
    samples: int,
    seed: int,
    state: dict[str, str],
    judging: Judging | None,
) -> Cell:
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
        state=state,
        judging=judging,
        as_it_is=not candidates.stretched,
    )


def _judged(
    cell: Cell, candidates: Candidates, loaded: LoadedDefense, data: Dataset, device: torch.device
) -> CellResult:
    """Returns the engine's result for an "attack" that returns the candidates."""
    # An attack identifies a sample by its image alone, and the dataset may contain an image twice.
    own: dict[bytes, list[Tensor]] = {}
    for i, candidate in candidates.images.items():
        own.setdefault(data.test.images[i].numpy().tobytes(), []).append(candidate)
    most = max(map(len, own.values()), default=1)

    def imported(oracle: DefenseOracle, x: Tensor, y: Tensor) -> Tensor:
        rows = [[each.to(x) for each in own.get(image.cpu().numpy().tobytes(), [])] for image in x]
        return torch.stack(
            [torch.stack(row + [image] * (most - len(row))) for row, image in zip(rows, x, strict=True)], 1
        )

    remarks = examined(loaded.defense, data, device)
    result = run_cell(cell, loaded.defense, imported, data, device, remarks=remarks)
    records = result.records
    absent = records["reason"].eq("unperturbed")
    records.loc[absent, ["status", "reason"]] = [Status.NOT_FOUND, ""]
    records.loc[absent, [*DISTANCES]] = np.inf
    found = records.index[records["status"].eq(Status.FOUND)]
    handed_in = [image.numpy() for image in candidates.images.values()]
    moved = [i for i in found if not any(np.array_equal(result.adversarials[i], image) for image in handed_in)]
    records.loc[moved, "reason"] = "stretched"
    return result


def _with(manifest: dict[str, Any], cells: list[Cell], samples: list[int]) -> dict[str, Any]:
    """Returns the manifest with imported cells that have candidates for these samples.

    The manifest also lists the imported cells separately. Cells that the run does not use now remain in that list.
    """
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
            "alpha": cell.judging and ALPHA,
            "estimation_draws": cell.judging and cell.judging.estimation_draws,
            "imported": {key: value for key, value in cell.state.items() if key != "attack"},
            "judging": cell.judging and asdict(cell.judging),
            "samples": samples,
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
