"""Files of records and the images beside them: written whole and sealed, read only if they verify."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.contracts.errors import UserError
from bench.contracts.norms import NORMS, NormName
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.atomic import write_atomically
from bench.ledger.schema import CELL_SCHEMA, COLUMNS, DISTANCES, FIRST_DISTANCES, READABLE, SEALED
from bench.ledger.seals import altered_column, altered_key, column_hashes, sealed


def write_study(
    path: Path,
    records: pd.DataFrame,
    schema: pa.Schema,
    provenance: Mapping[str, Any],
    images: NDArray[np.float32] | None,
) -> None:
    """Writes a study's records (`bench.studies.study`) to ``path``, and its images (M, C, H, W), if any, beside it."""
    _write(path, records, schema, provenance, None if images is None else packed_arrays(study=images))


def write_cell(
    path: Path,
    records: pd.DataFrame,
    adversarials: NDArray[np.float32],
    provenance: Mapping[str, Any],
    likeliest: NDArray[np.float32] | None = None,
) -> None:
    """Writes records of a cell (columns `COLUMNS`) to ``path``, and their adversarial images (S, C, H, W) beside it.

    For a randomized defense, ``likeliest`` holds the images most likely to be misclassified. They are stored there too.
    """
    images = {"adversarial": adversarials} | ({} if likeliest is None else {"likeliest": likeliest})
    _write(path, records[list(COLUMNS)], CELL_SCHEMA, provenance, packed_arrays(**images))


def _write(
    path: Path, records: pd.DataFrame, schema: pa.Schema, provenance: Mapping[str, Any], images: bytes | None
) -> None:
    """Writes the packed images first. The records hold the images' hash, so their file marks the result as complete."""
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
    """A file of records that was read completely and whose seal holds.

    Attributes:
        path: path of the file.
        table: records of the file, with the columns of this schema version; see `cell_table`.
        facts: metadata of the file about the origin of its records.
        sha256: SHA-256 of the file's bytes.
    """

    path: Path
    table: pa.Table
    facts: dict[str, Any]
    sha256: str


def read_cell(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Returns the records and the facts of a cell or study.

    Raises:
        UserError: when the file is corrupt, was altered, or has a schema version that is not readable.
    """
    result = read_result(path)
    return result.table.to_pandas(), result.facts


def read_provenance(path: Path) -> dict[str, Any]:
    """Returns the facts that are stored with a result's records, without a check of its seal.

    Raises:
        UserError: when the file is corrupt.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        facts: dict[str, Any] = json.loads(metadata[b"assay"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise unreadable(path, f"corrupt ({error})") from None
    return facts


def seconds_of(path: Path) -> float:
    """Returns the seconds that a cell or study took, summed over its records."""
    return float(pc.sum(pq.read_table(path, columns=["seconds"])["seconds"]).as_py() or 0.0)


def read_result(path: Path) -> Result:
    """Reads a file of records and checks its seal.

    Raises:
        UserError: when the file is corrupt, was altered, or has a schema version that is not readable.
    """
    try:
        content = path.read_bytes()
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
            facts = json.loads((file.schema_arrow.metadata or {})[b"assay"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise unreadable(path, f"corrupt ({detail})") from None
    if not isinstance(facts, dict) or facts.get("schema") not in READABLE:
        version = facts.get("schema") if isinstance(facts, dict) else None
        allowed = ", ".join(map(str, READABLE))
        raise unreadable(path, f"schema version {version}, this assay reads {allowed}")
    table = table.replace_schema_metadata()
    if facts["schema"] >= SEALED:
        key = altered_key(facts)
        if key is not None:
            raise unreadable(path, f"its fact {key!r} was altered: it differs from its seal")
        column = altered_column(table, facts.get("columns_sha256"))
        if column is not None:
            raise unreadable(path, f"its column {column!r} was altered: it differs from its seal")
    elif "attack" in table.column_names:
        table = _from_schema_2(table, path)
    return Result(path, table, facts, hashlib.sha256(content).hexdigest())


def _from_schema_2(table: pa.Table, path: Path) -> pa.Table:
    """Converts a cell's records of schema version 2 to the columns of the current version.

    In version 2 all draws of a randomized defense were deciding draws. Samples that are not broken now have no success
    rate. Distances in norms that are newer than the file stay missing.
    """
    names = {*table.column_names}
    if not {"draws", "success_rate", "broken"} <= names:
        raise unreadable(path, "it has other columns than schema version 2")
    count, draws = len(table), table["draws"].to_numpy()
    new: dict[str, Any] = {
        "draws_deciding": pa.array(np.where(draws > 1, draws, 0)),
        "success_rate": pc.if_else(table["broken"], table["success_rate"], np.nan),
    }
    arrays = []
    schema = pa.schema([field for field in CELL_SCHEMA if field.name in names or field.name not in DISTANCES])
    for field in schema:
        if field.name in new:
            arrays.append(new[field.name])
        elif field.name in names:
            arrays.append(table[field.name])
        else:
            blank = np.zeros(count, np.int64) if field.type == pa.int64() else np.full(count, np.nan)
            arrays.append(pa.array(blank))
    try:
        return pa.table(arrays, schema=schema)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise unreadable(path, f"it has other columns than schema version 2 ({error})") from None


def unreadable(path: Path, what: str) -> UserError:
    """Returns the error for a result that cannot be read."""
    return UserError(f"result {path}: {what}; delete it to run its cell again")


def cell_table(result: Result, norm: NormName) -> pa.Table:
    """Returns the records of a cell's file with the ledger's columns. The cell attacks ``norm``.

    A file that is older than a norm has no column of this norm's distances. They are NaN.

    Raises:
        UserError: when the columns differ otherwise.
    """
    table = result.table
    newer = {*DISTANCES} - {*FIRST_DISTANCES, NORMS[norm].column, *table.column_names}
    if table.schema.equals(pa.schema([field for field in CELL_SCHEMA if field.name not in newer])):
        unknown = pa.array(np.full(len(table), np.nan))
        columns = [unknown if field.name in newer else table[field.name] for field in CELL_SCHEMA]
        return pa.table(columns, schema=CELL_SCHEMA)
    stored = {field.name: field.type for field in table.schema}
    for wanted in CELL_SCHEMA:
        if stored.get(wanted.name) != wanted.type:
            found = stored.get(wanted.name, "missing")
            raise unreadable(result.path, f"its column {wanted.name!r} is {found}, expected {wanted.type}")
    raise unreadable(result.path, f"it has columns that a cell has not, or in another order: {', '.join(stored)}")


def images_beside(result: Result) -> dict[str, NDArray[Any]]:
    """Returns the arrays of images beside a file of records, by name; empty if the file has no images.

    Raises:
        UserError: when the images are missing or corrupt.
    """
    digest = images_hash(result)
    return {} if digest is None else read_arrays(result.path.with_suffix(".npz"), digest)


def images_hash(result: Result) -> str | None:
    """Returns the SHA-256 of the images beside a file of records; None if the file has no images."""
    digest: str | None = result.facts.get("images_sha256")
    return digest


def packed_arrays(**arrays: NDArray[Any]) -> bytes:
    """Returns arrays as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_arrays(path: Path, sha256: str | None = None) -> dict[str, NDArray[Any]]:
    """Reads the arrays of an npz file. If ``sha256`` is given, the file must have this hash.

    Raises:
        UserError: when the file is missing, is corrupt, or has another hash.
    """
    try:
        packed = path.read_bytes()
        if sha256 is not None and hashlib.sha256(packed).hexdigest() != sha256:
            raise ValueError("its SHA-256 differs from the one stored")
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"images {path}: missing or corrupt ({error}); delete them and the result beside") from None
