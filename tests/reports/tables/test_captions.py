"""What captions state."""

import pytest
from reading import table_of
from synthetic_runs import every_status


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_captions_state_samples_threshold_and_versions(run):
    for table in (table_of(run, "summary", "L2"), table_of(run, "mcnemar", "L2")):
        for fact in ("5 test images of synthetic", "ε = 1.5", "assay 0.1.0", "torch 2.15.0"):
            assert fact in table.caption
