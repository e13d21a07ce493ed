"""The order of attacks by their strength."""

import pytest
from reading import cell, table_of, values
from synthetic_runs import INF, NAN, RunMaker


def test_attacks_are_ranked_by_how_near_they_come_to_the_best():
    """On cnn the best need 1, 1, 2 and 2, so e = 2, B = 1.5 and nothing broken is 2: a is 0 away, b half of it."""
    maker = RunMaker(["cnn", "abs"], 4)
    for name in ("b", "a", "pgd:bounded"):
        maker.attack(name, ["L2"], kind="bounded" if name == "pgd:bounded" else "minimal")
    maker.cell("cnn", "a", "L2", [1.0, 1.0, 2.0, 2.0])
    maker.cell("cnn", "b", "L2", [2.0, 1.0, 2.0, 2.0])
    maker.cell("cnn", "pgd:bounded", "L2", [1.5, 1.5, INF, INF])
    maker.cell("abs", "a", "L2", [NAN] * 4, reasons=dict.fromkeys(range(4), "exception"))
    maker.na("abs", "b", "L2", "why")
    table = table_of(maker.make(), "ranking", "L2")
    assert list(table.frame.index) == ["a", "b"]
    assert values(cell(table, "a", "cnn")) == {"optimality": 1}
    assert values(cell(table, "b", "cnn")) == pytest.approx({"optimality": 0.5})
    assert cell(table, "a", "abs").text == "unknown"
    assert cell(table, "b", "abs").text == "n/a"
    assert values(cell(table, "a", "all defenses")) == {"optimality": 1, "passes": 140, "seconds": 0.5}
    assert cell(table, "a", "all defenses").notes == ("over 1 of 2 defenses",)


def test_an_attack_is_ranked_on_the_images_that_it_has_a_result_for():
    maker = RunMaker(["cnn"], 4)
    for name, distances in (("a", [2.0, 2.0, 2.0, NAN]), ("b", [1.0, 1.0, 2.0, 9.0])):
        maker.attack(name, ["L2"])
        maker.cell("cnn", name, "L2", distances, reasons={3: "exception"} if name == "a" else {})
    shown = cell(table_of(maker.make(), "ranking", "L2"), "a", "cnn")
    assert values(shown) == pytest.approx(
        {"optimality": 0.0}
    )  # best 1, 1, 2, so e = 2: the attack breaks nothing below it
    assert shown.notes == ("3 of 4, 1 failed (exception)",)
