"""Detectors, on suspicions whose shares are counted by hand."""

import pytest
from reading import cell, table_of, values
from synthetic_runs import INF, RunMaker, every_status

from reports.evidence.problems import problems


def test_detection_stands_beside_what_is_left_of_it_when_the_attacker_knows():
    maker = RunMaker(["beta_vac", "cnn"], 4)
    maker.attack("pgd", ["Linf"])
    maker.cell("beta_vac", "pgd", "Linf", [0.0, 0.1, 0.2, INF])
    maker.detection("beta_vac", "Linf", clean=[1, -1, -3, 2], adversarial=[3, 3, -2, 4], fooled="yyyn", evaded="nnyy")
    run = maker.make()
    table = table_of(run, "detection")
    row = table.frame.loc["beta_vac, L∞ ε=0.3"]
    # Sample 0 is a clean error; of the other three clean images one is refused, of their two adversarials one.
    assert values(row["adversarials refused"]) == {"share": 0.5}
    assert values(row["clean images refused"]) == pytest.approx({"share": 1 / 3})
    assert values(row["detector's accuracy"]) == pytest.approx({"share": (0.5 + 2 / 3) / 2})
    assert values(row["ROC AUC"]) == pytest.approx({"share": 4 / 6})
    assert values(row["right, under PGD"]) == {"share": 0.25}
    assert values(row["right or refused, under PGD"]) == {"share": 0.75}
    assert values(row["right or refused, under evading PGD"]) == {"share": 0.5}
    assert problems(run) == []


def test_without_adversarials_there_is_no_detector_to_judge():
    maker = RunMaker(["beta_vac"], 2)
    maker.attack("pgd", ["Linf"])
    maker.cell("beta_vac", "pgd", "Linf", [INF, INF])
    maker.detection("beta_vac", "Linf", clean=[-1, -1], adversarial=[-2, -2], fooled="nn", evaded="nn")
    table = table_of(maker.make(), "detection")
    assert cell(table, "beta_vac, L∞ ε=0.3", "ROC AUC").text == "unknown"
    assert table_of(every_status(), "detection") is None
