"""The ledger's files appear whole or not at all, describe themselves, and are never trusted unread."""

import json

import numpy as np
import pandas as pd
import pytest

from bench.atomic import write_atomically
from bench.errors import UserError
from bench.ledger import (
    COLUMNS,
    load_adversarials,
    load_clean,
    load_ledger,
    load_manifest,
    read_cell,
    verify_cell,
    write_cell,
    write_clean,
    write_manifest,
)


def records(cell="c1", status="found"):
    values = {name: 0 if kind is not object else "" for name, kind in COLUMNS.items()}
    return pd.DataFrame([{**values, "cell": cell, "status": status, "sample": i, "l2": 1.5} for i in range(3)])


IMAGES = np.random.default_rng(0).random((3, 1, 4, 4), np.float32)


@pytest.fixture
def run(tmp_path):
    """A run of one finished and one missing cell."""
    name = write_clean(tmp_path, IMAGES, np.arange(3))
    cells = [{"id": "c1", "file": "one.parquet"}, {"id": "c2", "file": "two.parquet"}]
    write_manifest(tmp_path, {"matrix": "m", "images": name, "cells": cells})
    write_cell(tmp_path / "ledger" / "one.parquet", records(), IMAGES / 2, {"versions": {"torch": "2"}})
    return tmp_path


def test_what_is_written_is_read_back_with_its_provenance(run):
    frame, provenance = read_cell(run / "ledger" / "one.parquet")
    assert list(frame.columns) == list(COLUMNS)
    assert frame["l2"].tolist() == [1.5] * 3
    assert provenance["versions"] == {"torch": "2"}
    assert np.array_equal(load_clean(run), IMAGES)
    assert np.array_equal(load_adversarials(run, "c1"), IMAGES / 2)


def test_a_ledger_holds_the_finished_cells_of_the_manifest(run):
    write_cell(run / "ledger" / "old.parquet", records("other"), IMAGES, {})
    assert load_ledger(run)["cell"].unique().tolist() == ["c1"]


@pytest.mark.parametrize("cells", [1, 2])
def test_a_ledgers_frame_can_be_written_to(run, cells):
    if cells == 2:
        write_cell(run / "ledger" / "two.parquet", records("c2"), IMAGES, {})
    frame = load_ledger(run)
    for column, value in (("l2", 5.0), ("sample", 7), ("broken", True), ("status", "mine")):
        frame.loc[0, column] = value
        assert frame[column].iloc[0] == value
    assert len(frame) == 3 * cells
    assert frame["l2"].iloc[1:].eq(1.5).all()


def test_anyone_can_read_a_cell_with_pandas(run):
    assert pd.read_parquet(run / "ledger" / "one.parquet")["sample"].tolist() == [0, 1, 2]


def test_an_empty_ledger_has_its_columns(tmp_path):
    write_manifest(tmp_path, {"cells": []})
    assert list(load_ledger(tmp_path).columns) == list(COLUMNS)


def test_the_same_records_give_the_same_bytes(run, tmp_path):
    first = (run / "ledger" / "one.parquet").read_bytes()
    write_cell(run / "ledger" / "one.parquet", records(), IMAGES / 2, {"versions": {"torch": "2"}})
    assert (run / "ledger" / "one.parquet").read_bytes() == first


def test_a_cell_is_done_if_its_file_is_whole_and_nothing_failed(run):
    path = run / "ledger" / "one.parquet"
    assert verify_cell(path, "c1")
    assert not verify_cell(run / "ledger" / "two.parquet", "c2")
    write_cell(path, records(status="failed"), IMAGES, {})
    assert not verify_cell(path, "c1")


def test_a_result_of_another_cell_is_refused(run):
    with pytest.raises(UserError, match="holds another cell"):
        verify_cell(run / "ledger" / "one.parquet", "c2")


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
    with pytest.raises(UserError, match=file) as caught:
        verify_cell(run / "ledger" / "one.parquet", "c1")
    assert "\n" not in str(caught.value)
    assert "delete" in str(caught.value)


def test_a_result_of_another_schema_version_is_refused(run, monkeypatch):
    monkeypatch.setattr("bench.ledger.SCHEMA_VERSION", 99)
    with pytest.raises(UserError, match="schema version 3, this assay reads 99"):
        read_cell(run / "ledger" / "one.parquet")


def test_a_missing_or_corrupt_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match="no ledger there"):
        load_manifest(tmp_path)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="corrupt"):
        load_manifest(tmp_path)
    (tmp_path / "ledger" / "manifest.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(UserError, match="schema version 0"):
        load_manifest(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def half(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
