"""The ledger's files appear whole or not at all, describe themselves, and are never trusted unread."""

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_cells import (
    ADVERSARIALS,
    IMAGES,
    NAN,
    distances,
    entry,
    manifest,
    one,
    records,
    refusal,
)

from bench.contracts.errors import UserError
from bench.ledger.files import read_cell, write_cell
from bench.ledger.loading import load_adversarials, load_clean, load_ledger
from bench.ledger.manifest_file import load_manifest, write_manifest
from bench.ledger.reader import is_done, reader
from bench.ledger.schema import CELL_SCHEMA, COLUMNS, DISTANCES, FIRST_DISTANCES
from bench.ledger.seals import column_hashes, sealed

# What is written is read back.


def test_what_is_written_is_read_back_with_its_provenance(run):
    frame, provenance = read_cell(one(run))
    assert list(frame.columns) == list(COLUMNS)
    assert frame["l2"].tolist()[:3] == distances("l2")[:3]
    assert provenance["versions"] == {"torch": "2"}
    assert np.array_equal(load_clean(run), IMAGES)
    assert np.array_equal(load_adversarials(run, "c1"), ADVERSARIALS)


def test_a_ledger_holds_the_finished_cells_of_the_manifest(run):
    write_cell(run / "ledger" / "old.parquet", records("other"), ADVERSARIALS, {})
    assert load_ledger(run)["cell"].unique().tolist() == ["c1"]


@pytest.mark.parametrize("cells", [1, 2])
def test_a_ledgers_frame_can_be_written_to(run, cells):
    if cells == 2:
        write_cell(run / "ledger" / "two.parquet", records("c2"), ADVERSARIALS, {})
    frame = load_ledger(run)
    for column, value in (("l2", 5.0), ("sample", 7), ("broken", False), ("status", "mine")):
        frame.loc[0, column] = value
        assert frame[column].iloc[0] == value
    assert len(frame) == 4 * cells
    assert frame["l2"].iloc[1] == distances("l2")[1]


def test_anyone_can_read_a_cell_with_pandas(run):
    assert pd.read_parquet(one(run))["sample"].tolist() == [0, 1, 2, 3]


def test_an_empty_ledger_has_its_columns(tmp_path):
    write_manifest(tmp_path, manifest(tmp_path, []))
    assert list(load_ledger(tmp_path).columns) == list(COLUMNS)


def test_the_same_records_give_the_same_bytes(run):
    first = one(run).read_bytes()
    write_cell(one(run), records(), ADVERSARIALS, {"versions": {"torch": "2"}})
    assert one(run).read_bytes() == first


def test_result_files_are_for_everybody_whom_the_umask_lets_read(tmp_path):
    before = os.umask(0o022)
    try:
        write_cell(one(tmp_path), records(), ADVERSARIALS, {})
        write_manifest(tmp_path, manifest(tmp_path, [entry()]))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "ledger").iterdir()} == {0o644}


# A cell is done if its file exists and verifies.


def test_a_cell_is_done_if_its_file_is_whole_and_nothing_failed(run):
    files = reader(run, load_manifest(run))
    (part,), (other,) = files.parts(entry()), files.parts(entry("c2", "two.parquet"))
    assert is_done(part, files)
    assert not is_done(other, files)
    failed = records(status=["clean_error", "found", "not_found", "failed"], reason=["", "", "", "timeout"])
    write_cell(one(run), failed, ADVERSARIALS, {})
    assert not is_done(part, files)


def test_a_cell_with_a_sample_whose_logits_are_not_finite_is_done(run):
    failed = records(status=["clean_error", "found", "not_found", "failed"], reason=["", "", "", "non_finite"])
    write_cell(one(run), failed, ADVERSARIALS, {})
    files = reader(run, load_manifest(run))
    assert is_done(files.parts(entry())[0], files)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped"])
@pytest.mark.parametrize("file", ["one.parquet", "one.npz"])
def test_a_corrupt_result_is_named_in_one_line(run, file, damage):
    path = run / "ledger" / file
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "emptied":
        content = bytearray()
    else:
        content[30] ^= 0xFF
    path.write_bytes(content)
    files = reader(run, load_manifest(run))
    with pytest.raises(UserError, match=file) as caught:
        is_done(files.parts(entry())[0], files)
    assert "\n" not in str(caught.value)
    assert "delete" in str(caught.value)


# Versions.


def test_a_result_of_another_schema_version_is_refused(run):
    table = pq.read_table(one(run))
    facts = {**json.loads(table.schema.metadata[b"assay"]), "schema": 99}
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), one(run))
    with pytest.raises(UserError, match="schema version 99, this assay reads 2, 3, 4"):
        read_cell(one(run))


def without(path, column):
    """Writes a file anew without a column of distances, as it was written before that norm was known."""
    frame, facts = read_cell(path)
    schema = pa.schema([field for field in CELL_SCHEMA if field.name != column])
    table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    facts = sealed({**facts, "columns_sha256": column_hashes(table)})
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), path)


@pytest.mark.parametrize("column", DISTANCES[len(FIRST_DISTANCES) :])
def test_a_file_older_than_a_norm_is_read_with_unknown_distances_in_it(run, column):
    before = load_ledger(run)
    without(one(run), column)
    write_manifest(run, load_manifest(run), finished=True)
    after = load_ledger(run)
    assert after[column].isna().all()
    pd.testing.assert_frame_equal(after.drop(columns=column), before.drop(columns=column))


@pytest.mark.parametrize("column", FIRST_DISTANCES)
def test_a_file_without_distances_that_every_file_has_is_refused(run, column):
    without(one(run), column)
    write_manifest(run, load_manifest(run), finished=True)
    assert f"its column {column!r} is missing, expected double" in refusal(run)


def test_unknown_distances_in_a_column_that_is_there_are_refused(run):
    frame = records()
    frame["linf"] = NAN
    write_cell(one(run), frame, ADVERSARIALS, {})
    assert "row 0 (sample 0) linf is None; a clean error is at distance 0" in refusal(run)


def test_a_file_cannot_shed_its_seal_by_calling_itself_older(run):
    table = pq.read_table(one(run))
    facts = {**json.loads(table.schema.metadata[b"assay"]), "schema": 2}
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), one(run))
    assert "one.parquet" in refusal(run)
