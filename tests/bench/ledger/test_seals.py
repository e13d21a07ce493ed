"""Each file seals itself, and a finished run's manifest its files: what is altered is named, whoever wrote it."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_cells import (
    ADVERSARIALS,
    IMAGES,
    LABELS,
    STUDY_SCHEMA,
    one,
    read_all,
    records,
    refusal,
    study,
)

from bench.contracts.errors import UserError
from bench.ledger.files import read_cell, write_cell, write_study
from bench.ledger.loading import load_ledger
from bench.ledger.manifest_file import load_manifest
from bench.ledger.schema import COLUMNS


def rewrite(path, change):
    """Alters the records of a file (a frame) and keeps what it says about itself."""
    table = pq.read_table(path)
    frame = table.to_pandas()
    change(frame)
    pq.write_table(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False), path)


@pytest.mark.parametrize("column", list(COLUMNS))
def test_an_altered_column_differs_from_the_seal(run, column):
    def change(frame):
        value = frame.loc[2, column]
        frame[column] = frame[column].astype(object)
        frame.loc[2, column] = not value if column in ("broken", "claimed") else f"{value}x"
        if COLUMNS[column] is not object and column not in ("broken", "claimed"):
            frame.loc[2, column] = 77

    rewrite(one(run), change)
    with pytest.raises(UserError, match=rf"one\.parquet: its column '{column}' was altered"):
        read_cell(one(run))


def test_another_encoding_of_the_same_records_is_the_same(run):
    before, table = load_ledger(run), pq.read_table(one(run))
    pq.write_table(table, one(run), compression="none", use_dictionary=False)
    pd.testing.assert_frame_equal(load_ledger(run), before)


@pytest.mark.parametrize("change", ["altered", "added", "removed"])
def test_an_altered_fact_differs_from_the_seal(run, change):
    table = pq.read_table(one(run))
    facts = json.loads(table.schema.metadata[b"assay"])
    facts = {**facts, "versions": {"torch": "3"}} if change == "altered" else {**facts, "versionz": 1}
    if change == "removed":
        del facts["versions"], facts["versionz"]
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), one(run))
    with pytest.raises(UserError, match=r"its fact 'version.' was altered"):
        read_cell(one(run))


@pytest.mark.parametrize("column", ["l2", "status"])
def test_a_column_of_another_type_or_none_is_refused(run, column):
    table = pq.read_table(one(run))
    pq.write_table(table.drop_columns(column), one(run))
    with pytest.raises(UserError, match=f"column '{column}'"):
        read_cell(one(run))


def test_clean_images_are_those_that_their_name_says(run):
    path = run / "ledger" / load_manifest(run).images
    altered = IMAGES.copy()
    altered[0, 0, 0, 0] += 0.01
    np.savez_compressed(path, images=altered, labels=LABELS)
    assert "differ from the hash in their name" in refusal(run)


# The manifest of a finished run holds the hash of every file.


def test_a_finished_runs_manifest_holds_the_hash_of_every_file(finished):
    names = {file.name for file in (finished / "ledger").iterdir()}
    assert set(load_manifest(finished).files) == names - {"manifest.json"}
    read_all(finished)


@pytest.mark.parametrize("file", ["one.parquet", "study.parquet"])
def test_a_file_written_anew_after_the_end_of_a_run_is_refused(finished, file):
    path = finished / "ledger" / file
    if file == "one.parquet":
        write_cell(path, records(seconds=7.0), ADVERSARIALS, {})
    else:
        write_study(path, study(seconds=7.0), STUDY_SCHEMA, {}, IMAGES)
    assert f"{file}: it is not the file that the run ended with" in refusal(finished)


def test_a_file_missing_from_a_finished_run_is_named(finished):
    one(finished).unlink()
    assert "one.parquet: missing, and the manifest has its hash" in refusal(finished)
