"""What an attack spends on an image."""

import pytest
from reading import cell, table_of, values
from synthetic_runs import every_status


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_costs_are_means_over_the_images_that_were_attacked(run):
    table = table_of(run, "cost")
    assert values(cell(table, "pgd, L2", "cnn")) == {
        "forwards": 100,
        "backwards": 40,
        "inner_steps": 0,
    }  # one of five is a clean error and cost nothing
    assert cell(table, "pgd, L∞", "nearest_neighbour").text == "—"  # all of its images failed
    assert cell(table, "pgd, L2", "binary_cnn").text == "n/a"
