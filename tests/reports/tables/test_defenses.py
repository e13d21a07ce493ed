"""What the table of defenses says."""

import pytest
from reading import cell, table_of
from synthetic_runs import every_status


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_defenses_are_described(run):
    assert cell(table_of(run, "defenses"), "cnn", "citation").text == "cnn et al., 2019"
