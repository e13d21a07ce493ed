"""Reads the files of one run. Only files that verify are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.contracts.errors import UserError
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.atomic import write_atomically
from bench.ledger.consistency import Images, Violation, cell_violations, image_violations, study_violations
from bench.ledger.entries import CellEntry, WorkEntry
from bench.ledger.files import (
    Result,
    cell_table,
    images_beside,
    images_hash,
    packed_arrays,
    read_arrays,
    read_result,
    unreadable,
)
from bench.ledger.manifest import Manifest
from bench.ledger.schema import NON_FINITE, Status, ledger_dir, sample_hash


@dataclass(frozen=True)
class Part:
    """One file of a cell or study.

    Attributes:
        entry: the cell or study.
        file: the file's name.
        rows: the rows of the run's samples that it is about.
        images: the clean images of these samples.
    """

    entry: WorkEntry
    file: str
    rows: range
    images: Images


def parts(entry: WorkEntry, images: Images) -> list[Part]:
    """Returns the files of a cell or study with their samples, in order. ``images`` are those of the run.

    Raises:
        UserError: when there are more or fewer files than chunks of samples.
    """
    samples = images.counts.get(entry.defense, len(images.samples))
    size = (entry.chunk if isinstance(entry, CellEntry) else None) or samples
    ranges = [range(start, min(start + size, samples)) for start in range(0, samples, size)]
    if len(entry.files) != len(ranges):
        raise UserError(
            f"{entry.title}: {len(entry.files)} files; {samples} samples in chunks of {size} have {len(ranges)}"
        )
    return [Part(entry, file, rows, images.rows(rows)) for file, rows in zip(entry.files, ranges, strict=True)]


@dataclass(frozen=True)
class Reader:
    """Reads the files of one run. Only files that verify are read.

    Attributes:
        folder: folder of the ledger.
        images: clean images that the cells attack.
        files: hash of every file, by name; empty if the run is not finished.
        schema: schema version that the files must have.
    """

    folder: Path
    images: Images
    files: Mapping[str, str]
    schema: int = SCHEMA_VERSION

    def parts(self, entry: WorkEntry) -> list[Part]:
        """Returns the files of a cell or study, in the order of its samples."""
        return parts(entry, self.images)

    def table(self, entry: WorkEntry) -> pa.Table:
        """Returns the records of a cell or study, by its entry in the manifest.

        Raises:
            UserError: when a file does not verify. The message names the first violation.
        """
        return pa.concat_tables([self.read(part).table for part in self.parts(entry)])

    def read(self, part: Part) -> Result:
        """Reads one file of a cell or study.

        Raises:
            UserError: when it does not verify. The message names the first violation.
        """
        result, entry = self._whole(part), part.entry
        if isinstance(entry, CellEntry):
            table = cell_table(result, entry.norm)
            _refuse(cell_violations(str(result.path), result.table, entry, part.images))
            return replace(result, table=table)
        _refuse(study_violations(str(result.path), result.table, entry, part.images))
        return result

    def adversarials(self, entry: WorkEntry) -> dict[str, NDArray[np.float32]]:
        """Returns the arrays of images beside a cell or a study, by name.

        Raises:
            UserError: when the images are missing or corrupt, or contradict the records.
        """
        arrays = [self.images_of(part, self.read(part)) for part in self.parts(entry)]
        # A chunk that failed as a whole has no likeliest images.
        names = [name for name in arrays[0] if all(name in each for each in arrays)]
        return {name: np.concatenate([each[name] for each in arrays]) for name in names}

    def images_of(self, part: Part, result: Result) -> dict[str, NDArray[np.float32]]:
        """Returns the arrays of images beside a file that was read, by name.

        Raises:
            UserError: when the images are missing or corrupt, or contradict the records.
        """
        arrays = images_beside(result)
        if isinstance(part.entry, CellEntry):
            broken, path = result.table["broken"].to_numpy(), str(result.path.with_suffix(".npz"))
            _refuse(image_violations(path, arrays["adversarial"], broken, part.images))
        return arrays

    def is_there(self, entry: WorkEntry) -> bool:
        """Returns whether all files of a result exist.

        Raises:
            UserError: when a file is missing and the manifest has its hash.
        """
        missing = [path for path in (self.folder / file for file in entry.files) if not path.exists()]
        known = next((path for path in missing if path.name in self.files), None)
        if known is not None:
            raise UserError(
                f"result {known}: missing, and the manifest has its hash; repeat the assay run that made it"
            )
        return not missing

    def _whole(self, part: Part) -> Result:
        result = read_result(self.folder / part.file)
        if result.facts["schema"] != self.schema:
            versions = f"schema version {result.facts['schema']}, its run has {self.schema}"
            raise unreadable(result.path, versions)
        for path, digest in ((result.path, result.sha256), (result.path.with_suffix(".npz"), images_hash(result))):
            if digest is not None and self.files.get(path.name, digest) != digest:
                raise unreadable(path, "it is not the file that the run ended with: the manifest has another hash")
        return result


def _refuse(violations: Iterator[Violation]) -> None:
    first = next(violations, None)
    if first is not None:
        raise UserError(f"result {first}; delete the file to run its cell again")


def reader(run: Path | str, manifest: Manifest) -> Reader:
    """Returns the reader of a run's files, given the run's manifest.

    Raises:
        UserError: when the clean images are missing or corrupt.
    """
    arrays = clean_arrays(run, manifest)
    images = Images(
        dataset=manifest.dataset.name,
        classes=manifest.dataset.classes,
        shape=manifest.dataset.shape,
        samples=manifest.samples,
        hashes=[sample_hash(image) for image in arrays["images"]],
        labels=arrays["labels"],
        randomized={defense.name: defense.randomized for defense in manifest.defenses},
        counts={defense.name: manifest.samples_of(defense.name) for defense in manifest.defenses},
    )
    return Reader(ledger_dir(run), images, manifest.files or {}, manifest.schema_version)


def is_done(part: Part, within: Reader) -> bool:
    """Returns whether a file exists and verifies, with its images, and has no failed samples.

    What failed is run again because the cause of the failure may be gone. Failures due to non-finite
    logits are an exception. They are a property of the defense.

    Raises:
        UserError: when the file exists but does not verify.
    """
    if not (within.folder / part.file).exists():
        return False
    result = within.read(part)
    if images_hash(result) is not None:
        within.images_of(part, result)
    reasons = result.table.filter(pc.equal(result.table["status"], Status.FAILED))["reason"]
    return set(reasons.to_pylist()) <= {NON_FINITE}


def write_clean(run: Path, images: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Writes the run's clean images (S, C, H, W) and labels (S,). Returns the file's name, for the manifest."""
    packed = packed_arrays(images=images, labels=labels)
    name = _clean_name(images, labels)
    path = ledger_dir(run) / name
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_bytes(packed))
    return name


def clean_arrays(run: Path | str, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Returns the run's clean ``images`` and ``labels``, and checks them against the hash in their file's name."""
    path = ledger_dir(run) / manifest.images
    arrays = read_arrays(path, (manifest.files or {}).get(path.name))
    if set(arrays) != {"images", "labels"} or _clean_name(arrays["images"], arrays["labels"]) != path.name:
        raise UserError(f"images {path}: altered: they differ from the hash in their name; repeat the assay run")
    return arrays


def _clean_name(images: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    return f"images-{hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:12]}.npz"
