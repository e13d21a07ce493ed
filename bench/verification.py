"""Verification: says what of a run does not hold, with the weights and the data that its ledger names.

Files come first: seals, hashes, and records that agree with themselves (`bench.ledger`, `bench.consistency`). Then
every stored adversarial is judged again. Some fields rest on the seals alone, since only the attack could measure them
again: passes, seconds, ``claimed``, ``found_after``, ``useless_gradients``, ``remarks``, draws, the ``likely_rate`` of
an adversarial, and that a sample not broken has no adversarial.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import binom, fisher_exact
from torch import Tensor

from bench.ballot import Ballot, classify, logits_of
from bench.checkpoints import find_checkpoint
from bench.consistency import Images, Violation, cell_violations, image_violations, study_violations
from bench.contract import OTHER_DRAWS
from bench.datasets import Dataset, load_dataset
from bench.errors import UserError
from bench.intervals import wilson_interval
from bench.judge import CLEAN_SHARE, VERDICT, Judge
from bench.ledger import (
    SCHEMA_VERSION,
    Reader,
    Result,
    cell_table,
    clean_arrays,
    images_beside,
    is_finished,
    ledger_dir,
    load_manifest,
    read_result,
    reader,
    works,
)
from bench.loading import LoadedDefense, load_trained, make_defense, needs_training
from bench.norms import NORMS, Norm, within
from bench.protocols import Defense, Trainable
from bench.provenance import kind_of_machine
from bench.rederivation import rederived
from bench.registry import Registry
from bench.source import identity_hash
from bench.threat import distance
from bench.verdicts import each_draw

FRESH_DRAWS = 400
"""Draws that no verdict has seen, on each adversarial of a randomized defense."""
REFUTED = 1e-6
"""Level at which fresh draws refute what a record says of a randomized defense."""
DISTANCE_TOLERANCE = 1e-13
"""Relative difference at most between two sums of the same squares in float64, in another order."""
BOUNDARY = 1e-5
"""Difference of two logits, relative to the largest, within which rounding decides which one is larger."""
_DRAWS_AT_ONCE = 50
_TRIALS = (*range(1, 41), 60, 100, 200, 1000)
"""How many candidates of a sample may have been tested before the one that holds: the draws taken depend on it."""


@dataclass
class Verification:
    """What was found out about a run.

    Attributes:
        faults: one line for each thing that does not hold, with file, row and field.
        missing: one line for each result that is not there yet.
        unjudged: one line for each reason why images were not judged again.
        remarks: what a reader should know besides.
        judged: images judged again.
        boundary: of these, how many lie so close to the decision boundary that rounding decides; they are no faults.
    """

    faults: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    judged: int = 0
    boundary: int = 0

    def lines(self) -> list[str]:
        """The report, the worst first."""
        counted = f"{self.judged} images judged again"
        counted += f", {self.boundary} of them at the boundary, where rounding decides" if self.boundary else ""
        return [
            *(f"does not hold: {line}" for line in self.faults),
            *(f"not there yet: {line}" for line in self.missing),
            *(f"not re-judged: {line}" for line in self.unjudged),
            *self.remarks,
            f"{counted}; {len(self.faults) or 'no'} faults.",
        ]


class Laboratory:
    """Loads data and defenses to judge with, each once, as `assay run` does.

    Args:
        data_dir: folder with the data sets' files.
        device: where defenses compute.
        plugins: Python files with defenses; no other code of a user's is run.

    Attributes:
        memory: what was found out about defenses, for the next run.
    """

    def __init__(self, data_dir: Path | None, device: torch.device, plugins: Sequence[str | Path] = ()) -> None:
        self.device = device
        self._data_dir, self._plugins = data_dir, plugins
        self.memory: dict[Any, Any] = {}
        self._datasets: dict[str, Dataset] = {}
        self._defenses: dict[str, LoadedDefense | str] = {}

    def dataset(self, name: str) -> Dataset:
        """A dataset by its name."""
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name, self._data_dir)
        return self._datasets[name]

    def defense(self, name: str, manifest: Mapping[str, Any]) -> LoadedDefense | str:
        """A defense of a run, or why it cannot be had. Nothing is trained."""
        registry = _registry(manifest, self._plugins)
        seed, dataset = manifest["seed"], self.dataset(manifest["dataset"]["name"])
        key = json.dumps([name, registry.variants, seed, dataset.name], sort_keys=True)
        if key not in self._defenses:
            self._defenses[key] = self._load(name, registry, seed, dataset)
        return self._defenses[key]

    def _load(self, name: str, registry: Registry, seed: int, dataset: Dataset) -> LoadedDefense | str:
        try:
            if needs_training(make_defense(name, dataset, registry), dataset, seed):
                return f"{name} is not trained here; train it with: assay train {name} --dataset {dataset.name}"
            return load_trained(name, dataset, registry, seed, self.device)
        except UserError as error:
            return f"{error}; if {name} is a plugin's, name its file with --plugin"


def checkpoints_of(run: Path, data_dir: Path | None) -> dict[str, list[Path]]:
    """The files of the checkpoints of a run's defenses, by their folder in a cache.

    Raises:
        UserError: when a defense of the run cannot be built here, or is not trained.
    """
    manifest = load_manifest(run)
    dataset = load_dataset(manifest["dataset"]["name"], data_dir)
    registry = _registry(manifest, [plugin["file"] for plugin in manifest.get("plugins", [])])
    files: dict[str, None] = {}
    for entry in manifest["defenses"]:
        learner = make_defense(entry["name"], dataset, registry).learner
        if isinstance(learner.defense, Trainable):
            found = find_checkpoint(learner.defense, dataset, manifest["seed"], learner.plugin.recipe)
            if found is None:
                raise UserError(f"defense {entry['name']!r}: not trained here; there are no weights to pack")
            files |= dict.fromkeys(map(str, (found.path, found.path.with_suffix(".json"))))
    return {f"checkpoints/{dataset.name}": [Path(file) for file in files]}


def _registry(manifest: Mapping[str, Any], plugins: Sequence[str | Path]) -> Registry:
    """What a run's defenses are built from."""
    entries = manifest["defenses"]
    return Registry(plugins, {each["name"]: (each["plugin"], each["set"]) for each in entries if each.get("plugin")})


def verify(
    run: Path,
    laboratory: Laboratory | None,
    follows: Callable[[Path], Sequence[str]] = lambda run: (),
) -> Verification:
    """Verifies a run: its files, what is judged again in a ``laboratory`` (None: files only), and its report.

    Args:
        run: its folder.
        laboratory: see above.
        follows: says, in one line each, which numbers of the run's report do not follow from its ledger. It is asked
            only where the ledger's files hold.
    """
    found = Verification()
    try:
        _verify(run, laboratory, follows, found)
    except UserError as error:
        found.faults.append(str(error))
    except (KeyError, TypeError, IndexError, AttributeError) as error:  # of a manifest that only its seal made whole
        what = f"{type(error).__name__}: {error}"
        found.faults.append(f"{ledger_dir(run) / 'manifest.json'}: it is not what a run has ({what})")
    return found


def _verify(
    run: Path, laboratory: Laboratory | None, follows: Callable[[Path], Sequence[str]], found: Verification
) -> None:
    manifest = load_manifest(run)
    files = reader(run, manifest)
    if manifest["schema"] != SCHEMA_VERSION:
        found.remarks.append(f"{run}: schema version {manifest['schema']}, which carries no seal")
    found.faults += _file_faults(run, manifest, files, found.missing)
    results = _results(manifest, files, found)
    if laboratory is not None:
        _Session(run, manifest, files, results, laboratory, found).judge_again()
    if not found.faults:
        found.faults += follows(run)


def _file_faults(run: Path, manifest: Mapping[str, Any], files: Reader, missing: list[str]) -> Iterator[str]:
    """Compares what is in the ledger's folder with what the manifest has; names what is not there yet."""
    finished = is_finished(run, manifest)
    for work in works(manifest):
        name = str(work["file"])
        if not (files.folder / name).exists():
            if name in files.files:
                yield f"{files.folder / name}: missing, and the manifest has its hash"
            else:
                missing.append(f"{files.folder / name}")
    if finished and manifest["schema"] == SCHEMA_VERSION and "files" not in manifest:
        missing.append(f"{files.folder / 'manifest.json'}: the hashes of the files; repeat the assay run")
    for name, digest in files.files.items():
        path = files.folder / name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{path}: its SHA-256 is not the one that the manifest has"
    for entry in [*works(manifest), *manifest.get("imported", [])]:
        yield from _entry_faults(files.folder / "manifest.json", entry, manifest)


def _entry_faults(path: Path, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    """An entry of the manifest that does not agree with the rest of it."""
    names = [defense["name"] for defense in manifest["defenses"]]
    if entry["defense"] not in names:
        yield f"{path}: entry {entry['id']} defense is {entry['defense']!r}; the run has {', '.join(names)}"
    identity = entry.get("identity")
    if identity is not None and identity_hash(identity) != entry["id"]:
        yield f"{path}: entry {entry['id']} identity is not what its id is made of"
    threshold = manifest["thresholds"].get(entry["norm"])
    if entry.get("epsilon") is not None and entry["epsilon"] != threshold:
        yield f"{path}: thresholds.{entry['norm']} is {threshold}; cell {entry['id']} has epsilon {entry['epsilon']}"


def _results(
    manifest: Mapping[str, Any], files: Reader, found: Verification
) -> dict[str, tuple[Result, dict[str, NDArray[Any]]]]:
    """The results whose files hold, with their images, by id; the others' faults are written down."""
    results = {}
    for entry in works(manifest):
        path = files.folder / str(entry["file"])
        if not path.exists():
            continue
        try:
            result = read_result(path)
            if result.facts["schema"] != manifest["schema"]:
                raise UserError(f"{path}: schema version {result.facts['schema']}, its run has {manifest['schema']}")
            if "attack" in entry:
                cell_table(result)
            arrays = images_beside(result)
        except UserError as error:
            found.faults.append(str(error))
            continue
        faults = list(_violations(entry, result, arrays, files.images))
        found.faults += map(str, faults)
        if not faults:
            results[str(entry["id"])] = (result, arrays)
    return results


def _violations(
    entry: Mapping[str, Any], result: Result, arrays: Mapping[str, NDArray[Any]], images: Images
) -> Iterator[Violation]:
    if "attack" not in entry:
        yield from study_violations(str(result.path), result.table, entry, images)
        return
    yield from cell_violations(str(result.path), result.table, entry, images)
    if len(result.table) == len(images.samples):
        broken = result.table["broken"].to_numpy()
        yield from image_violations(str(result.path.with_suffix(".npz")), arrays["adversarial"], broken, images)


class _Session:
    """Judges the results of one run again."""

    def __init__(
        self,
        run: Path,
        manifest: Mapping[str, Any],
        files: Reader,
        results: Mapping[str, tuple[Result, dict[str, NDArray[Any]]]],
        laboratory: Laboratory,
        found: Verification,
    ) -> None:
        self._run, self._manifest, self._files, self._results = run, manifest, files, results
        self._laboratory, self._found = laboratory, found

    def judge_again(self) -> None:
        """Adds what does not hold to the verification."""
        try:
            self._dataset = self._laboratory.dataset(self._manifest["dataset"]["name"])
        except UserError as error:
            self._found.unjudged.append(str(error))
            return
        faults = list(self._data_faults())
        if faults:
            self._found.faults += faults
            self._found.unjudged.append("all cells: the data are not those of the run")
            return
        indices = torch.tensor(self._manifest["samples"], dtype=torch.int64)
        self._x = self._dataset.test.images[indices].to(self._laboratory.device)
        self._y = self._dataset.test.labels[indices].to(self._laboratory.device)
        for name in dict.fromkeys(work["defense"] for work in works(self._manifest)):
            try:
                self._judge_defense(str(name))
            except (UserError, RuntimeError, ValueError, ArithmeticError) as error:  # of the defense
                self._found.unjudged.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")

    def _data_faults(self) -> Iterator[str]:
        """Differences between the run's clean images and the dataset that it names."""
        path, test = ledger_dir(self._run) / self._manifest["images"], self._dataset.test
        samples = self._manifest["samples"]
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
        if (self._manifest["dataset"]["classes"], self._manifest["dataset"]["shape"]) != (
            self._dataset.classes,
            list(self._dataset.shape),
        ):
            yield f"{ledger_dir(self._run) / 'manifest.json'}: dataset has other classes or another shape than here"

    def _judge_defense(self, name: str) -> None:
        loaded = self._laboratory.defense(name, self._manifest)
        if isinstance(loaded, str):
            self._found.unjudged.append(loaded)
            return
        entry = next(defense for defense in self._manifest["defenses"] if defense["name"] == name)
        manifest = ledger_dir(self._run) / "manifest.json"
        stored = {str(manifest): entry.get("weights")}
        own = [work for work in works(self._manifest) if work["defense"] == name and work["id"] in self._results]
        for work in own:
            result = self._results[work["id"]][0]
            stored[str(result.path)] = result.facts.get("state", {}).get("weights", loaded.fingerprint)
        others = {path: weights for path, weights in stored.items() if weights not in (None, loaded.fingerprint)}
        for path, weights in others.items():
            self._found.faults.append(f"{path}: weights of {name} are {weights}; here they are {loaded.fingerprint}")
        if entry["randomized"] != loaded.card.randomized:
            self._found.faults.append(f"{manifest}: randomized of {name} is {entry['randomized']}; its card differs")
            return
        if others:
            self._found.unjudged.append(f"{name}: its weights are not those of the run")
            return
        for work in own:
            result, arrays = self._results[work["id"]]
            data = {"train": self._dataset.train.hash, "test": self._dataset.test.hash}
            state = result.facts.get("state", {})
            differing = [key for key, digest in data.items() if state.get(key, digest) != digest]
            if differing:
                what = f"state.{differing[0]} is {state[differing[0]]}; {self._dataset.name} has {data[differing[0]]}"
                self._found.faults.append(f"{result.path}: {what}")
            elif "attack" in work:
                self._judge_cell(loaded, work, result, arrays["adversarial"], arrays.get("likeliest"))
            else:
                device, memory = self._laboratory.device, self._laboratory.memory
                self._found.faults += rederived(
                    self._run, work, result, arrays, loaded.defense, self._dataset, device, self._manifest, memory
                )

    def _judge_cell(
        self,
        loaded: LoadedDefense,
        entry: Mapping[str, Any],
        result: Result,
        adversarials: NDArray[np.float32],
        likeliest: NDArray[np.float32] | None,
    ) -> None:
        cell = _Cell(str(result.path), result, self._manifest["samples"], self._found)
        images = torch.from_numpy(adversarials).to(self._x)
        cell.check_distances(images, self._x)
        if loaded.card.randomized:
            drawn = _Drawn(cell, loaded.defense, self._dataset.classes, self._x, self._y, self._manifest["seed"])
            drawn.check(
                images, None if likeliest is None else torch.from_numpy(likeliest).to(self._x), self._laboratory.memory
            )
        else:
            self._check_deterministic(cell, loaded, images)

    def _check_deterministic(self, cell: _Cell, loaded: LoadedDefense, images: Tensor) -> None:
        defense, classes, records = loaded.defense, self._dataset.classes, cell.records
        if not (records["clean_prediction"] >= 0).any():
            return
        memory, key = self._laboratory.memory, (id(defense), tuple(cell.samples))
        if key not in memory:
            memory[key] = classify(defense, self._x, self._y, classes)
        clean = memory[key]
        rows = np.arange(len(records))[(records["clean_prediction"] >= 0).to_numpy()]
        cell.compare("clean_prediction", rows, self._x, clean.prediction, defense, classes)
        moved = cell.moved()
        if len(moved):
            verdict = classify(defense, images[moved], self._y[moved], classes)
            cell.compare("adversarial_prediction", moved, images, verdict.prediction, defense, classes, judged=True)


class _Cell:
    """Compares one cell's records with what is found now."""

    def __init__(self, file: str, result: Result, samples: Sequence[int], found: Verification) -> None:
        self.file, self.facts, self.samples, self.found = file, result.facts, samples, found
        self.records: pd.DataFrame = result.table.to_pandas()

    def moved(self) -> NDArray[np.int64]:
        """Rows that an adversarial was found for."""
        records = self.records
        return np.flatnonzero((records["broken"] & (records["status"] != "clean_error")).to_numpy())

    def fault(self, name: str, row: int, expected: str) -> None:
        """Writes down a field of a row that does not hold."""
        stored = self.records[name].iloc[row]
        text = f"{stored:.17g}" if isinstance(stored, float) else str(stored)
        self.found.faults.append(str(Violation(self.file, name, text, expected, row, self.samples[row])))

    def check_distances(self, images: Tensor, x: Tensor) -> None:
        """Distances of the stored adversarials; that of a clean error is the clean image."""
        broken = np.flatnonzero(self.records["broken"].to_numpy())
        if not len(broken):
            return
        for norm in NORMS:
            now = distance(images[broken], x[broken], norm).cpu().numpy()
            stored = self.records[norm.lower()].to_numpy()[broken]
            differ = ~np.isclose(stored, now, rtol=DISTANCE_TOLERANCE if norm == "L2" else 0, atol=0)
            for row, value in zip(broken[differ], now[differ], strict=True):
                self.fault(norm.lower(), int(row), f"the stored image is at {value:.17g}")

    def compare(
        self,
        name: str,
        rows: NDArray[np.int64],
        images: Tensor,
        predicted: Tensor,
        defense: Defense,
        classes: int,
        *,
        judged: bool = False,
    ) -> None:
        """Stored classes of rows with those that a deterministic defense gives to their images (S, C, H, W) now.

        A difference within rounding is counted apart.
        """
        now = predicted.cpu().numpy()[: len(self.records)]
        now = now if judged else now[rows]
        stored = self.records[name].to_numpy()[rows]
        self.found.judged += len(rows) if judged else 0
        differ = np.flatnonzero(now != stored)
        if not len(differ):
            return
        logits = logits_of(defense, images[rows[differ]], classes).double().cpu().numpy()
        for place, own in zip(differ, logits, strict=True):
            row, gap = int(rows[place]), own[now[place]] - own[stored[place]]
            if abs(gap) <= BOUNDARY * np.abs(own).max():
                self.found.boundary += 1
            else:
                self.fault(name, row, f"the defense says {now[place]}")


class _Drawn:
    """Judges the images of one cell of a randomized defense again."""

    def __init__(self, cell: _Cell, defense: Defense, classes: int, x: Tensor, y: Tensor, seed: int) -> None:
        self._cell, self._defense, self._classes, self._x, self._y, self._seed = cell, defense, classes, x, y, seed
        self._terms: dict[str, Any] = cell.facts.get("judging") or {}
        self._same_machine = kind_of_machine(str(x.device)) == cell.facts.get("kind_of_machine")

    def check(self, images: Tensor, likeliest: Tensor | None, memory: dict[Any, Any]) -> None:
        """Writes down what does not hold of the clean images, the adversarials (S, C, H, W) and the likeliest."""
        moved = self._cell.moved()
        self._cell.found.judged += len(moved)
        foreign = self._cell.records["remarks"].str.contains(OTHER_DRAWS, regex=False).any()
        replayed = bool(self._terms) and self._same_machine and not foreign
        errors, votes = self._fresh(images[moved], moved, np.ones(len(moved), bool), stop=replayed)
        for row, count, own in zip(moved.tolist(), errors.tolist(), votes, strict=True):
            self._check_verdict(row, count, int(own.sum()))
            if not replayed:
                self._check_prediction("adversarial_prediction", row, own)
                self._check_rate(row, count, int(own.sum()))
        self._check_clean(memory, replayed)
        if replayed:
            self._replay(images, likeliest, memory)

    def _check_verdict(self, row: int, errors: int, draws: int) -> None:
        if binom.cdf(errors, draws, 0.5) < REFUTED:
            self._cell.fault("broken", row, f"{errors} of {draws} fresh draws misclassify its image")

    def _check_prediction(self, name: str, row: int, votes: NDArray[np.int64]) -> None:
        # The class of most of few draws: another one may have most of many.
        if votes[int(self._cell.records[name].iloc[row])] == 0:
            self._cell.fault(
                name, row, f"none of {votes.sum()} fresh draws says so, {votes.max()} say {votes.argmax()}"
            )

    def _check_rate(self, row: int, errors: int, draws: int) -> None:
        record = self._cell.records.iloc[row]
        taken = int(self._terms.get("estimation_draws", record["draws_deciding"]))
        successes = round(record["success_rate"] * taken)
        table = np.array([[successes, taken - successes], [errors, draws - errors]])
        if taken and fisher_exact(table).pvalue < REFUTED:
            self._cell.fault("success_rate", row, f"{errors} of {draws} fresh draws misclassify its image")

    def _check_clean(self, memory: dict[Any, Any], replayed: bool) -> None:
        """What the record says of clean images, by fresh draws."""
        records = self._cell.records
        wrong = (records["status"] == "clean_error").to_numpy()
        key = (id(self._defense), tuple(self._cell.samples), wrong.tobytes(), replayed)
        if key not in memory:
            memory[key] = self._fresh(self._x, np.arange(len(self._x)), wrong, stop=replayed)
        errors, votes = memory[key]
        for row in np.flatnonzero((records["clean_prediction"] >= 0).to_numpy()).tolist():
            count, draws = int(errors[row]), int(votes[row].sum())
            if wrong[row]:
                self._check_verdict(row, count, draws)
                if not replayed:
                    self._check_rate(row, count, draws)
            elif binom.sf(count - 1, draws, VERDICT.alternative) < REFUTED:
                self._cell.fault("status", row, f"{count} of {draws} fresh draws misclassify the clean image")
            if not replayed:
                self._check_prediction("clean_prediction", row, votes[row])

    def _replay(self, images: Tensor, likeliest: Tensor | None, memory: dict[Any, Any]) -> None:
        """Takes the judge's own draws again: on one kind of machine they give the same."""
        cell, records, rows = self._cell, self._cell.records, np.arange(len(self._x))
        clean_error = (records["status"] == "clean_error").to_numpy()
        alpha = torch.as_tensor(self._terms["alpha"], dtype=torch.float64).expand(len(rows))
        draws, own = self._terms["estimation_draws"], self._terms["seed"]
        judge = Judge(self._defense, self._classes, self._seed, alpha, draws, self._terms["threshold"])
        key = (id(self._defense), tuple(cell.samples), self._seed, draws)
        if key not in memory:
            memory[key] = judge.clean(self._x, self._y, cell.samples)
        clean = memory[key]
        for row in np.flatnonzero((records["clean_prediction"] >= 0).to_numpy()).tolist():
            if bool(clean.misclassified[row]) != clean_error[row]:
                cell.fault("status", row, f"the judge's verdict on the clean image is {bool(clean.misclassified[row])}")
            if int(clean.prediction[row]) != records["clean_prediction"].iloc[row]:
                cell.fault("clean_prediction", row, f"the judge's draws say {int(clean.prediction[row])}")
        errors = np.where(clean_error, clean.errors.cpu().numpy(), 0)
        judge = judge if own is None else Judge(self._defense, self._classes, own, alpha, draws, judge.threshold)
        moved = cell.moved()
        if len(moved):
            names = [cell.samples[row] for row in moved]
            errors[moved] = judge.estimate(images[moved], self._y[moved], names).cpu().numpy()
            self._check_replayed(judge, images, moved, alpha)
        rate = np.where(records["broken"], errors / draws, np.nan)
        low, high = wilson_interval(rate, draws)
        for name, expected in (("success_rate", rate), ("success_low", low), ("success_high", high)):
            differ = ~np.isclose(records[name].to_numpy(), expected, rtol=1e-12, atol=1e-12, equal_nan=True)
            for row in np.flatnonzero(differ).tolist():
                text = f"{errors[row]} of {draws} of the judge's draws misclassify its image, which gives"
                cell.fault(name, row, f"{text} {expected[row]:.6g}")
        if likeliest is not None:
            self._check_likeliest(judge, clean, likeliest)

    def _check_replayed(self, judge: Judge, images: Tensor, moved: NDArray[np.int64], alpha: Tensor) -> None:
        """The verdict on each adversarial, for the number of candidates tested before it that gives the record."""
        records, rows = self._cell.records, moved
        reasons: dict[int, tuple[str, str]] = {}
        for trial in _TRIALS:
            if not len(rows):
                return
            levels = ((1 - CLEAN_SHARE) * 6 / (np.pi * trial) ** 2 * alpha[rows]).to(self._x.device)
            names = [self._cell.samples[row] for row in rows]
            verdict, _ = judge.verdict(images[rows], self._y[rows], names, levels)
            said, broken = verdict.prediction.cpu().numpy(), verdict.misclassified.cpu().numpy()
            stored = records["adversarial_prediction"].to_numpy()[rows]
            for row, now, hit in zip(rows.tolist(), said.tolist(), broken.tolist(), strict=True):
                name = "adversarial_prediction" if hit else "broken"
                reasons.setdefault(
                    row, (name, f"the judge's draws say {now}" if hit else "the judge does not accept it")
                )
            rows = rows[~(broken & (said == stored))]
        for row in rows.tolist():
            self._cell.fault(reasons[row][0], row, reasons[row][1])

    def _check_likeliest(self, judge: Judge, clean: Any, likeliest: Tensor) -> None:
        cell, records, draws = self._cell, self._cell.records, judge.estimation_draws
        unmoved = (likeliest == self._x).flatten(1).all(1).cpu().numpy()
        norm = cast(Norm, str(records["norm"].iloc[0]))
        far = ~within(distance(likeliest, self._x, norm).cpu().numpy(), judge.threshold)
        asked = np.flatnonzero(~unmoved)
        errors = clean.errors.cpu().numpy().copy()
        names = [cell.samples[row] for row in asked.tolist()]
        errors[asked] = judge.estimate(likeliest[asked], self._y[asked], names).cpu().numpy()
        rate = clean.rate.cpu().numpy()
        failed = (records["clean_prediction"] < 0).to_numpy()
        for row in np.flatnonzero(~failed).tolist():
            record = records.iloc[row]
            if far[row]:
                cell.fault("likely_rate", row, f"its image lies outside {judge.threshold}")
            if record["likely_errors"] != errors[row] or record["likely_draws"] != draws:
                cell.fault("likely_errors", row, f"the judge's draws give {errors[row]} of {draws}")
            if unmoved[row] and not np.isclose(record["likely_rate"], rate[row], equal_nan=True):
                cell.fault("likely_rate", row, f"the clean image has {rate[row]:.6g}")

    def _fresh(
        self, images: Tensor, rows: NDArray[np.int64], claims: NDArray[np.bool_], *, stop: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Errors (N,) and votes (N, K) of fresh draws on images (N, C, H, W) of the cell's rows (N,).

        Where only a refutation of what a record ``claims`` (N,) counts, broken or not, ``stop`` ends the draws of an
        image once none is possible.
        """
        names = [self._cell.samples[row] for row in rows.tolist()]
        seed, labels = secrets.randbits(60), self._y[rows]
        ballot = Ballot(self._defense, self._classes, images, labels, names, seed=seed, purpose="verification")
        most = np.where(claims, FRESH_DRAWS, FRESH_DRAWS - binom.isf(REFUTED, FRESH_DRAWS, VERDICT.alternative))
        least = np.where(claims, binom.ppf(REFUTED, FRESH_DRAWS, VERDICT.null) + 1, 0)
        errors = np.zeros(len(rows), np.int64)
        open_rows = np.arange(len(rows))
        for done in range(0, FRESH_DRAWS, _DRAWS_AT_ONCE):
            if not len(open_rows):
                break
            drawn, numbers = each_draw(torch.full((len(open_rows),), _DRAWS_AT_ONCE, device=images.device))
            asked = torch.from_numpy(open_rows).to(images.device)[drawn]
            wrong = ballot(asked, numbers + done)
            np.add.at(errors, asked.cpu().numpy(), wrong.cpu().numpy())
            right = done + _DRAWS_AT_ONCE - errors
            safe = np.where(claims, errors >= least, right > most)
            open_rows = open_rows[~safe[open_rows]] if stop else open_rows
        return errors, ballot.votes.cpu().numpy()
