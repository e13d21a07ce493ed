"""Stored runs that tests of the ledger share."""

import pytest
from stored_cells import ADVERSARIALS, IMAGES, STUDY, STUDY_SCHEMA, entry, manifest, one, records, study

from bench.ledger.files import write_cell, write_study
from bench.ledger.manifest_file import write_manifest


@pytest.fixture
def run(tmp_path):
    """A run of one finished and one missing cell."""
    write_manifest(tmp_path, manifest(tmp_path, [entry(), entry("c2", "two.parquet")]))
    write_cell(one(tmp_path), records(), ADVERSARIALS, {"versions": {"torch": "2"}})
    return tmp_path


@pytest.fixture
def finished(tmp_path):
    """A finished run of one cell and one study."""
    write_cell(one(tmp_path), records(), ADVERSARIALS, {"versions": {"torch": "2"}})
    write_study(tmp_path / "ledger" / "study.parquet", study(), STUDY_SCHEMA, {}, IMAGES)
    write_manifest(tmp_path, manifest(tmp_path, [entry()], [STUDY]), finished=True)
    return tmp_path
