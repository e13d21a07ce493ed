"""Loads the records and images of a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from bench.contracts.errors import UserError
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest
from bench.ledger.reader import clean_arrays, reader
from bench.ledger.schema import CELL_SCHEMA


def _read_all(tables: list[pa.Table]) -> pd.DataFrame:
    """Returns the concatenated records of files; an empty frame without columns if there are no files.

    There may be millions of records. To save memory, one column at a time is copied and then dropped from the table.
    """
    if not tables:
        return pd.DataFrame()
    table, columns = pa.concat_tables(tables), {}
    tables.clear()
    for name in table.column_names:
        column, text = table[name], pa.types.is_string(table.schema.field(name).type)
        values = (column.combine_chunks() if text else column).to_pandas()
        shared = not text and column.num_chunks == 1  # arrow's memory is read-only
        columns[name] = values.copy() if shared else values
        del column, values
        table = table.drop_columns(name)
        pa.default_memory_pool().release_unused()
    return pd.DataFrame(columns, copy=False)


def load_ledger(run: Path | str, manifest: Manifest | None = None) -> pd.DataFrame:
    """Returns all records of a run's current cells that are done.

    Args:
        run: folder of the run.
        manifest: the run's manifest; loaded if it is not given.

    Returns:
        One row per cell and sample. The columns are those of `bench.ledger.schema.COLUMNS`.

    Raises:
        UserError: when there is no ledger, or a result does not verify.

    Example:
        The median of the smallest distances over all attacks, per defense::

            ledger = bench.load_ledger("runs/digits")
            smallest = ledger[ledger.norm == "L2"].groupby(["defense", "sample"])["l2"].min()
            smallest.groupby("defense").median()
    """
    known = load_manifest(run) if manifest is None else manifest
    if not known.cells:
        return pd.DataFrame(CELL_SCHEMA.empty_table().to_pandas())
    files = reader(run, known)
    records = _read_all([files.table(cell) for cell in known.cells if files.is_there(cell)])
    return records if len(records.columns) else pd.DataFrame(CELL_SCHEMA.empty_table().to_pandas())


def load_studies(run: Path | str, kind: str, manifest: Manifest | None = None) -> pd.DataFrame:
    """Returns all records of a run's current studies of one kind that are done.

    Without such studies, the frame is empty and has no columns. Without ``manifest``, the run's manifest is loaded.

    Raises:
        UserError: when there is no ledger, or a result does not verify.
    """
    known = load_manifest(run) if manifest is None else manifest
    studies = [study for study in known.studies if study.kind == kind]
    files = reader(run, known)
    return _read_all([files.table(study) for study in studies if files.is_there(study)])


def load_study_images(run: Path | str, study_id: str, manifest: Manifest | None = None) -> NDArray[np.float32]:
    """Returns the images (M, C, H, W) of a study, in the order of its records.

    Without ``manifest``, the run's manifest is loaded.

    Raises:
        UserError: when the run has no such study, or its files are missing or corrupt.
    """
    return _images_of(run, manifest, study_id, "study")


def load_clean(run: Path | str) -> NDArray[np.float32]:
    """Returns the run's clean images (S, C, H, W), float32 in [0, 1], in the order of the manifest's samples."""
    return clean_arrays(run, load_manifest(run))["images"]


def load_adversarials(run: Path | str, cell_id: str, manifest: Manifest | None = None) -> NDArray[np.float32]:
    """Returns a cell's adversarial images (S, C, H, W), float32 in [0, 1]; zeros for samples that are not broken.

    Without ``manifest``, the run's manifest is loaded.

    Raises:
        UserError: when the run has no such cell, or its files are missing or corrupt.
    """
    return _images_of(run, manifest, cell_id, "adversarial")


def _images_of(run: Path | str, manifest: Manifest | None, id: str, array: str) -> NDArray[np.float32]:
    known = manifest or load_manifest(run)
    entry = known.work(id)
    if entry is None:
        raise UserError(f"run {run}: no {id} among its cells and studies")
    return reader(run, known).adversarials(entry)[array]
