"""Verification: finds the faults of a run, with the weights and the data that its ledger names.

Files come first: seals, hashes, and the consistency of records (`bench.ledger.files`, `bench.ledger.consistency`). Then
every stored adversarial example is judged again. Some fields are protected only by the seals, because only the attack
could measure them again: passes, seconds, ``claimed``, ``found_after``, ``useless_gradients``, ``remarks``, draws, and
the ``likely_rate`` of an adversarial example. The same holds for the statement that a sample is not broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.contracts.chunk import Chunk
from bench.contracts.errors import UserError
from bench.engine.ballot import classify
from bench.ledger.entries import CellEntry
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest
from bench.ledger.reader import Reader, clean_arrays, reader
from bench.ledger.schema import SEALED, ledger_dir
from bench.training.loading import LoadedDefense
from bench.verification.cells import StoredCell
from bench.verification.draws import DrawnVerdicts
from bench.verification.files import Stored, file_faults, read_results
from bench.verification.laboratory import Laboratory
from bench.verification.rederivation import Rederivation
from bench.verification.report import Verification


def verify(
    run: Path,
    laboratory: Laboratory | None,
    follows: Callable[[Path], Sequence[str]] = lambda run: (),
) -> Verification:
    """Verifies a run: its files, its stored images and its report.

    Args:
        run: folder of the run.
        laboratory: loads the data and defenses for judging images again. With None, no image is judged.
        follows: returns one line per number of the run's report that does not follow from its ledger. This function is
            called only if there are no faults so far.
    """
    found = Verification()
    try:
        _verify(run, laboratory, follows, found)
    except UserError as error:
        found.faults.append(str(error))
    except (KeyError, TypeError, IndexError, AttributeError) as error:  # a sealed manifest may have invalid content
        what = f"{type(error).__name__}: {error}"
        found.faults.append(f"{ledger_dir(run) / 'manifest.json'}: it is not what a run has ({what})")
    return found


def _verify(
    run: Path, laboratory: Laboratory | None, follows: Callable[[Path], Sequence[str]], found: Verification
) -> None:
    manifest = load_manifest(run)
    files = reader(run, manifest)
    if manifest.schema_version < SEALED:
        found.remarks.append(f"{run}: schema version {manifest.schema_version}, which carries no seal")
    found.faults += file_faults(run, manifest, files, found.missing)
    results = read_results(manifest, files, found)
    if laboratory is not None:
        _Session(run, manifest, files, results, laboratory, found).judge_again()
    if not found.faults:
        found.faults += follows(run)


class _Session:
    """Judges the results of one run again."""

    def __init__(
        self,
        run: Path,
        manifest: Manifest,
        files: Reader,
        results: Sequence[Stored],
        laboratory: Laboratory,
        found: Verification,
    ) -> None:
        self._run, self._manifest, self._files, self._results = run, manifest, files, results
        self._laboratory, self._found = laboratory, found

    def judge_again(self) -> None:
        """Adds the faults to the verification."""
        try:
            self._dataset = self._laboratory.dataset(self._manifest.dataset.name)
        except UserError as error:
            self._found.unjudged.append(str(error))
            return
        faults = list(self._data_faults())
        if faults:
            self._found.faults += faults
            self._found.unjudged.append("all cells: the data are not those of the run")
            return
        indices = torch.tensor(self._manifest.samples, dtype=torch.int64)
        device, classes = self._laboratory.device, self._dataset.classes
        images, labels = self._dataset.test.images[indices].to(device), self._dataset.test.labels[indices].to(device)
        self._clean = Chunk(images, labels, self._manifest.samples, classes)
        for name in dict.fromkeys(work.defense for work in self._manifest.works):
            try:
                self._judge_defense(name)
            except (UserError, RuntimeError, ValueError, ArithmeticError) as error:  # raised by the defense
                self._found.unjudged.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")

    def _data_faults(self) -> Iterator[str]:
        """Yields the differences between the run's clean images and the dataset that the run names."""
        path, test = ledger_dir(self._run) / self._manifest.images, self._dataset.test
        samples = list(self._manifest.samples)
        if samples and not 0 <= min(samples) <= max(samples) < len(test.labels):
            yield f"{path}: samples go to {max(samples)}; the test set has {len(test.labels)} images"
            return
        arrays = clean_arrays(self._run, self._manifest)
        own = {"images": test.images[samples].numpy(), "labels": test.labels[samples].numpy()}
        for what, expected in own.items():
            stored = arrays[what]
            if stored.shape != expected.shape:
                yield f"{path}: {what} are {stored.shape}; {self._dataset.name} has {expected.shape}"
                continue
            differing = (stored != expected).reshape(len(samples), -1).any(1)
            for row in np.flatnonzero(differing).tolist():
                where = f"{path}: row {row} (sample {samples[row]})"
                yield f"{where} {what} differ from the test set of {self._dataset.name}"
        if (self._manifest.dataset.classes, self._manifest.dataset.shape) != (
            self._dataset.classes,
            tuple(self._dataset.shape),
        ):
            yield f"{ledger_dir(self._run) / 'manifest.json'}: dataset has other classes or another shape than here"

    def _judge_defense(self, name: str) -> None:
        loaded = self._laboratory.defense(name, self._manifest)
        if isinstance(loaded, str):
            self._found.unjudged.append(loaded)
            return
        entry = self._manifest.defense(name)
        manifest = ledger_dir(self._run) / "manifest.json"
        stored = {str(manifest): entry.weights}
        own = [each for each in self._results if each.part.entry.defense == name]
        for each in own:
            facts = each.result.facts
            stored[str(each.result.path)] = facts.get("state", {}).get("weights", loaded.fingerprint)
        others = {path: weights for path, weights in stored.items() if weights not in (None, loaded.fingerprint)}
        for path, weights in others.items():
            self._found.faults.append(f"{path}: weights of {name} are {weights}; here they are {loaded.fingerprint}")
        if entry.randomized != loaded.card.randomized:
            self._found.faults.append(f"{manifest}: randomized of {name} is {entry.randomized}; its card differs")
            return
        if others:
            self._found.unjudged.append(f"{name}: its weights are not those of the run")
            return
        device, memory = self._laboratory.device, self._laboratory.memory
        again = Rederivation(self._run, self._manifest, loaded, self._dataset, device, memory)
        for each in own:
            result, work = each.result, each.part.entry
            data = {"train": self._dataset.train.hash, "test": self._dataset.test.hash}
            state = result.facts.get("state", {})
            differing = [key for key, digest in data.items() if state.get(key, digest) != digest]
            if differing:
                what = f"state.{differing[0]} is {state[differing[0]]}; {self._dataset.name} has {data[differing[0]]}"
                self._found.faults.append(f"{result.path}: {what}")
            elif isinstance(work, CellEntry):
                self._judge_cell(loaded, each)
            else:
                self._found.faults += again.faults(work, result, each.arrays)

    def _judge_cell(self, loaded: LoadedDefense, stored: Stored) -> None:
        rows = stored.part.rows
        clean = self._clean.select(torch.arange(rows.start, rows.stop, device=self._clean.device))
        cell = StoredCell(str(stored.result.path), stored.result, clean.samples, self._found)
        images = torch.from_numpy(stored.arrays["adversarial"]).to(clean.images)
        cell.check_distances(images, clean.images)
        if loaded.card.randomized:
            likeliest = stored.arrays.get("likeliest")
            drawn = DrawnVerdicts(cell, loaded, clean, self._manifest.seed)
            drawn.check(
                images,
                None if likeliest is None else torch.from_numpy(likeliest).to(clean.images),
                self._laboratory.memory,
            )
        else:
            self._check_deterministic(cell, loaded, images, clean)

    def _check_deterministic(self, cell: StoredCell, loaded: LoadedDefense, images: Tensor, own: Chunk) -> None:
        defense, classes, records = loaded.defense, self._dataset.classes, cell.records
        if not (records["clean_prediction"] >= 0).any():
            return
        memory, key = self._laboratory.memory, (id(defense), tuple(cell.samples))
        if key not in memory:
            memory[key] = classify(defense, own.images, own.labels, classes)
        clean = memory[key]
        rows = np.arange(len(records))[(records["clean_prediction"] >= 0).to_numpy()]
        cell.compare("clean_prediction", rows, own.images, clean.prediction, defense, classes)
        moved = cell.moved()
        if len(moved):
            verdict = classify(defense, images[moved], own.labels[moved], classes)
            cell.compare("adversarial_prediction", moved, images, verdict.prediction, defense, classes, judged=True)
