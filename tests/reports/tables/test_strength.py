"""The strength of attacks, with intervals."""

import pytest
from reading import cell, interval, table_of, values
from synthetic_runs import INF, RunMaker

from reports.statistics.distances import accuracy_interval


def test_strength_adds_intervals_and_costs_to_the_summary():
    """Of eight images the 1st and the 8th bound the median with 95 %; the clean error cost nothing."""
    maker = RunMaker(["cnn", "abs"], 8)
    maker.attack("pgd", ["L2"])
    maker.attack("pgd:bounded", ["L2"], kind="bounded")
    maker.cell("cnn", "pgd", "L2", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, INF])
    maker.cell("cnn", "pgd:bounded", "L2", [0.0] + [1.5] * 7)
    maker.na("abs", "pgd", "L2", "why")
    table = table_of(maker.make(), "strength", "L2")
    assert [quantity.name for quantity in table.quantities] == ["median", "accuracy", "passes", "seconds"]
    six_of_eight, none = accuracy_interval([1.0] * 2 + [INF] * 6, 1.5), accuracy_interval([1.0] * 8, 1.5)
    costs = {"passes": 140, "seconds": 0.5}
    expected = {
        "pgd": {"median": 3.5, "accuracy": 0.75, **costs},
        "pgd:bounded (ε=1.5)": {"accuracy": 0, **costs},
        "All L2 attacks": {"median": 1.5, "accuracy": 0},
    }
    for row, numbers in expected.items():
        assert values(cell(table, row, "cnn")) == pytest.approx(numbers)
    assert interval(cell(table, "pgd", "cnn"), "median") == (0, INF)
    assert interval(cell(table, "All L2 attacks", "cnn"), "median") == (0, 1.5)
    for row, ends in (("pgd", six_of_eight), ("pgd:bounded (ε=1.5)", none), ("All L2 attacks", none)):
        assert interval(cell(table, row, "cnn"), "accuracy") == pytest.approx(ends)
    assert cell(table, "pgd", "abs").text == "n/a"
