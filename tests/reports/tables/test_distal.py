"""Distal adversarials beside the calibration."""

from reading import cell, table_of
from synthetic_runs import INF, RunMaker

from reports.evidence.problems import problems


def test_distal_adversarials_are_counted_beside_the_calibration():
    maker = RunMaker(["cnn", "abs", "nearest_neighbour"], 4)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [1.0, 1.0, 2.0, INF])
    maker.distal("cnn", [0.95, 0.5, 0.9], steps=[10, 200, 30], alpha=1.2)
    maker.distal("abs", None, reason="exception: no luck")
    run = maker.make()
    table = table_of(run, "distal")
    assert list(table.frame.index) == ["cnn", "abs"]
    assert cell(table, "cnn", "reached").text == "2 of 3"
    assert cell(table, "cnn", "median steps").text == "30"
    assert cell(table, "cnn", "alpha").text == "1.2"
    assert (cell(table, "abs", "reached").text, cell(table, "abs", "reached").notes) == (
        "failed",
        ("exception: no luck",),
    )
    assert problems(run) == ["abs: distal failed: exception: no luck (1/1)"]
    maker.measured.clear()
    assert table_of(maker.make(), "distal") is None
