"""Each sign of masked gradients is seen where it is, and nowhere else."""

import numpy as np
import pytest
from reading import table_of
from synthetic_runs import INF, NAN, RunMaker

from reports.evidence.masking import evidence
from reports.evidence.signs import (
    BEATEN,
    CUT_SHORT,
    FAILED,
    FALLING,
    LATE,
    NEVER,
    NO_GRADIENT_FREE,
    NO_GRADIENTS,
    NON_FINITE,
    NOT_UNROLLED,
    OLD_RULE,
    REMARKS,
    SMALL_BUDGET,
    UNBROKEN,
    USELESS_GRADIENTS,
    VANISHED,
)

FOUND = [1.0] * 10
ATTACKS = {"pgd": "gradient", "boundary": "decision", "pgd_ball": "gradient", "square_ball": "score"}


def make(**cells):
    """One defense and the attacks given: ``pgd`` and ``boundary`` minimal, the others in a ball of 1.5; each with
    distances and, after them, columns. Where all have the defense's gradients, ``boundary`` tries too and breaks
    nothing."""
    maker = RunMaker(["abs"], 10)
    if all(ATTACKS[attack] == "gradient" for attack in cells):
        cells = {**cells, "boundary": ([INF] * 10, {})}
    for attack, (distances, columns) in cells.items():
        kind = "bounded" if attack.endswith("ball") else "minimal"
        maker.attack(attack, ["L2"], kind=kind, access=ATTACKS[attack])
        maker.cell("abs", attack, "L2", distances, **columns)
    return maker.make()


def doubts(made):
    return [(attack, doubt.sign, doubt.detail) for _, _, attack, doubt in evidence(made)]


def test_a_sound_run_has_no_doubts():
    made = make(pgd=(FOUND, {}), pgd_ball=([INF] * 5 + [1.5] * 5, {}), boundary=([2.0] * 10, {}))
    assert doubts(made) == []
    table = table_of(made, "masking")
    assert len(table.frame) == 0
    assert table.caption.endswith("Nothing was found.")


def test_gradients_that_are_zero_are_named_at_the_attack_and_at_the_defense():
    made = make(pgd=(FOUND, {"useless_gradients": [0.5] * 2 + [0.0] * 8}))
    sign = (USELESS_GRADIENTS, "10% of the derivatives")
    assert doubts(made) == [(None, *sign), ("pgd", *sign)]
    assert doubts(make(pgd=(FOUND, {"useless_gradients": [0.5] + [0.0] * 9}))) == []


def test_images_count_by_the_derivatives_that_were_asked_of_them():
    """Nine images need one good derivative each, the tenth gets ninety-one useless ones."""
    columns = {"useless_gradients": [0.0] * 9 + [1.0], "backwards": [1.0] * 9 + [91.0]}
    assert doubts(make(pgd=(FOUND, columns)))[0] == (None, USELESS_GRADIENTS, "91% of the derivatives")


@pytest.mark.parametrize(
    ("access", "distances", "norm", "doubted"),
    [
        ("unrolled", 1.0, "L2", False),
        ("unrolled", NAN, "L2", True),  # It failed.
        ("score", 1.0, "L2", True),
        ("score", 1.0, "L0", False),
    ],
)
def test_a_defense_that_optimizes_wants_an_attack_that_goes_through_that(access, distances, norm, doubted):
    maker = RunMaker(["eabs", "cnn"], 2)
    maker.families = {"eabs": {"unrolled": True}}
    maker.attack("eot_pgd", [norm])
    maker.attack("other", [norm], access=access)
    maker.attack("boundary", [norm], access="decision")
    reasons = {0: "exception", 1: "exception"} if np.isnan(distances) else {}
    for defense in ("eabs", "cnn"):
        maker.cell(defense, "eot_pgd", norm, [1.0] * 2)
        maker.cell(defense, "boundary", norm, [1.0] * 2)
        maker.cell(defense, "other", norm, [distances] * 2, reasons=reasons)
    signs = [(defense, doubt.sign) for defense, _, _, doubt in evidence(maker.make())]
    assert signs == ([("eabs", NOT_UNROLLED)] if doubted else [])


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        ({"unrolled": True, "optimizes": True}, "gradients hold its end fixed"),
        ({"unrolled": True}, "gradients hold its end fixed"),  # A run from before `optimizes`.
        ({"optimizes": True}, "the defense gives no gradient through it"),
        ({}, None),
    ],
)
def test_a_defense_that_optimizes_is_doubted_for_one_of_two_reasons(entry, detail):
    maker = RunMaker(["abs"], 2)
    maker.families = {"abs": entry}
    maker.attack("pgd", ["L2"])
    maker.attack("unrolled_pgd", ["L2"], access="unrolled")
    maker.attack("boundary", ["L2"], access="decision")
    maker.cell("abs", "pgd", "L2", [1.0] * 2)
    maker.na("abs", "unrolled_pgd", "L2", "gives no gradient through an optimization")
    maker.cell("abs", "boundary", "L2", [1.0] * 2)
    assert doubts(maker.make()) == ([] if detail is None else [(None, NOT_UNROLLED, detail)])


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda maker: maker.na("abs", "pgd", "L2", "gives decision access only"), "gives decision access only"),
        (lambda maker: maker.cell("abs", "pgd", "L2", [NAN] * 2, reasons={0: "exception", 1: "exception"}), "failed"),
        (lambda maker: None, "none is in the matrix"),
    ],
)
def test_a_defense_that_no_gradient_attack_has_a_result_for_says_why(prepare, why):
    maker = RunMaker(["abs"], 2)
    maker.attack("pgd", ["L2"])
    maker.attack("boundary", ["L2"], access="decision")
    maker.attack("latent_descent", ["L2"], access="latent")
    maker.cell("abs", "boundary", "L2", [1.0, 2.0])
    maker.na("abs", "latent_descent", "L2", "has no reconstructions")
    prepare(maker)
    assert doubts(maker.make()) == [(None, NO_GRADIENTS, why)]


def test_gradient_attacks_that_have_not_run_yet_are_neither_missing_nor_beaten():
    maker = RunMaker(["abs"], 10)
    for name in ("fgm", "pgd"):
        maker.attack(name, ["L2"])
    maker.attack("boundary", ["L2"], access="decision")
    maker.cell("abs", "fgm", "L2", [3.0] * 10)
    maker.cell("abs", "pgd", "L2")
    maker.cell("abs", "boundary", "L2", FOUND)
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
def test_attacks_without_gradients_that_come_closer(without, doubted):
    made = make(pgd=(FOUND, {}), boundary=(without, {}))
    assert [sign for _, sign, _ in doubts(made)] == [BEATEN] * doubted


@pytest.mark.parametrize("attack", ["boundary", "square_ball"])
def test_attacks_without_gradients_that_break_what_bounded_ones_with_them_leave(attack):
    """A minimal attack's adversarial within the ball counts as well as a bounded one's."""
    left = [INF] * 5 + [1.5] * 5
    made = make(pgd_ball=(left, {}), **{attack: ([1.4] * 10, {})})
    assert doubts(made) == [(None, BEATEN, "within ε = 1.5 on 5 of 10 images, the other way round on 0")]
    assert doubts(make(pgd_ball=(left, {}), **{attack: ([1.6] * 4 + [1.4] * 6, {})})) == []


def test_images_that_an_attack_failed_on_are_not_compared():
    reasons = dict.fromkeys(range(6), "timeout")
    made = make(pgd=([NAN] * 6 + [1.0] * 4, {"reasons": reasons}), boundary=([0.5] * 10, {}))
    assert doubts(made) == []


def test_only_the_gradient_attacks_together_have_to_break_all():
    maker = RunMaker(["abs"], 2)
    for name in ("fgm", "pgd", "boundary"):
        maker.attack(name, ["L2"], access="decision" if name == "boundary" else "gradient")
    maker.cell("abs", "fgm", "L2", [INF, INF])
    maker.cell("abs", "pgd", "L2", [1.0, 1.0])
    maker.cell("abs", "boundary", "L2", [2.0, 2.0])
    assert doubts(maker.make()) == []


def test_a_defense_that_no_gradient_free_attack_met_says_so():
    """Gradients that mislead go unnoticed where every attack follows them."""
    maker = RunMaker(["abs"], 2)
    maker.attack("pgd", ["L2", "Linf"])
    maker.attack("boundary", ["L2"], access="decision")
    maker.attack("square", ["Linf"], access="score")
    maker.attack("transfer", ["Linf"], access="transfer")
    for attack, norms in (("pgd", ["L2", "Linf"]), ("boundary", ["L2"]), ("transfer", ["Linf"])):
        for norm in norms:
            maker.cell("abs", attack, norm, [1.0] * 2)
    maker.na("abs", "square", "Linf", "gives decision access only")
    assert doubts(maker.make()) == [(None, NO_GRADIENT_FREE, "gives decision access only")]


def test_a_gradient_free_attack_that_has_not_run_yet_is_not_missing():
    maker = RunMaker(["abs"], 2)
    maker.attack("pgd", ["L2"])
    maker.attack("boundary", ["L2"], access="decision")
    maker.cell("abs", "pgd", "L2", [1.0] * 2)
    maker.cell("abs", "boundary", "L2")
    assert doubts(maker.make()) == []


@pytest.mark.parametrize(
    ("misled", "columns", "others", "doubted"),
    [
        ([0.0] + [INF] * 9, {}, [0.0] + [1.0] * 3 + [INF] * 6, True),
        ([0.0] + [INF] * 9, {}, [0.0] + [1.0] * 2 + [INF] * 7, False),  # too few images to say "never"
        ([0.0] + [INF] * 8 + [9.0], {}, [1.0] * 10, False),
        ([INF] * 10, {"status": "budget"}, [1.0] * 10, False),
        ([INF] * 10, {"claimed": True}, [1.0] * 10, False),  # what it found did not hold, which is another doubt
        ([INF] * 10, {}, [0.0] * 10, False),  # clean errors are no success of others
    ],
)
def test_a_minimal_gradient_attack_that_never_succeeds_where_others_do(misled, columns, others, doubted):
    found = doubts(make(pgd=(misled, columns), boundary=(others, {})))
    count = sum(0 < distance < INF for distance in others)
    assert [doubt for doubt in found if doubt[1] == NEVER] == [("pgd", NEVER, f"0 of {count} images")] * doubted


def test_a_minimal_gradient_attack_that_never_succeeds_where_no_other_could():
    """Gradients that mislead every attack leave its own row in doubt, too."""
    maker = RunMaker(["abs"], 4)
    for attack in ("deepfool", "pgd"):
        maker.attack(attack, ["L2"])
        maker.cell("abs", attack, "L2", [0.0] + [INF] * 3)
    assert doubts(maker.make()) == [
        (None, UNBROKEN, "3 of 3 images"),
        (None, NO_GRADIENT_FREE, "none is in the matrix"),
        ("deepfool", NEVER, "0 of 3 images"),
        ("pgd", NEVER, "0 of 3 images"),
    ]


def test_an_attack_without_gradients_or_in_a_ball_may_break_nothing():
    made = make(pgd=(FOUND, {}), pgd_ball=([INF] * 10, {}), boundary=([INF] * 10, {}))
    assert doubts(made) == []


def settings(first, second, **differing):
    """A bounded attack twice, with distances, and with two values of what differs."""
    maker = RunMaker(["abs"], 20)
    ((name, values),) = differing.items()
    for label, value, distances in zip(("a", "b"), values, (first, second), strict=True):
        maker.attack(f"square:{label}", ["L2"], kind="bounded", access="score", **{"restarts": 1, name: value})
        maker.cell("abs", f"square:{label}", "L2", distances, found_after=1.0)
    maker.attack("pgd", ["L2"])
    maker.cell("abs", "pgd", "L2", [1.0] * 20)
    return maker


MANY, FEW = [1.4] * 7 + [INF] * 13, [INF] * 20  # seven of seven: p = 1/128


@pytest.mark.parametrize(
    ("first", "second", "steps", "doubted"),
    [
        (MANY, FEW, (10, 100), "square:b (ε=1.5)"),
        (FEW, MANY, (100, 10), "square:a (ε=1.5)"),
        (FEW, MANY, (10, 100), None),
        (MANY, FEW, (10, 10), None),
        ([1.4] * 6 + [INF] * 14, FEW, (10, 100), None),  # six of six: p = 1/64
        ([1.4] * 11 + [INF] * 9, [INF] * 10 + [1.4] * 3 + [INF] * 7, (10, 100), None),  # ten of twelve: p = .019
        ([1.4] * 7 + [INF] * 13, [NAN] * 6 + [INF] * 14, (10, 100), None),  # on images that both have a result for
    ],
)
def test_a_response_that_falls_where_steps_grow(first, second, steps, doubted):
    maker = settings(first, second, steps=steps)
    found = [(attack, detail) for attack, sign, detail in doubts(maker.make()) if sign == FALLING]
    assert found == ([(doubted, "0 of 20 images, 7 with 10 steps instead of 100")] if doubted else [])


@pytest.mark.parametrize(
    ("epsilons", "doubted"), [((0.5, 1.5), "square:b (ε=1.5)"), ((1.5, 0.5), None), ((1.5, 1.5), None)]
)
def test_a_response_that_falls_where_epsilon_grows(epsilons, doubted):
    maker = settings([0.5] * 7 + [INF] * 13, FEW, binary_search_steps=(1, 1))
    for cell, epsilon in zip(maker.cells, epsilons, strict=False):
        cell["epsilon"] = epsilon
    found = [(attack, detail) for attack, sign, detail in doubts(maker.make()) if sign == FALLING]
    assert found == ([(doubted, "0 of 20 images, 7 with epsilon 0.5 instead of 1.5")] if doubted else [])


def test_what_differs_in_anything_else_is_not_compared():
    for differing in ({"restarts": (1, 9)}, {"draws": (1, 9)}):
        assert FALLING not in [sign for _, sign, _ in doubts(settings(MANY, FEW, **differing).make())]
    dearer = settings(MANY, FEW, steps=(10, 100))
    dearer.cells[1]["budget"] = 9
    assert FALLING not in [sign for _, sign, _ in doubts(dearer.make())]


def test_a_minimal_attack_falls_where_more_steps_break_fewer_within_the_threshold():
    maker = settings([1.0] * 20, [1.6] * 20, steps=(10, 100))
    for cell in maker.cells:
        cell["epsilon"] = None
    found = [attack for attack, sign, _ in doubts(maker.make()) if sign == FALLING]
    assert found == ["square:b"]


def test_candidates_without_finite_logits_are_counted():
    made = make(pgd=(FOUND, {"non_finite": [3, 2] + [0] * 8}))
    sign = (NON_FINITE, "5 candidates of 2 images")
    assert doubts(made) == [(None, *sign), ("pgd", *sign)]


@pytest.mark.parametrize(
    ("failing", "others", "doubted"),
    [
        ([NAN] * 3 + [1.0] * 7, [INF] * 2 + [1.0] * 8, "2 of 10 images"),
        ([NAN] * 3 + [1.0] * 7, [INF] + [1.0] * 9, None),  # a single image may
        ([NAN] * 3 + [1.0] * 7, [NAN] * 3 + [1.0] * 7, None),  # they count for nothing
    ],
)
def test_images_that_count_as_not_broken_although_attacks_failed_on_them(failing, others, doubted):
    reasons = {"reasons": dict.fromkeys(range(3), "exception")}
    found = doubts(make(pgd=(failing, reasons), boundary=(others, reasons)))
    assert [(attack, detail) for attack, sign, detail in found if sign == FAILED] == [(None, doubted)] * bool(doubted)


def test_an_image_that_is_undecided_has_not_vanished():
    made = make(
        pgd_ball=([INF] * 9 + [1.5], {"claimed": True, "status": ["undecided"] * 9 + ["found"]}), pgd=(FOUND, {})
    )
    assert VANISHED not in [sign for _, sign, _ in doubts(made)]


def test_each_number_of_a_randomized_defense_judged_by_the_old_rule_says_so():
    maker = RunMaker(["cnn", "eabs"], 4)
    maker.schema = 2
    maker.randomize("eabs")
    for attack, access in (("pgd", "gradient"), ("boundary", "decision")):
        maker.attack(attack, ["L2"], access=access)
        for defense in ("cnn", "eabs"):
            maker.cell(defense, attack, "L2", [1.0] * 4)
    made = maker.make()
    assert [(defense, attack, doubt.sign, doubt.detail) for defense, _, attack, doubt in evidence(made)] == [
        ("eabs", None, OLD_RULE, "2 of 2 cells"),
        ("eabs", "pgd", OLD_RULE, "1 of 1 cells"),
        ("eabs", "boundary", OLD_RULE, "1 of 1 cells"),
    ]
    for table in (table_of(made, "summary", "L2"), table_of(made, "strength", "L2"), table_of(made, "ranking", "L2")):
        assert {cell.doubts for cell in table.frame["eabs"]} == {(OLD_RULE,)}
        assert {cell.doubts for cell in table.frame["cnn"]} == {()}
    assert table_of(made, "mcnemar", "L2").frame.loc["eabs", "cnn"].doubts == (f"eabs: {OLD_RULE}",)
    maker.schema = 3
    maker.cells.clear()
    maker.frames.clear()
    for attack in maker.attacks:
        maker.cell("eabs", attack, "L2", [1.0] * 4)
    assert doubts(maker.make()) == []


def test_what_no_gradient_attack_breaks_at_any_distance_is_the_defenses_doubt():
    made = make(pgd=([INF] + [1.0] * 9, {}), boundary=([2.0] * 10, {}))
    assert doubts(made) == [(None, UNBROKEN, "1 of 10 images")]


@pytest.mark.parametrize(
    "columns",
    [{"status": "budget"}, {"claimed": [True] + [False] * 9}],
    ids=["its budget ended it", "it did find something"],
)
def test_an_image_that_the_attack_did_not_give_up_is_not_unbroken_at_any_distance(columns):
    assert UNBROKEN not in [sign for _, sign, _ in doubts(make(pgd=([INF] + [1.0] * 9, columns)))]


def test_a_decision_attack_that_fails_is_no_sign():
    assert doubts(make(pgd=(FOUND, {}), boundary=([INF] * 10, {}))) == []


@pytest.mark.parametrize(
    ("distances", "found_after", "doubted"),
    [
        ([1.5] * 5 + [INF] * 5, [106.0] * 2 + [10.0] * 3 + [INF] * 5, True),  # 140 passes on what is not broken
        ([1.5] * 5 + [INF] * 5, [105.0] * 2 + [10.0] * 3 + [INF] * 5, False),
        ([1.5] * 5 + [INF] * 5, [140.0] + [10.0] * 4 + [INF] * 5, False),  # a single image may
        ([1.5] * 5 + [INF] * 5, [NAN] * 5 + [INF] * 5, False),  # a library hides it
        ([1.5] * 10, [140.0] * 10, False),  # nothing is left that more could break
    ],
)
def test_a_bounded_attack_that_still_breaks_images_at_its_end(distances, found_after, doubted):
    made = make(pgd=(FOUND, {}), pgd_ball=(distances, {"found_after": found_after}))
    assert [(attack, sign) for attack, sign, _ in doubts(made)] == [("pgd_ball (ε=1.5)", LATE)] * doubted


def test_an_adversarial_that_the_attack_handed_in_without_asking_is_not_late():
    columns = {"found_after": INF, "claimed": False}
    assert doubts(make(pgd=(FOUND, {}), pgd_ball=([1.5] * 5 + [INF] * 5, columns))) == []


def test_a_budget_that_ends_the_attack():
    """Also where it found something: it might have come closer."""
    status = ["budget"] * 2 + ["found"] * 8
    assert doubts(make(pgd=(FOUND, {"status": status}))) == [("pgd", CUT_SHORT, "2 of 10 images")]
    assert doubts(make(pgd=(FOUND, {"status": ["budget"] + ["found"] * 9}))) == []


@pytest.mark.parametrize(("budget", "doubted"), [(999, True), (1000, False)])
def test_a_budget_below_the_reference(budget, doubted):
    made = make(pgd=(FOUND, {"budget": budget, "reference_budget": 1000}))
    assert doubts(made) == [("pgd", SMALL_BUDGET, "999 of 1,000 passes")] * doubted


def test_success_that_vanishes_on_fresh_draws():
    columns = {"claimed": True, "success_rate": 0.3}
    sign = (VANISHED, "9 of 10 images")
    assert doubts(make(pgd_ball=([INF] * 9 + [1.5], columns))) == [(None, *sign), ("pgd_ball (ε=1.5)", *sign)]


def test_what_another_attack_broke_has_not_vanished_for_the_defense():
    made = make(pgd=(FOUND, {}), pgd_ball=([INF] * 9 + [1.5], {"claimed": True}))
    assert [attack for attack, *_ in doubts(made)] == ["pgd_ball (ε=1.5)"]


def test_warnings_are_passed_on_once():
    made = make(pgd=(FOUND, {"remarks": ["strange; flat"] * 3 + ["flat; odd"] * 2 + [""] * 5}))
    assert doubts(made) == [(None, REMARKS, "strange; flat; odd"), ("pgd", REMARKS, "strange; flat; odd")]


def test_clean_errors_and_failures_are_not_evidence():
    columns = {"useless_gradients": [1.0, 1.0] + [0.0] * 8, "claimed": True, "remarks": ["x", "x"] + [""] * 8}
    made = make(pgd=([0.0, NAN] + [1.0] * 8, {"reasons": {1: "exception"}, **columns}))
    assert doubts(made) == []


def test_numbers_wear_daggers_with_reasons():
    maker = RunMaker(["cnn", "abs"], 10)
    maker.attack("pgd", ["L2"])
    maker.attack("boundary", ["L2"], access="decision")
    for attack in ("pgd", "boundary"):
        maker.cell("cnn", attack, "L2", FOUND)
    maker.cell("abs", "pgd", "L2", [INF] + [1.0] * 9, useless_gradients=1.0)
    maker.cell("abs", "boundary", "L2", np.full(10, 0.5))
    made = maker.make()
    summary, mcnemar = table_of(made, "summary", "L2").frame, table_of(made, "mcnemar", "L2").frame
    assert summary.loc["pgd", "abs"].doubts == (USELESS_GRADIENTS,)
    assert summary.loc["boundary", "abs"].doubts == ()
    assert summary.loc["All L2 attacks", "abs"].doubts == (USELESS_GRADIENTS, BEATEN, UNBROKEN)
    assert all(cell.doubts == () for cell in summary["cnn"])
    assert mcnemar.loc["abs", "cnn"].doubts == (
        f"abs: {USELESS_GRADIENTS}",
        f"abs: {BEATEN}",
        f"abs: {UNBROKEN}",
    )
    rows = table_of(made, "masking").frame
    texts = [(defense, *(cell.text for cell in row)) for defense, row in zip(rows.index, rows.to_numpy(), strict=True)]
    assert texts == [
        ("abs", "L2", USELESS_GRADIENTS, "all attacks: 100% of the derivatives, pgd: 100% of the derivatives"),
        ("abs", "L2", BEATEN, "all attacks: on 10 of 10 images, the other way round on 0"),
        ("abs", "L2", UNBROKEN, "all attacks: 1 of 10 images"),
    ]
