"""McNemar's test between defenses, on survivals counted by hand."""

import pytest
from reading import cell, table_of, values
from synthetic_runs import INF, RunMaker, every_status


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_mcnemar_compares_survival_under_all_attacks():
    """At 1.5 the cnn survives 2 of 10 samples, the other 9, one of them the cnn's: b = 1, c = 8, p = 20/512."""
    maker = RunMaker(["cnn", "abs"], 10)
    for name in ("a", "b"):
        maker.attack(name, ["L2"])
    maker.cell("cnn", "a", "L2", [INF, 2.0] + [1.0] * 8)
    maker.cell("cnn", "b", "L2", [INF] * 10)
    maker.cell("abs", "a", "L2", [1.0] + [3.0] * 9)
    maker.cell("abs", "b", "L2", [INF] * 10)
    shown = cell(table_of(maker.make(), "mcnemar", "L2"), "abs", "cnn")
    assert values(shown) == pytest.approx({"p": 20 / 512, "adjusted p": 20 / 512})
    assert not shown.significant


def test_mcnemar_is_adjusted_for_the_number_of_pairs_and_a_clear_difference_is_set_off():
    """One of three defenses survives 20 of 20 samples, the others none: p = 2^-19 twice, and 1."""
    maker = RunMaker(["cnn", "abs", "eabs"], 20)
    maker.attack("a", ["L2"])
    for defense, distance in (("cnn", 1.0), ("abs", INF), ("eabs", 1.0)):
        maker.cell(defense, "a", "L2", [distance] * 20)
    table = table_of(maker.make(), "mcnemar", "L2")
    clear = cell(table, "abs", "cnn")
    assert values(clear) == pytest.approx({"p": 2.0**-19, "adjusted p": 3 * 2.0**-19})
    assert clear.significant
    assert values(cell(table, "eabs", "cnn")) == {"p": 1, "adjusted p": 1}
    # Q = 3 * 2 * (2 * (20 / 3)^2 + (40 / 3)^2) / (20 * 2)
    assert "Cochran's Q that all 3 do: 40, p = 2.1e-09, on the 20 known for all" in table.caption


def test_mcnemar_leaves_out_what_is_unknown_for_either_and_says_so(run):
    """cnn and nearest neighbour differ on samples 1 and 2 of the four known for both: only the latter survives."""
    shown = cell(table_of(run, "mcnemar", "L2"), "nearest_neighbour", "cnn")
    assert values(shown) == pytest.approx({"p": 0.5, "adjusted p": 1})
    assert shown.notes == (
        "on the 4 of 5 images valid for both",
        "not all attacks on nearest_neighbour are complete",
    )


def test_mcnemar_without_common_samples_has_no_number(run):
    shown = cell(table_of(run, "mcnemar", "Linf"), "binary_cnn", "cnn")
    assert shown.values == {}
    assert shown.notes == ("no image with a known distance for both",)


def test_mcnemar_shows_each_pair_once(run):
    table = table_of(run, "mcnemar", "L0")
    shown = [[bool(c.values) for c in row] for row in table.frame.to_numpy()]
    assert shown == [[True, False], [True, True]]
