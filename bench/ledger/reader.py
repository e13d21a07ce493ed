"""Reads the files of one run. Only files that verify are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.contracts.errors import UserError
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.atomic import write_atomically
from bench.ledger.consistency import Images, Violation, cell_violations, image_violations, study_violations
from bench.ledger.entries import CellEntry, StudyEntry, WorkEntry
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

    def cell(self, entry: CellEntry) -> Result:
        """Reads a cell by its entry in the manifest.

        Raises:
            UserError: when its file does not verify. The message names the first violation.
        """
        result = self._whole(entry)
        table = cell_table(result, entry.norm)
        _refuse(cell_violations(str(result.path), result.table, entry, self.images))
        return replace(result, table=table)

    def study(self, entry: StudyEntry) -> Result:
        """Reads a study by its entry in the manifest.

        Raises:
            UserError: when its file does not verify. The message names the first violation.
        """
        result = self._whole(entry)
        _refuse(study_violations(str(result.path), result.table, entry, self.images))
        return result

    def read(self, entry: WorkEntry) -> Result:
        """Reads a cell or a study by its entry in the manifest."""
        return self.cell(entry) if isinstance(entry, CellEntry) else self.study(entry)

    def adversarials(self, entry: WorkEntry) -> dict[str, NDArray[np.float32]]:
        """Returns the arrays of images beside a cell or a study, by name.

        Raises:
            UserError: when the images are missing or corrupt, or contradict the records.
        """
        result = self.read(entry)
        arrays = images_beside(result)
        if isinstance(entry, CellEntry):
            broken, path = result.table["broken"].to_numpy(), str(result.path.with_suffix(".npz"))
            _refuse(image_violations(path, arrays["adversarial"], broken, self.images))
        return arrays

    def is_there(self, entry: WorkEntry) -> bool:
        """Returns whether a result's file exists.

        Raises:
            UserError: when the file is missing and the manifest has its hash.
        """
        path = self.folder / entry.file
        if not path.exists() and path.name in self.files:
            raise UserError(f"result {path}: missing, and the manifest has its hash; repeat the assay run that made it")
        return path.exists()

    def _whole(self, entry: WorkEntry) -> Result:
        result = read_result(self.folder / entry.file)
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
    )
    return Reader(ledger_dir(run), images, manifest.files or {}, manifest.schema_version)


def is_done(work: WorkEntry, within: Reader) -> bool:
    """Returns whether a result exists and verifies, with its images, and has no failed samples.

    Failed cells and studies are run again because the cause of the failure may be gone. Failures due to non-finite
    logits are an exception. They are a property of the defense.

    Raises:
        UserError: when the result exists but does not verify.
    """
    if not (within.folder / work.file).exists():
        return False
    result = within.read(work)
    if "images_sha256" in result.facts:
        within.adversarials(work)
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
