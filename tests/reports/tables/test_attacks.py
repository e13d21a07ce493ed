"""What the table of attacks says."""

import pytest
from reading import table_of
from synthetic_runs import every_status


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_an_attack_with_two_budgets_has_a_row_for_each(run):
    table = table_of(run, "attacks")
    budgets = [
        (label, row[table.frame.columns.get_loc("budget")].text, row[table.frame.columns.get_loc("against")].text)
        for label, row in zip(table.frame.index, table.frame.to_numpy(), strict=True)
    ]
    assert budgets == [
        ("pgd", "1000", ""),
        ("pgd:bounded", "1000", ""),
        ("pointwise", "1000", "cnn, binary_cnn, nearest_neighbour"),
        ("pointwise", "50", "binary_cnn"),
    ]
