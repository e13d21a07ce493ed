"""Each sign of masked gradients is seen where it is, and nowhere else."""

import numpy as np
import pytest
from synthetic_runs import INF, NAN, RunMaker

from reports.masking import (
    BEATEN,
    LATE,
    NO_GRADIENTS,
    NOT_AT_ANY_DISTANCE,
    REMARKS,
    USELESS_GRADIENTS,
    VANISHED,
    evidence,
)
from reports.tables import masking_table, mcnemar_table, summary_table

FOUND = [1.0] * 10


def run(**cells):
    """One defense; attacks by name: ``pgd`` (gradients, minimal), ``bounded`` (gradients, ball of 1.5), ``boundary``
    (decisions), each with distances and, after them, columns."""
    maker = RunMaker(["abs"], 10)
    maker.attack("pgd", ["L2"])
    maker.attack("bounded", ["L2"], kind="bounded")
    maker.attack("boundary", ["L2"], access="decision")
    for attack, (distances, columns) in cells.items():
        maker.cell("abs", attack, "L2", distances, **columns)
    return maker.make()


def doubts(made):
    return [(attack, doubt.sign, doubt.detail) for _, _, attack, doubt in evidence(made)]


def test_a_sound_run_has_no_doubts():
    made = run(pgd=(FOUND, {}), bounded=([INF] * 5 + [1.5] * 5, {}), boundary=([2.0] * 10, {}))
    assert doubts(made) == []
    table = masking_table(made)
    assert len(table.frame) == 0
    assert table.caption.endswith("Nothing was found.")


def test_gradients_that_are_zero_are_named_at_the_attack_and_at_the_defense():
    made = run(pgd=(FOUND, {"useless_gradients": [0.5] * 2 + [0.0] * 8}))
    assert doubts(made) == [
        (None, USELESS_GRADIENTS, "10% of the derivatives"),
        ("pgd", USELESS_GRADIENTS, "10% of the derivatives"),
    ]
    assert doubts(run(pgd=(FOUND, {"useless_gradients": [0.5] + [0.0] * 9}))) == []


def test_a_defense_without_gradients_says_why():
    maker = RunMaker(["abs"], 2)
    maker.attack("pgd", ["L2"])
    maker.attack("boundary", ["L2"], access="decision")
    maker.na("abs", "pgd", "L2", "gives decision access only")
    maker.cell("abs", "boundary", "L2", [1.0, 2.0])
    assert doubts(maker.make()) == [(None, NO_GRADIENTS, "gives decision access only")]
    assert doubts(run(boundary=(FOUND, {}))) == [(None, NO_GRADIENTS, "none is in the matrix")]


def test_gradient_attacks_that_have_not_run_yet_are_not_missing():
    maker = RunMaker(["abs"], 1)
    maker.attack("pgd", ["L2"])
    maker.attack("boundary", ["L2"], access="decision")
    maker.cell("abs", "pgd", "L2")
    maker.cell("abs", "boundary", "L2", [1.0])
    assert doubts(maker.make()) == []


@pytest.mark.parametrize(
    ("without", "doubted"),
    [
        ([0.9] * 5 + [1.0] * 5, True),  # five wins of five: p = 1/32
        ([0.9] * 4 + [1.0] * 6, False),  # four of four: p = 1/16
        ([0.9] * 7 + [1.1] * 3, False),  # seven of ten: p = .17
        ([0.995] * 10, False),  # no closer than the margin
        ([0.9] * 9 + [INF], True),
        ([INF] * 10, False),
    ],
)
def test_attacks_without_gradients_that_are_stronger(without, doubted):
    made = run(pgd=(FOUND, {}), boundary=(without, {}))
    assert [sign for _, sign, _ in doubts(made)] == [BEATEN] * doubted


def test_only_the_gradient_attacks_together_have_to_find_all():
    maker = RunMaker(["abs"], 2)
    for name in ("fgm", "pgd"):
        maker.attack(name, ["L2"])
    maker.cell("abs", "fgm", "L2", [INF, 2.0])
    maker.cell("abs", "pgd", "L2", [1.0, 1.0])
    assert doubts(maker.make()) == [("fgm", NOT_AT_ANY_DISTANCE, "1 of 2 images")]


def test_what_no_gradient_attack_finds_at_any_distance_is_the_defenses_doubt():
    made = run(pgd=([INF] + [1.0] * 9, {}), boundary=([2.0] * 10, {}))
    assert doubts(made) == [
        (None, NOT_AT_ANY_DISTANCE, "1 of 10 images"),
        ("pgd", NOT_AT_ANY_DISTANCE, "1 of 10 images"),
    ]


def test_a_decision_attack_that_fails_is_no_sign():
    assert doubts(run(pgd=(FOUND, {}), boundary=([INF] * 10, {}))) == []


@pytest.mark.parametrize(
    ("distances", "found_after", "doubted"),
    [
        ([1.5] * 5 + [INF] * 5, [71.0] + [10.0] * 4 + [INF] * 5, True),  # 140 passes on what is not broken
        ([1.5] * 5 + [INF] * 5, [70.0] + [10.0] * 4 + [INF] * 5, False),
        ([1.5] * 10, [140.0] * 10, False),  # nothing is left that more could break
    ],
)
def test_a_bounded_attack_that_still_breaks_images_in_its_second_half(distances, found_after, doubted):
    made = run(pgd=(FOUND, {}), bounded=(distances, {"found_after": found_after}))
    assert [(attack, sign) for attack, sign, _ in doubts(made)] == [("bounded (ε=1.5)", LATE)] * doubted


def test_success_that_vanishes_on_fresh_draws():
    columns = {"claimed": [True] * 10, "success_rate": 0.3}
    assert doubts(run(pgd=(FOUND, {}), bounded=([INF] * 9 + [1.5], columns))) == [
        ("bounded (ε=1.5)", VANISHED, "9 of 10 images")
    ]


def test_a_librarys_warnings_are_passed_on_once():
    made = run(pgd=(FOUND, {"remarks": ["it seems to be randomized"] * 5 + [""] * 5}))
    assert doubts(made) == [("pgd", REMARKS, "it seems to be randomized")]


def test_clean_errors_and_failures_are_not_evidence():
    columns = {"useless_gradients": [1.0, 1.0] + [0.0] * 8, "claimed": True, "remarks": ["x", "x"] + [""] * 8}
    made = run(pgd=([0.0, NAN] + [1.0] * 8, {"reasons": {1: "exception"}, **columns}))
    assert doubts(made) == []


def test_numbers_wear_daggers_with_reasons():
    maker = RunMaker(["cnn", "abs"], 10)
    maker.attack("pgd", ["L2"])
    maker.attack("boundary", ["L2"], access="decision")
    for attack in ("pgd", "boundary"):
        maker.cell("cnn", attack, "L2", FOUND)
    maker.cell("abs", "pgd", "L2", [INF] + [1.0] * 9)
    maker.cell("abs", "boundary", "L2", np.full(10, 0.5))
    made = maker.make()
    summary, mcnemar = summary_table(made, "L2").frame, mcnemar_table(made, "L2").frame
    assert summary.loc["pgd", "abs"].doubts == (NOT_AT_ANY_DISTANCE,)
    assert summary.loc["boundary", "abs"].doubts == ()
    assert summary.loc["All L2 attacks", "abs"].doubts == (BEATEN, NOT_AT_ANY_DISTANCE)
    assert all(cell.doubts == () for cell in summary["cnn"])
    assert mcnemar.loc["abs", "cnn"].doubts == (f"abs: {BEATEN}", f"abs: {NOT_AT_ANY_DISTANCE}")
    rows = masking_table(made).frame
    assert [
        (defense, *(cell.text for cell in row)) for defense, row in zip(rows.index, rows.to_numpy(), strict=True)
    ] == [
        ("abs", "L2", BEATEN, "all attacks: on 10 of 10 images, and farther ones on 0"),
        ("abs", "L2", NOT_AT_ANY_DISTANCE, "all attacks: 1 of 10 images, pgd: 1 of 10 images"),
    ]
