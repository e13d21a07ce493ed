"""The ledger: one Parquet file of records per cell, the images beside it, and a manifest that says what the run is.

::

    DIR/ledger/manifest.json                 matrix, thresholds, cells, what is not applicable and why, provenance
    DIR/ledger/images-<hash>.npz             the run's clean images
    DIR/ledger/<defense>--<attack>--<norm>--<id>.parquet   the records of one cell
    DIR/ledger/<defense>--<attack>--<norm>--<id>.npz       its adversarial images
    DIR/ledger/<defense>--<kind>--<norm>--<id>.parquet     the records of one study

Every file appears whole or not at all, and a cell's Parquet file is written last: a cell is done if its file exists and
verifies. Nothing here knows torch, so that anyone who reads a ledger starts fast.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.atomic import write_atomically
from bench.errors import UserError

SCHEMA_VERSION = 3
NON_FINITE = "non_finite"
"""Reason of a sample that failed because the defense's logits on its clean image are not finite."""
STATUSES = ("clean_error", "found", "not_found", "undecided", "budget", "violation", "failed")

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
    facts: dict[str, Any] = {"schema": SCHEMA_VERSION}
    if images is not None:
        write_atomically(path.with_suffix(".npz"), lambda temporary: temporary.write_bytes(images))
        facts["images_sha256"] = hashlib.sha256(images).hexdigest()
    table = pa.Table.from_pandas(records, schema=schema, preserve_index=False)
    table = table.replace_schema_metadata({"assay": json.dumps({**facts, **provenance})})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, write_page_checksum=True))


def read_cell(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A cell's records and its provenance.

    Raises:
        UserError: when the file is corrupt or of another schema version.
    """
    table, provenance = _read(path)
    return table.to_pandas(), provenance


def read_provenance(path: Path) -> dict[str, Any]:
    """What is stored about a result besides its records.

    Raises:
        UserError: when the file is corrupt.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        facts: dict[str, Any] = json.loads(metadata[b"assay"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"result {path}: corrupt ({error}); delete it to run its cell again") from None
    return facts


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """`read_cell`, not yet a frame."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
            provenance = json.loads((file.schema_arrow.metadata or {})[b"assay"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"result {path}: corrupt ({detail}); delete it to run its cell again") from None
    if provenance.get("schema") != SCHEMA_VERSION:
        raise UserError(
            f"result {path}: schema version {provenance.get('schema')}, this assay reads {SCHEMA_VERSION}; "
            "delete it to run its cell again"
        )
    return table.replace_schema_metadata(), provenance


def _read_all(files: Iterable[Path]) -> pd.DataFrame:
    """The records of those files that are there, one after the other; empty, without columns, if there are none.

    They may be millions: a column at a time is copied, and its copies are dropped.
    """
    tables = [_read(file)[0] for file in files if file.exists()]
    if not tables:
        return pd.DataFrame()
    table, columns = pa.concat_tables(tables), {}
    del tables
    for name in table.column_names:
        column, text = table[name], pa.types.is_string(table.schema.field(name).type)
        values = (column.combine_chunks() if text else column).to_pandas()
        shared = not text and column.num_chunks == 1  # with arrow, which nobody may write to
        columns[name] = values.copy() if shared else values
        del column, values
        table = table.drop_columns(name)
        pa.default_memory_pool().release_unused()
    return pd.DataFrame(columns, copy=False)


def verify_cell(path: Path, cell_id: str) -> bool:
    """True if a cell's or study's result exists, is whole, is its own, and none of its samples failed.

    Failed cells are run again, since what made them fail may be gone; but not where that is the image itself.

    Raises:
        UserError: when the result is corrupt.
    """
    if not path.exists():
        return False
    frame, provenance = read_cell(path)
    if not frame["cell"].eq(cell_id).all():
        raise UserError(f"result {path}: holds another cell than its name says; delete it to run its cell again")
    if "images_sha256" in provenance:
        _read_images(path.with_suffix(".npz"), provenance["images_sha256"])
    return not (frame["status"].eq("failed") & frame["reason"].ne(NON_FINITE)).any()


def write_manifest(run: Path, manifest: Mapping[str, Any]) -> None:
    """Writes what the run is (see the module's docstring), unless that is written already but for its provenance."""
    path = ledger_dir(run) / "manifest.json"
    text = json.dumps({"schema": SCHEMA_VERSION, **manifest}, indent=1)
    if path.exists():
        old, new = load_manifest(run), json.loads(text)
        if {**old, "provenance": None} == {**new, "provenance": None}:
            return
    write_atomically(path, lambda temporary: temporary.write_text(text))


def load_manifest(run: Path | str) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UserError: when there is none, or it is not one of this schema.
    """
    path = ledger_dir(run) / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"run {run}: no ledger there ({path} is missing); make one with: assay run") from None
    except ValueError as error:
        raise UserError(f"manifest {path}: corrupt ({error}); repeat the assay run that made it") from None
    if manifest.get("schema") != SCHEMA_VERSION:
        raise UserError(
            f"manifest {path}: schema version {manifest.get('schema')}, this assay reads {SCHEMA_VERSION}; "
            "delete the run's folder or choose another with --out"
        )
    return manifest


def load_ledger(run: Path | str) -> pd.DataFrame:
    """All records of a run's current cells that are done, one row per cell and sample, with the columns `COLUMNS`.

    Raises:
        UserError: when there is no ledger or a result is corrupt.
    """
    records = _read_all(ledger_dir(run) / cell["file"] for cell in load_manifest(run)["cells"])
    return records if len(records.columns) else pd.DataFrame(_SCHEMA.empty_table().to_pandas())


def load_studies(run: Path | str, kind: str) -> pd.DataFrame:
    """All records of a run's current studies of one kind that are done; empty, without columns, if there are none.

    Raises:
        UserError: when there is no ledger or a result is corrupt.
    """
    studies = [study for study in load_manifest(run).get("studies", []) if study["kind"] == kind]
    return _read_all(ledger_dir(run) / study["file"] for study in studies)


def load_study_images(run: Path | str, study_id: str, manifest: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
    """The images (M, C, H, W) of a study, in the order of its records; the run's manifest may be given.

    Raises:
        UserError: when the run has no such study, or its files are missing or corrupt.
    """
    return _images_of(run, manifest, "studies", study_id, "study")


def write_clean(run: Path, images: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Writes the run's clean images (S, C, H, W) and returns the file's name, for the manifest."""
    packed = _pack(images=images, labels=labels)
    name = f"images-{hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:12]}.npz"
    path = ledger_dir(run) / name
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_bytes(packed))
    return name


def load_clean(run: Path | str) -> NDArray[np.float32]:
    """The run's clean images (S, C, H, W), float32 in [0, 1], in the order of the manifest's samples."""
    return _read_images(ledger_dir(run) / load_manifest(run)["images"])["images"]


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
    for entry in (manifest or load_manifest(run)).get(what, []):
        if entry["id"] == wanted:
            path = ledger_dir(run) / entry["file"]
            return _read_images(path.with_suffix(".npz"), read_cell(path)[1]["images_sha256"])[array]
    raise UserError(f"run {run}: no {wanted} among its {what}")


def _pack(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _read_images(path: Path, sha256: str | None = None) -> dict[str, NDArray[Any]]:
    try:
        packed = path.read_bytes()
        if sha256 is not None and hashlib.sha256(packed).hexdigest() != sha256:
            raise ValueError("SHA-256 differs from the one in the cell's result")
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"images {path}: missing or corrupt ({error}); delete them and the result beside") from None
