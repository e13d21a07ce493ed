"""The ledger: one Parquet file of records per cell, the images beside it, and a manifest that says what the run is.

::

    DIR/ledger/manifest.json                 matrix, thresholds, cells, what is not applicable and why, provenance
    DIR/ledger/images-<hash>.npz             the run's clean images
    DIR/ledger/<defense>--<attack>--<norm>--<id>.parquet   the records of one cell
    DIR/ledger/<defense>--<attack>--<norm>--<id>.npz       its adversarial images
    DIR/ledger/<defense>--<kind>--<norm>--<id>.parquet     the records of one study

Every file appears whole or not at all, and a cell's Parquet file is written last: a cell is done if its file exists and
verifies. Each file seals itself (`bench.seals`), and the manifest of a finished run holds the hash of every file.
Nothing that does not verify is read. Nothing here knows torch, so that anyone who reads a ledger starts fast.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.atomic import write_atomically
from bench.consistency import (
    NON_FINITE,
    Images,
    Violation,
    cell_violations,
    image_violations,
    sample_hash,
    study_violations,
)
from bench.errors import UserError
from bench.seals import SEAL, altered_column, altered_key, column_hashes, sealed

SCHEMA_VERSION = 3
READABLE = (2, SCHEMA_VERSION)
"""Schema versions that are read; before version 3 there were no seals, and a judge without a stated error."""

_SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("dataset", pa.string()),
        ("sample", pa.int64()),
        ("sample_hash", pa.string()),
        ("label", pa.int64()),
        ("defense", pa.string()),
        ("attack", pa.string()),
        ("norm", pa.string()),
        ("epsilon", pa.float64()),
        ("clean_prediction", pa.int64()),
        ("adversarial_prediction", pa.int64()),
        ("status", pa.string()),
        ("broken", pa.bool_()),
        ("reason", pa.string()),
        ("l0", pa.float64()),
        ("l2", pa.float64()),
        ("linf", pa.float64()),
        ("success_rate", pa.float64()),
        ("success_low", pa.float64()),
        ("success_high", pa.float64()),
        ("likely_rate", pa.float64()),
        ("likely_errors", pa.int64()),
        ("likely_draws", pa.int64()),
        ("draws_choosing", pa.int64()),
        ("draws_deciding", pa.int64()),
        ("draws_estimating", pa.int64()),
        ("non_finite", pa.int64()),
        ("claimed", pa.bool_()),
        ("found_after", pa.float64()),
        ("useless_gradients", pa.float64()),
        ("remarks", pa.string()),
        ("forwards", pa.float64()),
        ("backwards", pa.float64()),
        ("inner_steps", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
COLUMNS: dict[str, Any] = {
    field.name: object if field.type == pa.string() else field.type.to_pandas_dtype() for field in _SCHEMA
}
"""The columns of a ledger's frame and their numpy types. Distances are 0 for a clean error, the judged distance where
broken, infinity where not, NaN for a violation or a failure. Predictions are -1 where there is none; epsilon is NaN for
minimal attacks.

``success_rate`` is the share of further draws, which decided nothing, that misclassify the nearest broken image, with
``success_low`` and ``success_high``, its 95 % Wilson interval; 1 without an interval for a deterministic defense, NaN
where nothing is broken. Of a randomized defense a record also holds the likeliest image within the matrix's threshold,
by the rate ``likely_rate`` at which choosing and deciding draws misclassified it, (k + 1) / (n + 2), with
``likely_errors`` of ``likely_draws`` further draws; it is the clean image where there is no other. ``draws_choosing``,
``draws_deciding`` and ``draws_estimating`` count over all candidates of the sample; all are 0 for a deterministic
defense. ``non_finite`` counts candidates dropped because their logits were not finite.

What may make a reader doubt a defense's robustness: ``claimed``, whether the attack's own queries showed an
adversarial; ``found_after``, the passes up to the first one (infinity without one, 0 for a clean error, NaN where a
library hides it or the sample failed); ``useless_gradients``, the share of its derivatives that were all zero or not
finite (NaN where it asked for none); ``remarks`` of the attack's library."""


def ledger_dir(run: Path | str) -> Path:
    """The folder of a run's ledger."""
    return Path(run) / "ledger"


def write_study(
    path: Path,
    records: pd.DataFrame,
    schema: pa.Schema,
    provenance: Mapping[str, Any],
    images: NDArray[np.float32] | None,
) -> None:
    """Writes a study's records (`bench.studies`) to ``path`` and its images (M, C, H, W), if it has some, beside it."""
    _write(path, records, schema, provenance, None if images is None else _pack(study=images))


def write_cell(
    path: Path,
    records: pd.DataFrame,
    adversarials: NDArray[np.float32],
    provenance: Mapping[str, Any],
    likeliest: NDArray[np.float32] | None = None,
) -> None:
    """Writes a cell's records (columns `COLUMNS`) to ``path``. Beside it lie its adversarial images (S, C, H, W) and,
    of a randomized defense, the likeliest ones."""
    images = {"adversarial": adversarials} | ({} if likeliest is None else {"likeliest": likeliest})
    _write(path, records[list(COLUMNS)], _SCHEMA, provenance, _pack(**images))


def _write(
    path: Path, records: pd.DataFrame, schema: pa.Schema, provenance: Mapping[str, Any], images: bytes | None
) -> None:
    """Writes the images, packed, first: the records, which hold their hash, say that all is there."""
    facts: dict[str, Any] = {"schema": SCHEMA_VERSION, **provenance}
    if images is not None:
        write_atomically(path.with_suffix(".npz"), lambda temporary: temporary.write_bytes(images))
        facts["images_sha256"] = hashlib.sha256(images).hexdigest()
    table = pa.Table.from_pandas(records, schema=schema, preserve_index=False)
    facts = sealed({**facts, "columns_sha256": column_hashes(table)})
    table = table.replace_schema_metadata({"assay": json.dumps(facts)})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, write_page_checksum=True))


@dataclass(frozen=True)
class Result:
    """A file of records as read, and whole: its seal holds.

    Attributes:
        path: of the file.
        table: its records, with the columns of this schema version.
        facts: what it says about how they were made.
        sha256: of the file's bytes.
    """

    path: Path
    table: pa.Table
    facts: dict[str, Any]
    sha256: str


def read_cell(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A cell's or study's records and its facts.

    Raises:
        UserError: when the file is corrupt, was altered, or is of another schema version.
    """
    result = read_result(path)
    return result.table.to_pandas(), result.facts


def read_provenance(path: Path) -> dict[str, Any]:
    """What is stored about a result besides its records.

    Raises:
        UserError: when the file is corrupt.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        facts: dict[str, Any] = json.loads(metadata[b"assay"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, f"corrupt ({error})") from None
    return facts


def read_result(path: Path) -> Result:
    """Reads a file of records; makes sure that it is as it was written.

    Raises:
        UserError: when it is corrupt, was altered, or is of another schema version.
    """
    try:
        content = path.read_bytes()
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
            facts = json.loads((file.schema_arrow.metadata or {})[b"assay"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _unreadable(path, f"corrupt ({detail})") from None
    if not isinstance(facts, dict) or facts.get("schema") not in READABLE:
        version = facts.get("schema") if isinstance(facts, dict) else None
        allowed = " and ".join(map(str, READABLE))
        raise _unreadable(path, f"schema version {version}, this assay reads {allowed}")
    table = table.replace_schema_metadata()
    if facts["schema"] == SCHEMA_VERSION:
        key = altered_key(facts)
        if key is not None:
            raise _unreadable(path, f"its fact {key!r} was altered: it differs from its seal")
        column = altered_column(table, facts.get("columns_sha256"))
        if column is not None:
            raise _unreadable(path, f"its column {column!r} was altered: it differs from its seal")
    elif "attack" in table.column_names:
        table = _from_schema_2(table, path)
    return Result(path, table, facts, hashlib.sha256(content).hexdigest())


def _from_schema_2(table: pa.Table, path: Path) -> pa.Table:
    """A cell's records of version 2 with the columns of this one.

    A randomized defense had draws that decided, and no others. Where nothing is broken there is no success rate now.
    """
    names = {*table.column_names}
    if not {"draws", "success_rate", "broken"} <= names:
        raise _unreadable(path, "it has other columns than schema version 2")
    count, draws = len(table), table["draws"].to_numpy()
    new: dict[str, Any] = {
        "draws_deciding": pa.array(np.where(draws > 1, draws, 0)),
        "success_rate": pc.if_else(table["broken"], table["success_rate"], np.nan),
    }
    arrays = []
    for field in _SCHEMA:
        if field.name in new:
            arrays.append(new[field.name])
        elif field.name in names:
            arrays.append(table[field.name])
        else:
            blank = np.zeros(count, np.int64) if field.type == pa.int64() else np.full(count, np.nan)
            arrays.append(pa.array(blank))
    try:
        return pa.table(arrays, schema=_SCHEMA)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise _unreadable(path, f"it has other columns than schema version 2 ({error})") from None


def _unreadable(path: Path, what: str) -> UserError:
    return UserError(f"result {path}: {what}; delete it to run its cell again")


def cell_table(result: Result) -> pa.Table:
    """The records of a cell's file, which must have the ledger's columns.

    Raises:
        UserError: when it has others.
    """
    if result.table.schema.equals(_SCHEMA):
        return result.table
    stored = {field.name: field.type for field in result.table.schema}
    for wanted in _SCHEMA:
        if stored.get(wanted.name) != wanted.type:
            found = stored.get(wanted.name, "missing")
            raise _unreadable(result.path, f"its column {wanted.name!r} is {found}, expected {wanted.type}")
    raise _unreadable(result.path, f"it has columns that a cell has not, or in another order: {', '.join(stored)}")


@dataclass(frozen=True)
class Reader:
    """Reads the files of one run, and nothing that does not verify.

    Attributes:
        folder: of the ledger.
        images: that its cells are about.
        files: the hash of every file, by name, where the run was finished.
        schema: the version that the files must have.
    """

    folder: Path
    images: Images
    files: Mapping[str, str]
    schema: int = SCHEMA_VERSION

    def cell(self, entry: Mapping[str, Any]) -> Result:
        """A cell, by its entry in the manifest.

        Raises:
            UserError: that names what does not hold in its file, the first of it.
        """
        result = self._whole(entry)
        cell_table(result)
        _refuse(cell_violations(str(result.path), result.table, entry, self.images))
        return result

    def study(self, entry: Mapping[str, Any]) -> Result:
        """A study, by its entry in the manifest.

        Raises:
            UserError: that names what does not hold in its file, the first of it.
        """
        result = self._whole(entry)
        _refuse(study_violations(str(result.path), result.table, entry, self.images))
        return result

    def read(self, entry: Mapping[str, Any]) -> Result:
        """A cell or a study."""
        return self.cell(entry) if "attack" in entry else self.study(entry)

    def adversarials(self, entry: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """The images beside a cell or a study.

        Raises:
            UserError: when they are missing or corrupt, or do not fit the records.
        """
        result = self.read(entry)
        arrays = images_beside(result)
        if "attack" in entry:
            broken, path = result.table["broken"].to_numpy(), str(result.path.with_suffix(".npz"))
            _refuse(image_violations(path, arrays["adversarial"], broken, self.images))
        return arrays

    def is_there(self, entry: Mapping[str, Any]) -> bool:
        """True if a result's file exists; one that a finished run had must exist."""
        path = self.folder / str(entry["file"])
        if not path.exists() and path.name in self.files:
            raise UserError(f"result {path}: missing, and the manifest has its hash; repeat the assay run that made it")
        return path.exists()

    def _whole(self, entry: Mapping[str, Any]) -> Result:
        result = read_result(self.folder / entry["file"])
        if result.facts["schema"] != self.schema:
            versions = f"schema version {result.facts['schema']}, its run has {self.schema}"
            raise _unreadable(result.path, versions)
        for path, digest in ((result.path, result.sha256), (result.path.with_suffix(".npz"), _images_hash(result))):
            if digest is not None and self.files.get(path.name, digest) != digest:
                raise _unreadable(path, "it is not the file that the run ended with: the manifest has another hash")
        return result


def images_beside(result: Result) -> dict[str, NDArray[Any]]:
    """The arrays of images beside a file of records; none where it has none.

    Raises:
        UserError: when they are missing or corrupt.
    """
    digest = _images_hash(result)
    return {} if digest is None else _read_images(result.path.with_suffix(".npz"), digest)


def _images_hash(result: Result) -> str | None:
    digest: str | None = result.facts.get("images_sha256")
    return digest


def _refuse(violations: Iterator[Violation]) -> None:
    first = next(violations, None)
    if first is not None:
        raise UserError(f"result {first}; delete the file to run its cell again")


def reader(run: Path | str, manifest: Mapping[str, Any]) -> Reader:
    """Reads a run's files, given its manifest.

    Raises:
        UserError: when the clean images are missing or corrupt.
    """
    arrays = clean_arrays(run, manifest)
    images = Images(
        dataset=manifest["dataset"]["name"],
        classes=manifest["dataset"]["classes"],
        shape=tuple(manifest["dataset"]["shape"]),
        samples=manifest["samples"],
        hashes=[sample_hash(image) for image in arrays["images"]],
        labels=arrays["labels"],
        randomized={defense["name"]: defense["randomized"] for defense in manifest["defenses"]},
    )
    return Reader(ledger_dir(run), images, manifest.get("files") or {}, manifest["schema"])


def is_done(work: Mapping[str, Any], within: Reader) -> bool:
    """True if a cell's or study's result exists and verifies, with its images, and none of its samples failed.

    Failed cells are run again, since what made them fail may be gone; an image whose logits are not finite is a
    property of the defense.

    Raises:
        UserError: when the result is there and does not verify.
    """
    if not (within.folder / str(work["file"])).exists():
        return False
    result = within.read(work)
    if "images_sha256" in result.facts:
        within.adversarials(work)
    reasons = result.table.filter(pc.equal(result.table["status"], "failed"))["reason"]
    return set(reasons.to_pylist()) <= {NON_FINITE}


def _read_all(tables: list[pa.Table]) -> pd.DataFrame:
    """The records of files, one after the other; empty, without columns, if there are none.

    They may be millions: a column at a time is copied, and its copies are dropped.
    """
    if not tables:
        return pd.DataFrame()
    table, columns = pa.concat_tables(tables), {}
    tables.clear()
    for name in table.column_names:
        column, text = table[name], pa.types.is_string(table.schema.field(name).type)
        values = (column.combine_chunks() if text else column).to_pandas()
        shared = not text and column.num_chunks == 1  # with arrow, which nobody may write to
        columns[name] = values.copy() if shared else values
        del column, values
        table = table.drop_columns(name)
        pa.default_memory_pool().release_unused()
    return pd.DataFrame(columns, copy=False)


def write_manifest(run: Path, manifest: Mapping[str, Any], *, finished: bool = False) -> None:
    """Writes what the run is (see the module's docstring), unless that is written already but for its provenance.

    A finished run's manifest holds the hash of every file.
    """
    path = ledger_dir(run) / "manifest.json"
    content = {**manifest, "schema": SCHEMA_VERSION}
    content.pop("files", None)
    if finished:
        content["files"] = file_hashes(run, content)
    new = sealed(content)
    if path.exists():
        old = _parsed(path)
        aside = dict.fromkeys(("provenance", SEAL))
        if altered_key(old) is None and {**old, **aside} == {**new, **aside}:
            return
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(new, indent=1)))


def file_hashes(run: Path | str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file of a run's ledger, by name; only of those that are there."""
    names = [manifest["images"]] if "images" in manifest else []
    for work in works(manifest):
        names += [work["file"], str(Path(work["file"]).with_suffix(".npz"))]
    paths = [ledger_dir(run) / name for name in dict.fromkeys(names)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}


def is_finished(run: Path | str, manifest: Mapping[str, Any]) -> bool:
    """True if every cell and study of a manifest has a result."""
    return all((ledger_dir(run) / work["file"]).exists() for work in works(manifest))


def works(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a manifest's cells and studies."""
    return [*manifest["cells"], *manifest.get("studies", [])]


def load_manifest(run: Path | str) -> dict[str, Any]:
    """The manifest of a run; its ``schema`` is the version that it was written in.

    Raises:
        UserError: when there is none, it was altered, or is of a schema version that is not read.
    """
    path = ledger_dir(run) / "manifest.json"
    try:
        manifest = _parsed(path)
    except FileNotFoundError:
        raise UserError(f"run {run}: no ledger there ({path} is missing); make one with: assay run") from None
    if manifest.get("schema") not in READABLE:
        raise UserError(
            f"manifest {path}: schema version {manifest.get('schema')}, this assay reads "
            f"{' and '.join(map(str, READABLE))}; delete the run's folder or choose another with --out"
        )
    key = altered_key(manifest) if manifest["schema"] == SCHEMA_VERSION else None
    if key is not None:
        raise UserError(
            f"manifest {path}: its key {key!r} was altered: it differs from its seal; "
            "delete the manifest and repeat the assay run that made it"
        )
    names = [manifest.get("images", ""), *(work["file"] for work in works(manifest)), *manifest.get("files", {})]
    for name in names:
        if Path(name).name != name:
            raise UserError(f"manifest {path}: its file {name!r} lies in another folder; repeat the assay run")
    return manifest


def _parsed(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"manifest {path}: corrupt ({error}); delete it and repeat the assay run") from None
    if not isinstance(manifest, dict):
        raise UserError(f"manifest {path}: corrupt (not an object); delete it and repeat the assay run")
    return manifest


def load_ledger(run: Path | str, manifest: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """All records of a run's current cells that are done, one row per cell and sample, with the columns `COLUMNS`.

    The run's manifest may be given.

    Raises:
        UserError: when there is no ledger, or a result does not verify.
    """
    known = load_manifest(run) if manifest is None else manifest
    if not known["cells"]:
        return pd.DataFrame(_SCHEMA.empty_table().to_pandas())
    files = reader(run, known)
    records = _read_all([files.cell(cell).table for cell in known["cells"] if files.is_there(cell)])
    return records if len(records.columns) else pd.DataFrame(_SCHEMA.empty_table().to_pandas())


def load_studies(run: Path | str, kind: str, manifest: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """All records of a run's current studies of one kind that are done; empty, without columns, if there are none.

    The run's manifest may be given.

    Raises:
        UserError: when there is no ledger, or a result does not verify.
    """
    known = load_manifest(run) if manifest is None else manifest
    studies = [study for study in known.get("studies", []) if study["kind"] == kind]
    files = reader(run, known)
    return _read_all([files.study(study).table for study in studies if files.is_there(study)])


def load_study_images(run: Path | str, study_id: str, manifest: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
    """The images (M, C, H, W) of a study, in the order of its records; the run's manifest may be given.

    Raises:
        UserError: when the run has no such study, or its files are missing or corrupt.
    """
    return _images_of(run, manifest, "studies", study_id, "study")


def write_clean(run: Path, images: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Writes the run's clean images (S, C, H, W) and returns the file's name, for the manifest."""
    packed = _pack(images=images, labels=labels)
    name = _clean_name(images, labels)
    path = ledger_dir(run) / name
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_bytes(packed))
    return name


def load_clean(run: Path | str) -> NDArray[np.float32]:
    """The run's clean images (S, C, H, W), float32 in [0, 1], in the order of the manifest's samples."""
    return clean_arrays(run, load_manifest(run))["images"]


def clean_arrays(run: Path | str, manifest: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The run's clean ``images`` and ``labels``, which must be those that their file's name says."""
    path = ledger_dir(run) / manifest["images"]
    arrays = _read_images(path, manifest.get("files", {}).get(path.name))
    if set(arrays) != {"images", "labels"} or _clean_name(arrays["images"], arrays["labels"]) != path.name:
        raise UserError(f"images {path}: altered: they differ from the hash in their name; repeat the assay run")
    return arrays


def _clean_name(images: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    return f"images-{hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:12]}.npz"


def load_adversarials(run: Path | str, cell_id: str, manifest: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
    """A cell's adversarial images (S, C, H, W), float32 in [0, 1]; zeros for samples that are not broken. The run's
    manifest may be given.

    Raises:
        UserError: when the run has no such cell, or its files are missing or corrupt.
    """
    return _images_of(run, manifest, "cells", cell_id, "adversarial")


def _images_of(
    run: Path | str, manifest: Mapping[str, Any] | None, what: str, wanted: str, array: str
) -> NDArray[np.float32]:
    known = manifest or load_manifest(run)
    for entry in known.get(what, []):
        if entry["id"] == wanted:
            return reader(run, known).adversarials(entry)[array]
    raise UserError(f"run {run}: no {wanted} among its {what}")


def _pack(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _read_images(path: Path, sha256: str | None = None) -> dict[str, NDArray[Any]]:
    try:
        packed = path.read_bytes()
        if sha256 is not None and hashlib.sha256(packed).hexdigest() != sha256:
            raise ValueError("its SHA-256 differs from the one stored")
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"images {path}: missing or corrupt ({error}); delete them and the result beside") from None
