"""Lower bounds beside found adversarials, and what refutes them."""

import pytest
from reading import cell, table_of, values
from synthetic_runs import INF, NAN, RunMaker, every_status

from reports.evidence.problems import problems, refuted_certificates


@pytest.fixture
def bracketed():
    """Four images; the certificate of one and the estimates of two are above a found adversarial."""
    maker = RunMaker(["cnn", "nearest_neighbour", "abs"], 4)
    maker.attack("pgd", ["L2", "Linf"])
    for defense in maker.defenses:
        maker.cell(defense, "pgd", "L2", [0.0, 1.0, 2.0, INF])
    maker.bound("nearest_neighbour", "L2", [0.0, 0.5, 2.0 * (1 + 1e-7), 3.0], certificate=True)
    maker.bound("abs", "L2", [0.0, 1.1, 2.5, 3.0], note="5 starts for each class")
    return maker


def test_brackets_stand_between_bound_and_adversarial(bracketed):
    table = table_of(bracketed.make(), "bracket", "L2")
    assert list(table.frame.index) == ["nearest_neighbour", "abs"]
    assert values(cell(table, "nearest_neighbour", "lower bound")) == pytest.approx({"median": 1.25})
    assert values(cell(table, "nearest_neighbour", "smallest adversarial")) == {"median": 1.5}
    assert cell(table, "nearest_neighbour", "refuted").text == "0 of 4"
    assert cell(table, "nearest_neighbour", "the bound is").text == "a certificate"
    assert table_of(every_status(), "bracket", "Linf") is None


def test_bounds_in_one_norm_give_no_table_in_another(bracketed):
    bracketed.attack("fgsm", ["Linf"])
    bracketed.cell("nearest_neighbour", "fgsm", "Linf", [0.0, 0.1, 0.2, INF])
    assert table_of(bracketed.make(), "bracket", "L2") is not None
    assert table_of(bracketed.make(), "bracket", "Linf") is None


def test_an_estimate_that_an_adversarial_refutes_is_dropped_and_counted(bracketed):
    table = table_of(bracketed.make(), "bracket", "L2")
    assert values(cell(table, "abs", "lower bound")) == {"median": 0.0}  # of 0, 0, 0 and 3
    assert cell(table, "abs", "refuted").text == "2 of 4"
    assert cell(table, "abs", "the bound is").text == "an estimate, 5 starts for each class"
    assert refuted_certificates(bracketed.make()) == []


def test_a_certificate_above_an_adversarial_is_an_error_that_is_seen(bracketed):
    bracketed.bound("cnn", "L2", [0.0, 1.1, 1.0, 1.0], certificate=True)
    run = bracketed.make()
    assert refuted_certificates(run) == ["cnn, L2: 1 certificates exceed found adversarials (sample 1: 1.1 against 1)"]
    assert "certificate is wrong" in cell(table_of(run, "bracket", "L2"), "cnn", "lower bound").doubts[0]


@pytest.fixture
def drawn(bracketed):
    """A randomized defense, of whose certificates two exceed an adversarial."""
    bracketed.randomize("cnn")
    bracketed.cells.clear()
    bracketed.frames.clear()
    for defense in bracketed.defenses:
        bracketed.cell(defense, "pgd", "L2", [0.0, 1.0, 2.0, INF])
    bracketed.bound("cnn", "L2", [0.0, 1.1, 2.1, 1.0], certificate=True)
    return bracketed


def test_a_certificate_of_a_randomized_defense_is_refuted_by_draws_of_its_own(drawn):
    """Of 400 draws 240 show that an answer is wrong more often than not; 210 may be one half."""
    drawn.refutation("cnn", "L2", [-1, 210, 240, -1])
    run = drawn.make()
    assert refuted_certificates(run) == ["cnn, L2: 1 certificates exceed found adversarials (sample 2: 2.1 against 2)"]
    assert cell(table_of(run, "bracket", "L2"), "cnn", "refuted").text == "1 of 4"
    assert "binomial test" in table_of(run, "bracket", "L2").caption


def test_a_certificate_of_a_randomized_defense_without_draws_is_not_tested(drawn):
    """The draws on which the adversarial was selected say nothing of it."""
    run = drawn.make()
    assert refuted_certificates(run) == []
    assert cell(table_of(run, "bracket", "L2"), "cnn", "refuted").text == "0 of 4, 2 not tested"
    assert cell(table_of(run, "bracket", "L2"), "cnn", "lower bound").doubts == ()


def test_tests_of_many_samples_are_corrected(drawn):
    """232 of 400 have p = 8e-4: below .001 alone, not among two."""
    drawn.refutation("cnn", "L2", [-1, 232, 200, -1])
    assert refuted_certificates(drawn.make()) == []
    drawn.measured["refutation"].clear()
    drawn.refutation("cnn", "L2", [-1, 232, -1, -1])
    assert len(refuted_certificates(drawn.make())) == 1


def test_an_estimate_of_a_randomized_defense_is_dropped_where_an_adversarial_lies_within(drawn):
    drawn.randomize("abs")
    table = table_of(drawn.make(), "bracket", "L2")
    assert cell(table, "abs", "refuted").text == "2 of 4"
    assert values(cell(table, "abs", "lower bound")) == {"median": 0.0}


def test_a_bound_that_failed_or_has_not_run_is_a_problem(bracketed):
    bracketed.bound("cnn", "L2", [NAN] * 4, reason="exception: no luck")
    bracketed.bound("cnn", "Linf", None)
    assert problems(bracketed.make()) == [
        "cnn, L2: lower bound failed: exception: no luck (4/4)",
        "cnn, L∞: lower bound not run yet",
    ]
