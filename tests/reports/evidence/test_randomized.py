"""What tables say of defenses whose answers are random: three protocols, the judge's bound, undecided images."""

import numpy as np
import pytest
from reading import table_of, values
from statsmodels.stats.proportion import proportion_confint
from synthetic_runs import INF, NAN, RunMaker, every_status, replaced

from reports.measures.measure import measure
from reports.render.csv import to_csv
from reports.render.leaderboard import leaderboard
from reports.render.printing import print_numbers
from reports.statistics.estimates import MISSING
from reports.statistics.protocols import share_interval

ALL = "All L2 attacks"


def made(samples=4, **attacks):
    """A randomized defense beside a deterministic one; each attack with distances and columns."""
    maker = RunMaker(["eabs", "cnn"], samples)
    maker.randomize("eabs")
    for attack, (distances, columns) in attacks.items():
        maker.attack(attack, ["L2"])
        maker.cell("eabs", attack, "L2", distances, **columns)
        maker.cell("cnn", attack, "L2", distances)
    return maker


@pytest.fixture
def maker():
    """At 1.5 the majority is wrong on the first two of four images; `b` has the likelier images on the last two."""
    a = {"likely_rate": [0.9, 0.9, 0.1, 0.05], "likely_errors": [20, 15, 2, 0]}
    b = {"likely_rate": [0.8, 0.9, 0.3, 0.25], "likely_errors": [20, 10, 4, 5]}
    return made(a=([0.0, 1.0, INF, INF], a), b=([0.0, 1.2, INF, 9.0], b))


def protocols_of(run, row, defense="eabs"):
    """Majority, one draw and best of 10, each with its interval."""
    table = table_of(run, "strength", "L2")
    assert [q.name for q in table.quantities] == ["median", "accuracy", "one draw", "best of 10", "passes", "seconds"]
    shown = table.row(row)[defense].values
    return tuple(shown.get(name, MISSING) for name in ("accuracy", "one draw", "best of 10"))


def test_an_attack_is_judged_by_majority_one_draw_and_best_of_n(maker):
    """Of 20 draws with 2 errors, ten have none with probability (10 * 9) / (20 * 19)."""
    majority, one_draw, best = protocols_of(maker.make(), "a")
    assert majority[0] == 0.5
    shares = [0, 0.25, 0.9, 1]
    assert one_draw == share_interval(shares)
    assert one_draw[0] == pytest.approx(np.mean(shares))
    assert best == pytest.approx(share_interval([0, 0, 90 / 380, 1]))


def test_all_attacks_take_each_samples_attack_by_the_choosing_draws(maker):
    """Sample 0 from a; of sample 1, on which they tie, the first; samples 2 and 3 from b."""
    _, one_draw, best = protocols_of(maker.make(), ALL)
    assert one_draw[0] == pytest.approx(np.mean([0, 0.25, 0.8, 0.75]))
    survived = [
        0,
        0,
        np.prod([(16 - i) / (20 - i) for i in range(10)]),
        np.prod([(15 - i) / (20 - i) for i in range(10)]),
    ]
    assert best[0] == pytest.approx(np.mean(survived))


def test_the_order_of_attacks_decides_nothing_but_ties(maker):
    run = maker.make()
    run.records["likely_rate"] = run.records["likely_rate"].replace(0.9, 0.91).where(run.records["attack"] == "a", 0.95)
    assert protocols_of(run, ALL)[1][0] == pytest.approx(np.mean([0, 0.5, 0.8, 0.75]))


def test_where_all_samples_agree_intervals_are_wilsons():
    run = made(a=([INF] * 4, {"likely_errors": 0})).make()
    for protocol in protocols_of(run, "a"):
        assert protocol == pytest.approx((1, *proportion_confint(4, 4, method="wilson")))


def test_images_without_a_result_count_for_no_protocol():
    """Also where the clean image was drawn before the attack failed."""
    columns = {"likely_errors": [0, 0, 20, 10], "likely_draws": [0, 20, 20, 20], "reasons": {0: "non_finite"}}
    run = made(a=([NAN, NAN, 1.0, INF], columns)).make()
    for row in ("a", ALL):
        assert protocols_of(run, row)[1][0] == pytest.approx(np.mean([0, 0.5]))


def test_of_a_deterministic_defense_the_protocols_are_its_accuracy_and_stand_nowhere_else(maker):
    majority, *others = protocols_of(maker.make(), "a", "cnn")
    assert majority[0] == 0.5
    assert np.isnan(others).all()
    table = table_of(maker.make(), "strength", "L2")
    text = print_numbers(table.row("a")["cnn"].values, table.quantities)
    assert text.endswith("50% [15%, 85%] / 140 / 0.50")


def test_without_randomized_defenses_nothing_is_said_of_them():
    run = every_status()
    for table in (table_of(run, "summary", "L2"), table_of(run, "strength", "L2"), table_of(run, "mcnemar", "L2")):
        assert "andomized" not in table.caption
        assert "one draw" not in to_csv(table)


def test_the_protocols_are_explained_with_the_number_of_resubmissions(maker):
    run = replaced(maker.make(), resubmissions=5)
    table = table_of(run, "strength", "L2")
    assert "best of 5 the expected share of samples for which all of 5 submissions are answered right" in table.caption
    assert "eabs best of 5 low" in to_csv(table)
    assert "eabs one draw" in to_csv(table)


def test_each_cells_bound_and_that_of_a_row_of_several_are_stated(maker):
    run = maker.make()
    for table in (
        table_of(run, "summary", "L2"),
        table_of(run, "strength", "L2"),
        table_of(run, "mcnemar", "L2"),
        table_of(run, "baseline", "L2", baseline="cnn"),
        table_of(run, "accuracy"),
    ):
        assert "below one half with probability at most α = 0.1 %; a row over m cells does so with at most m α." in (
            table.caption
        )
    notes = ("over m = 2 cells: broken by mistake with probability at most m α = 0.2 % per sample",)
    assert table_of(run, "summary", "L2").row(ALL)["eabs"].notes == notes
    assert table_of(run, "strength", "L2").row(ALL)["eabs"].notes == notes
    assert table_of(run, "summary", "L2").row(ALL)["cnn"].notes == ()


def test_cells_that_have_not_run_are_not_in_the_bound(maker):
    maker.attack("c", ["L2"])
    maker.cell("eabs", "c", "L2")
    assert any("m = 2 cells" in note for note in table_of(maker.make(), "summary", "L2").row(ALL)["eabs"].notes)


def test_what_not_found_says_of_a_randomized_defense_is_stated(maker):
    run = maker.make()
    for table in (table_of(run, "summary", "L2"), table_of(run, "strength", "L2")):
        assert "no tested candidate reaches P(misclassified) = .65" in table.caption
        assert "one between .5 and .65 may be given up (p = .55: in 75 % of cases)" in table.caption


def test_undecided_images_are_counted_and_not_broken():
    """For all attacks only those that no attack broke."""
    undecided = ["undecided", "undecided", "found", "not_found"]
    run = made(
        a=([INF, INF, 1.0, INF], {"status": undecided}),
        b=([1.0, INF, INF, INF], {"status": ["found"] + ["not_found"] * 3}),
    ).make()
    shown = table_of(run, "summary", "L2")
    assert values(shown.row("a")["eabs"])["accuracy"] == 0.75
    assert shown.row("a")["eabs"].notes == ("2 of 4 undecided",)
    assert shown.row("b")["eabs"].notes == ()
    assert values(shown.row(ALL)["eabs"])["accuracy"] == 0.5
    assert shown.row(ALL)["eabs"].notes[0] == "1 of 4 undecided"
    assert table_of(run, "strength", "L2").row("a")["eabs"].notes == ("2 of 4 undecided",)


def test_a_run_of_the_old_schema_has_no_protocols_and_no_bound(maker):
    maker.schema = 2
    maker.cells.clear()
    maker.frames.clear()
    maker.cell("eabs", "a", "L2", [INF] * 4)
    run = maker.make()
    assert [q.name for q in table_of(run, "strength", "L2").quantities] == ["median", "accuracy", "passes", "seconds"]
    assert "α" not in table_of(run, "summary", "L2").caption
    assert leaderboard(measure(run), measure(run).norms["L2"])["resubmissions"] is None
