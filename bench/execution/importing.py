"""Imports candidates from outside. The engine judges them like the candidates of an attack.

The author of an import may know all earlier verdicts. Therefore each import to a randomized defense is judged on draws
with a fresh key. The imports k = 1, 2, ... to the same defense and sample spend a share of 6 / (pi k)^2 of alpha each.
The same file imported again keeps its key and its verdict.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.conformance.examination import examined
from bench.contracts.errors import UserError, unknown
from bench.contracts.norms import NormName
from bench.contracts.work import ALPHA, SCHEMA_VERSION, Cell, Judging
from bench.datasets.dataset import Dataset, load_dataset
from bench.engine.cell import Adversary, CellResult, Target, run_cell
from bench.engine.oracle import DefenseOracle
from bench.execution.candidate_files import Candidates, read_candidates
from bench.ledger.entries import CellEntry, Turn
from bench.ledger.files import read_provenance, write_cell
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import is_finished, load_manifest, write_manifest
from bench.ledger.provenance import provenance
from bench.ledger.schema import DISTANCES, Status, ledger_dir
from bench.planning.imported import state_of_import
from bench.planning.staleness import Answers, answers, difference
from bench.plugins.registry import Registry
from bench.training.loading import LoadedDefense, load_trained


@dataclass(frozen=True)
class Host:
    """The run that candidates are entered into, with one of its defenses as it answers now.

    Attributes:
        logits: the defense's logits on the fixed images (`bench.planning.staleness.answers`).
    """

    run: Path
    manifest: Manifest
    data: Dataset
    loaded: LoadedDefense
    logits: Answers
    device: torch.device

    @property
    def defense(self) -> str:
        """The defense's name or label."""
        return self.loaded.card.name


def host_of(
    run: Path,
    defense: str,
    dataset: str,
    *,
    data_dir: Path | None,
    device: torch.device,
    plugins: Sequence[str | Path] = (),
) -> Host:
    """Loads a run and one of its defenses.

    Raises:
        UserError: when the run does not exist, lacks the dataset or the defense, or has another schema version; or when
            the defense has other weights or answers than in the run.
    """
    manifest = load_manifest(run)
    if manifest.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"run {run}: schema version {manifest.schema_version}; run its matrix again before importing into it"
        )
    if manifest.dataset.name != dataset:
        raise UserError(f"--dataset {dataset}: run {run} is on {manifest.dataset.name}")
    names = [entry.name for entry in manifest.defenses]
    if defense not in names:
        raise unknown("defense", defense, names, f"run {run}")
    data = load_dataset(dataset, data_dir)
    loaded = load_trained(defense, data, Registry(plugins, manifest.variants), manifest.seed, device)
    if manifest.defense(defense).weights != loaded.fingerprint:
        raise UserError(f"run {run} was made with other weights of {defense}; repeat the assay run that made it first")
    logits = answers(loaded.defense, data, device)
    for file in (ledger_dir(run) / file for entry in manifest.cells for file in entry.files):
        before = read_provenance(file).get("logits", {}) if file.exists() else {}
        if defense in before and (found := difference(before[defense], logits)):
            raise UserError(
                f"run {run} was made when {defense} gave other logits ({found}); repeat its assay run first"
            )
    return Host(run, manifest, data, loaded, logits, device)


def import_adversarials(
    path: Path, host: Host, *, stretch: bool = False
) -> tuple[Candidates, dict[NormName, CellResult]]:
    """Judges the candidates of a file in every norm of a run and enters them into its ledger as an attack.

    Returns the candidates, and the results by norm. A sample without a candidate counts as not found. Candidates are
    judged unmodified. With ``stretch``, they are also judged post-processed and moved outward. If a modified
    candidate is recorded, the record's reason is ``stretched``.

    Raises:
        UserError: when the file does not fit.
    """
    run, manifest, samples = host.run, host.manifest, host.manifest.samples_of(host.defense)
    candidates = read_candidates(path, host.data, samples, stretched=stretch)
    state = {**state_of_import(host.loaded, host.data, samples), "attack": candidates.digest}
    turn = _turn(manifest, candidates, host.defense, state) if host.loaded.card.randomized else None
    if turn is not None and turn not in manifest.turns:
        # Written before judging, because an interrupted import must count as a turn.
        manifest = manifest.with_turn(turn)
        write_manifest(run, manifest, finished=is_finished(run, manifest))
    origin = provenance(str(host.device), manifest.seed)
    results, cells = {}, []
    for norm, threshold in manifest.thresholds.items():
        judging = None
        if turn is not None:
            judging = Judging(turn.alpha, manifest.estimation_draws, threshold, turn.seed)
        cell = _cell(candidates, host, norm, state, judging)
        result = results[norm] = _judged(cell, candidates, host.loaded, host.data, host.device)
        facts = {
            **origin,
            "parameters": cell.parameters,
            "file": path.name,
            "judging": judging and asdict(judging),
            "state": cell.state,
            "logits": {host.defense: host.logits},
        }
        write_cell(ledger_dir(run) / cell.file(), result.records, result.adversarials, facts, result.likeliest)
        cells.append(cell)
    entered = manifest.with_imports([CellEntry.of_import(cell, sorted(candidates.images)) for cell in cells])
    write_manifest(run, entered, finished=is_finished(run, entered))
    return candidates, results


def _turn(manifest: Manifest, candidates: Candidates, defense: str, state: dict[str, str]) -> Turn:
    """Returns the key and the shares of alpha of an import to a randomized defense.

    An earlier import of the same file and state is reused.
    """
    turns = [turn for turn in manifest.turns if turn.defense == defense]
    for turn in turns:
        if turn.attack == candidates.label and turn.state == state:
            return turn
    earlier = Counter(sample for turn in turns for sample in turn.samples)
    shares = [6 / (math.pi * (1 + earlier[i])) ** 2 for i in range(manifest.samples_of(defense))]
    return Turn(
        defense=defense,
        attack=candidates.label,
        state=state,
        samples=tuple(sorted(candidates.images)),
        seed=secrets.randbits(63),
        alpha=tuple(ALPHA * share for share in shares),
    )


def _cell(candidates: Candidates, host: Host, norm: NormName, state: dict[str, str], judging: Judging | None) -> Cell:
    card = host.loaded.card
    return Cell(
        dataset=host.data.name,
        defense=card.name,
        attack=candidates.label,
        function="imported",
        norm=norm,
        epsilon=None,
        access="decision",
        parameters={},
        budget=1,
        seed=host.manifest.seed,
        samples=host.manifest.samples_of(card.name),
        chunk=card.batch_size,
        batch_size=card.batch_size,
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

    target = Target(loaded.defense, examined(loaded.defense, data, device))
    result = run_cell(cell, target, Adversary(imported), data, device)
    records = result.records
    absent = records["reason"].eq("unperturbed")
    records.loc[absent, ["status", "reason"]] = [Status.NOT_FOUND, ""]
    records.loc[absent, [*DISTANCES]] = np.inf
    found = records.index[records["status"].eq(Status.FOUND)]
    handed_in = [image.numpy() for image in candidates.images.values()]
    moved = [i for i in found if not any(np.array_equal(result.adversarials[i], image) for image in handed_in)]
    records.loc[moved, "reason"] = "stretched"
    return result
