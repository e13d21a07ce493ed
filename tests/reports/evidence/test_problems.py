"""What keeps a run from being final is listed."""

import pytest
from synthetic_runs import every_status

from reports.evidence.problems import problems


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_problems_list_every_incomplete_cell(run):
    assert problems(run) == [
        "binary_cnn, L2: pointwise failed: exception (2/5)",
        "nearest_neighbour, L2: pgd violation: unperturbed (1/5)",
        "nearest_neighbour, L2: pointwise not run yet",
        "nearest_neighbour, L∞: pgd failed: timeout (5/5)",
    ]
