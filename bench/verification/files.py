"""Checks a run's files before anything is judged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bench.contracts.errors import UserError
from bench.contracts.source import identity_hash
from bench.ledger.consistency import Violation, cell_violations, image_violations, study_violations
from bench.ledger.entries import CellEntry, WorkEntry
from bench.ledger.files import Result, cell_table, images_beside, read_result
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import is_finished
from bench.ledger.reader import Part, Reader
from bench.ledger.schema import SEALED
from bench.verification.report import Verification


def file_faults(run: Path, manifest: Manifest, files: Reader, missing: list[str]) -> Iterator[str]:
    """Yields the differences between the ledger and its manifest. Adds the results not there yet to ``missing``."""
    finished = is_finished(run, manifest)
    for name in (name for work in manifest.works for name in work.files):
        if not (files.folder / name).exists():
            if name in files.files:
                yield f"{files.folder / name}: missing, and the manifest has its hash"
            else:
                missing.append(f"{files.folder / name}")
    if finished and manifest.schema_version >= SEALED and manifest.files is None:
        missing.append(f"{files.folder / 'manifest.json'}: the hashes of the files; repeat the assay run")
    for name, digest in files.files.items():
        path = files.folder / name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{path}: its SHA-256 is not the one that the manifest has"
    for entry in [*manifest.works, *manifest.imported]:
        yield from _entry_faults(files.folder / "manifest.json", entry, manifest)


def _entry_faults(path: Path, entry: WorkEntry, manifest: Manifest) -> Iterator[str]:
    """Yields the contradictions between an entry of the manifest and the rest of the manifest."""
    names = [defense.name for defense in manifest.defenses]
    if entry.defense not in names:
        yield f"{path}: entry {entry.id} defense is {entry.defense!r}; the run has {', '.join(names)}"
    if entry.identity is not None and identity_hash(entry.identity) != entry.id:
        yield f"{path}: entry {entry.id} identity is not what its id is made of"
    threshold = None if entry.norm is None else manifest.thresholds.get(entry.norm)
    if entry.epsilon is not None and entry.epsilon != threshold:
        yield f"{path}: thresholds.{entry.norm} is {threshold}; cell {entry.id} has epsilon {entry.epsilon}"


@dataclass(frozen=True)
class Stored:
    """A file of a cell or study that holds, with the images beside it, by name."""

    part: Part
    result: Result
    arrays: dict[str, NDArray[Any]]


def read_results(manifest: Manifest, files: Reader, found: Verification) -> list[Stored]:
    """Returns the files that hold. The faults of the others are recorded."""
    results = []
    for part in (part for entry in manifest.works for part in files.parts(entry)):
        path, entry = files.folder / part.file, part.entry
        if not path.exists():
            continue
        try:
            result = read_result(path)
            if result.facts["schema"] != manifest.schema_version:
                raise UserError(
                    f"{path}: schema version {result.facts['schema']}, its run has {manifest.schema_version}"
                )
            if isinstance(entry, CellEntry):
                cell_table(result, entry.norm)
            arrays = images_beside(result)
        except UserError as error:
            found.faults.append(str(error))
            continue
        faults = list(violations_of(part, result, arrays))
        found.faults += map(str, faults)
        if not faults:
            results.append(Stored(part, result, arrays))
    return results


def violations_of(part: Part, result: Result, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Violation]:
    """Yields the contradictions within a file's records and images, and between the file and the run."""
    entry, images = part.entry, part.images
    if not isinstance(entry, CellEntry):
        yield from study_violations(str(result.path), result.table, entry, images)
        return
    yield from cell_violations(str(result.path), result.table, entry, images)
    if len(result.table) == len(images.samples):
        broken = result.table["broken"].to_numpy()
        yield from image_violations(str(result.path.with_suffix(".npz")), arrays["adversarial"], broken, images)
