"""What moved between two runs, on ledgers whose answers are worked out by hand."""

import pytest
from synthetic_runs import INF, NAN, RunMaker

from bench.contracts.errors import UserError
from reports.runs.comparison import TOGETHER, compare


def made(samples=10, dataset="synthetic", **distances):
    """One defense, and a minimal attack for each of ``distances``."""
    maker = RunMaker(["cnn"], samples, dataset=dataset)
    for attack, values in distances.items():
        maker.attack(attack, ["L2"])
        maker.cell("cnn", attack, "L2", values)
    return maker.make()


def moved(found):
    return {cell["attack"]: cell for cell in found.cells.to_dict("records")}


def test_equal_runs_do_not_differ():
    run = made(pgd=[1.0] * 9 + [INF])
    found = compare(run, made(pgd=[1.0 + 1e-6] * 9 + [INF]))
    assert (len(found.cells), found.compared, found.missing, found.significant) == (0, 2, [], False)


def test_a_clear_move_is_significant():
    """All of ten nearer: p = 2 / 1024, for the cell and for all attacks together; twice that when adjusted."""
    found = compare(made(pgd=[2.0] * 9 + [INF]), made(pgd=[1.0] * 10))
    cell = moved(found)["pgd"]
    assert (cell["median_before"], cell["median_after"]) == (2, 1)
    assert (cell["accuracy_before"], cell["accuracy_after"]) == (1, 0)
    assert (cell["nearer"], cell["farther"], cell["samples"]) == (10, 0, 10)
    assert (cell["p"], cell["adjusted"]) == pytest.approx((2 / 1024, 4 / 1024))
    assert set(moved(found)) == {"pgd", TOGETHER}
    assert found.significant


def test_a_small_move_is_shown_and_not_significant():
    found = compare(made(pgd=[1.0] * 10), made(pgd=[2.0] * 2 + [0.5] + [1.0] * 7))
    cell = moved(found)["pgd"]
    assert (cell["nearer"], cell["farther"], cell["p"]) == (1, 2, 1)
    assert not found.significant


def test_only_images_known_in_both_are_compared():
    found = compare(made(pgd=[1.0, NAN, 1.0] + [INF] * 7), made(samples=4, pgd=[2.0, 2.0, NAN, INF]))
    assert moved(found)["pgd"]["samples"] == 2
    assert "cnn · pgd · L2: 1 images known in the first run only, 1 in the second only" in found.missing


def test_what_only_one_run_has_is_named():
    found = compare(made(pgd=[1.0] * 10, ddn=[2.0] * 10), made(pgd=[1.0] * 10, cw=[NAN] * 10))
    assert found.missing == ["cnn · ddn · L2: only in the first run", "cnn · cw · L2: only in the second run"]


def test_runs_on_other_images_are_the_users_mistake():
    with pytest.raises(UserError, match="different datasets: mnist and synthetic"):
        compare(made(dataset="mnist", pgd=[1.0] * 10), made(pgd=[1.0] * 10))
    other = made(pgd=[1.0] * 10)
    other.records["sample_hash"] += "x"
    with pytest.raises(UserError, match="no image in common"):
        compare(made(pgd=[1.0] * 10), other)
