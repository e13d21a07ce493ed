import numpy as np
import pytest
from reports.tables.accuracies import accuracy_table
from reports.tables.appendix import attacks_table, cost_table, defenses_table
from reports.tables.pairwise import mcnemar_table
from reports.tables.studies import bracket_table, detection_table, distal_table
from synthetic_runs import INF, NAN, RunMaker, every_status

from reports.evidence.problems import problems, refuted_certificates
from reports.statistics.distances import accuracy_interval
from reports.tables.ranking import ranking_table
from reports.tables.strength import strength_table
from reports.tables.summary import summary_table


@pytest.fixture(scope="module")
def run():
    return every_status()


def cell(table, row, column):
    return table.frame.loc[row, column]


def test_rows_and_columns_stand_in_the_manifests_order(run):
    table = summary_table(run, "Linf")
    assert list(table.frame.index) == ["clean", "pgd", "pgd:bounded (ε=0.3)", "All L∞ attacks"]
    assert list(table.frame.columns) == ["cnn", "binary_cnn", "nearest_neighbour"]


def test_norms_stand_in_the_order_of_the_thresholds(run):
    assert run.norms == ["L2", "Linf", "L0"]


def test_a_cell_is_median_and_accuracy_at_the_threshold(run):
    assert cell(summary_table(run, "L2"), "pgd", "cnn").values == (1.0, 0.2)


def test_the_clean_row_is_an_accuracy_alone(run):
    median, accuracy = cell(summary_table(run, "L2"), "clean", "cnn").values
    assert np.isnan(median)
    assert accuracy == 0.8


def test_a_bounded_attack_has_an_accuracy_at_its_epsilon_and_no_median(run):
    median, accuracy = cell(summary_table(run, "Linf"), "pgd:bounded (ε=0.3)", "nearest_neighbour").values
    assert np.isnan(median)
    assert accuracy == 0.6


def test_what_does_not_apply_says_why(run):
    shown = cell(summary_table(run, "L2"), "pgd", "binary_cnn")
    assert (shown.values, shown.text) == ((), "n/a")
    assert shown.notes == ("not applicable: gives score access only",)


@pytest.mark.parametrize(
    ("norm", "attack", "defense", "text", "note"),
    [
        ("L2", "pointwise", "nearest_neighbour", "not run yet", ()),
        ("Linf", "pgd", "nearest_neighbour", "failed: timeout (5/5)", ("timeout: more than 60 s",)),
    ],
)
def test_where_no_record_has_a_distance_a_reason_takes_the_numbers_place(run, norm, attack, defense, text, note):
    shown = cell(summary_table(run, norm), attack, defense)
    assert (shown.values, shown.text, shown.notes) == ((), text, note)


@pytest.mark.parametrize(
    ("attack", "defense", "values", "notes"),
    [
        ("pgd", "nearest_neighbour", (1.875, 0.75), ("4 of 5, 1 violation (unperturbed)",)),  # 1, 1.75, 2 and 3
        ("pointwise", "binary_cnn", (1.0, 1 / 3),
         ("3 of 5, 2 failed (exception)", "exception: RuntimeError: 50% of C:\\x_y|z")),  # 0, 1 and 2
    ],
)  # fmt: skip
def test_a_number_is_over_the_records_with_a_distance_and_says_how_many_lack_one(run, attack, defense, values, notes):
    shown = cell(summary_table(run, "L2"), attack, defense)
    assert shown.values == pytest.approx(values)
    assert shown.notes == notes


def one_image_without_logits():
    """Twenty images; one has no finite logits, so that no attack has a valid result on it."""
    maker = RunMaker(["cnn"], 20)
    for name in ("pgd", "ddn"):
        maker.attack(name, ["L2"])
    reasons = {3: "non_finite"}
    maker.cell(
        "cnn", "pgd", "L2", [0.0, 0.0, 1.0, NAN] + [2.0] * 16, reasons, clean_prediction=[1, 1, 0, -1] + [0] * 16
    )
    maker.cell(
        "cnn", "ddn", "L2", [0.0, 0.0, 2.0, NAN] + [1.0] * 16, reasons, clean_prediction=[1, 1, 0, -1] + [0] * 16
    )
    maker.frames = [frame.assign(status=frame["status"].replace("violation", "failed")) for frame in maker.frames]
    return maker.make()


def test_an_image_that_no_attack_has_a_result_for_counts_for_nothing():
    table = summary_table(one_image_without_logits(), "L2")
    failed = ("19 of 20, 1 failed (non_finite)",)
    assert cell(table, "pgd", "cnn").values == (2.0, 16 / 19)
    assert cell(table, "All L2 attacks", "cnn").values == (1.0, 0)
    assert cell(table, "pgd", "cnn").notes == cell(table, "All L2 attacks", "cnn").notes == failed
    assert cell(table, "clean", "cnn").values[1] == 17 / 19
    assert cell(table, "clean", "cnn").notes == ("19 of 20, 1 failed",)


def test_intervals_are_over_the_images_with_a_result():
    run = one_image_without_logits()
    strength = strength_table(run, "L2")
    expected = accuracy_interval([1.0] * 3 + [INF] * 16, 1.5)
    assert cell(strength, "pgd", "cnn").values[4:6] == expected
    accuracies = accuracy_table(run, {"L2": summary_table(run, "L2")}, {"L2": strength})
    assert cell(accuracies, "pgd, L2", "cnn").values == pytest.approx((16 / 19, *expected))
    assert cell(accuracies, "clean", "cnn").values == pytest.approx(
        (17 / 19, *accuracy_interval([0] * 2 + [INF] * 17, 0))
    )
    assert cell(accuracies, "pgd, L2", "cnn").notes == ("19 of 20, 1 failed (non_finite)",)


def test_the_best_is_found_among_the_images_known_for_all():
    """On the 18 known for both, the cnn survives none and abs ten: p = 2 / 2^10."""
    maker = RunMaker(["cnn", "abs"], 20)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [NAN] + [1.0] * 19, reasons={0: "exception"})
    maker.cell("abs", "pgd", "L2", [INF] * 11 + [1.0] * 8 + [NAN], reasons={19: "exception"})
    shown = summary_table(maker.make(), "L2").row("pgd")
    assert [shown[name].significant for name in ("cnn", "abs")] == [False, True]
    assert shown["abs"].values[1] == 11 / 19


def test_all_attacks_is_the_per_sample_minimum(run):
    """pgd finds 0, .5, 1, 1.5, 2 and pointwise 0, .75, .875: together 0, .5, .875, 1.5, 2."""
    assert cell(summary_table(run, "L2"), "All L2 attacks", "cnn").values == (0.875, 0.2)


def test_all_attacks_names_the_attacks_that_are_incomplete(run):
    shown = cell(summary_table(run, "L2"), "All L2 attacks", "nearest_neighbour")
    assert shown.values == (1.875, 0.75)
    assert shown.notes == ("4 of 5, 1 violation (unperturbed)", "incomplete: pointwise not run yet")


def test_all_attacks_without_any_result_says_so_and_why():
    maker = RunMaker(["cnn"], 2)
    maker.attack("a", ["L2"])
    maker.attack("b", ["L2"])
    maker.cell("cnn", "a", "L2", [NAN] * 2, reasons={0: "timeout: 1 s", 1: "timeout: 1 s"})
    maker.cell("cnn", "b", "L2")
    shown = cell(summary_table(maker.make(), "L2"), "All L2 attacks", "cnn")
    assert (shown.text, shown.notes) == ("unknown (2/2)", ("incomplete: a failed: timeout (2/2); b not run yet",))


def test_where_an_attack_failed_all_attacks_are_the_others_and_it_is_named():
    """Sample 0 is unbroken by the other attack, which counts; sample 1 is unknown to both."""
    maker = RunMaker(["cnn"], 4)
    maker.attack("a", ["L2"])
    maker.attack("b", ["L2"])
    maker.cell("cnn", "a", "L2", [NAN, NAN, 1.0, 2.0], reasons={0: "timeout", 1: "timeout"})
    maker.cell("cnn", "b", "L2", [INF, NAN, 3.0, INF], reasons={1: "exception"})
    shown = cell(summary_table(maker.make(), "L2"), "All L2 attacks", "cnn")
    assert shown.values == (2.0, 2 / 3)
    assert shown.notes == ("3 of 4, 1 failed (timeout)", "incomplete: a failed: timeout (1/4)")


def test_all_attacks_keeps_its_number_where_another_attack_found_what_a_failed_one_did_not():
    maker = RunMaker(["cnn"], 2)
    maker.attack("a", ["L2"])
    maker.attack("b", ["L2"])
    maker.cell("cnn", "a", "L2", [1.0, NAN], reasons={1: "timeout"})
    maker.cell("cnn", "b", "L2", [2.0, 3.0])
    shown = cell(summary_table(maker.make(), "L2"), "All L2 attacks", "cnn")
    assert shown.values == (2.0, 0.5)
    assert shown.notes == ("incomplete: a failed: timeout (1/2)",)


def test_a_defense_that_no_attack_applies_to_says_so(run):
    shown = cell(summary_table(run, "Linf"), "All L∞ attacks", "binary_cnn")
    assert (shown.text, shown.notes) == ("—", ("no attack applies",))


def test_bounded_attacks_alone_give_no_median():
    maker = RunMaker(["cnn"], 2)
    maker.attack("pgd:bounded", ["L2"], kind="bounded")
    maker.cell("cnn", "pgd:bounded", "L2", [1.5, INF])
    median, accuracy = cell(summary_table(maker.make(), "L2"), "All L2 attacks", "cnn").values
    assert np.isnan(median)
    assert accuracy == 0.5


def test_an_attack_kept_from_a_defense_by_the_matrix_is_told_from_one_that_does_not_apply():
    shown = summary_table(spared(), "L2")
    assert cell(shown, "pgd", "abs").notes == ("not in the matrix",)


def spared():
    """`abs` survives the weaker of two attacks and was spared the other; `mute` was attacked in another norm only."""
    maker = RunMaker(["cnn", "abs", "mute"], 20)
    maker.attack("pgd", ["L2"])
    maker.attack("fgm", ["L2", "Linf"])
    maker.attack("fgm:more", ["L2"])  # a variant for one of them spares the other nothing
    maker.cell("abs", "fgm:more", "L2", [INF] * 20)
    for defense, attack, norm in (("cnn", "pgd", "L2"), ("cnn", "fgm", "L2"), ("mute", "fgm", "Linf")):
        maker.cell(defense, attack, norm, [0.1] * 20)
    maker.cell("abs", "fgm", "L2", [0.1] + [INF] * 19)
    return maker.make()


def test_a_defense_that_was_spared_attacks_says_so_and_is_never_the_best():
    shown = summary_table(spared(), "L2")
    assert cell(shown, "fgm", "abs").significant
    assert cell(shown, "All L2 attacks", "abs").notes == ("under 1 of 2 attacks only",)
    assert not cell(shown, "All L2 attacks", "abs").significant
    assert cell(shown, "All L2 attacks", "cnn").notes == ()
    assert cell(mcnemar_table(spared(), "L2"), "abs", "cnn").notes == ("not under the same attacks",)


def test_a_norms_tables_have_the_defenses_that_it_says_something_of():
    run = spared()
    for norm, defenses in (("L2", ["cnn", "abs"]), ("Linf", ["mute"])):
        assert run.defenses_in(norm) == defenses
        assert list(summary_table(run, norm).frame) == defenses
        assert list(ranking_table(run, norm).frame) == ["all defenses", *defenses]
    summaries = {norm: summary_table(run, norm) for norm in run.norms}
    shown = accuracy_table(run, summaries, {norm: strength_table(run, norm) for norm in run.norms})
    assert list(shown.frame) == run.defenses
    assert [each.text for each in shown.row("fgm, L∞").values()] == ["—", "—", ""]
    assert [each.values[0] for each in shown.row("clean").values()] == [1, 1, 1]


def test_mcnemar_compares_survival_under_all_attacks():
    """At 1.5 the cnn survives 2 of 10 samples, the other 9, one of them the cnn's: b = 1, c = 8, p = 20/512."""
    maker = RunMaker(["cnn", "abs"], 10)
    for name in ("a", "b"):
        maker.attack(name, ["L2"])
    maker.cell("cnn", "a", "L2", [INF, 2.0] + [1.0] * 8)
    maker.cell("cnn", "b", "L2", [INF] * 10)
    maker.cell("abs", "a", "L2", [1.0] + [3.0] * 9)
    maker.cell("abs", "b", "L2", [INF] * 10)
    shown = cell(mcnemar_table(maker.make(), "L2"), "abs", "cnn")
    assert shown.values == pytest.approx((20 / 512, 20 / 512))
    assert not shown.significant


def test_mcnemar_is_adjusted_for_the_number_of_pairs_and_a_clear_difference_is_set_off():
    """One of three defenses survives 20 of 20 samples, the others none: p = 2^-19 twice, and 1."""
    maker = RunMaker(["cnn", "abs", "eabs"], 20)
    maker.attack("a", ["L2"])
    for defense, distance in (("cnn", 1.0), ("abs", INF), ("eabs", 1.0)):
        maker.cell(defense, "a", "L2", [distance] * 20)
    table = mcnemar_table(maker.make(), "L2")
    clear = cell(table, "abs", "cnn")
    assert clear.values == pytest.approx((2.0**-19, 3 * 2.0**-19))
    assert clear.significant
    assert cell(table, "eabs", "cnn").values == (1, 1)
    # Q = 3 * 2 * (2 * (20 / 3)^2 + (40 / 3)^2) / (20 * 2)
    assert "Cochran's Q that all 3 do: 40, p = 2.1e-09, on the 20 known for all" in table.caption


def test_mcnemar_leaves_out_what_is_unknown_for_either_and_says_so(run):
    """cnn and nearest neighbour differ on samples 1 and 2 of the four known for both: only the latter survives."""
    shown = cell(mcnemar_table(run, "L2"), "nearest_neighbour", "cnn")
    assert shown.values == pytest.approx((0.5, 1))
    assert shown.notes == (
        "on the 4 of 5 images valid for both",
        "not all attacks on nearest_neighbour are complete",
    )


def test_mcnemar_without_common_samples_has_no_number(run):
    shown = cell(mcnemar_table(run, "Linf"), "binary_cnn", "cnn")
    assert shown.values == ()
    assert shown.notes == ("no image with a known distance for both",)


def test_mcnemar_shows_each_pair_once(run):
    table = mcnemar_table(run, "L0")
    shown = [[bool(c.values) for c in row] for row in table.frame.to_numpy()]
    assert shown == [[True, False], [True, True]]


def test_an_attack_with_two_budgets_has_a_row_for_each(run):
    table = attacks_table(run)
    budgets = [
        (label, row[table.frame.columns.get_loc("budget")].text, row[table.frame.columns.get_loc("against")].text)
        for label, row in zip(table.frame.index, table.frame.to_numpy(), strict=True)
    ]
    assert budgets == [
        ("pgd", "1000", ""),
        ("pgd:bounded", "1000", ""),
        ("pointwise", "1000", "cnn, binary_cnn, nearest_neighbour"),
        ("pointwise", "50", "binary_cnn"),
    ]


def test_costs_are_means_over_the_images_that_were_attacked(run):
    table = cost_table(run)
    assert cell(table, "pgd, L2", "cnn").values == (100, 40, 0)  # one of five is a clean error and cost nothing
    assert cell(table, "pgd, L∞", "nearest_neighbour").text == "—"
    assert cell(table, "pgd, L2", "binary_cnn").text == "n/a"


def test_strength_adds_intervals_and_costs_to_the_summary():
    """Of eight images the 1st and the 8th bound the median with 95 %; the clean error cost nothing."""
    maker = RunMaker(["cnn", "abs"], 8)
    maker.attack("pgd", ["L2"])
    maker.attack("pgd:bounded", ["L2"], kind="bounded")
    maker.cell("cnn", "pgd", "L2", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, INF])
    maker.cell("cnn", "pgd:bounded", "L2", [0.0] + [1.5] * 7)
    maker.na("abs", "pgd", "L2", "why")
    table = strength_table(maker.make(), "L2")
    assert [quantity.name for quantity in table.quantities] == ["median", "accuracy", "passes", "seconds"]
    six_of_eight, none = accuracy_interval([1.0] * 2 + [INF] * 6, 1.5), accuracy_interval([1.0] * 8, 1.5)
    expected = {
        "pgd": (3.5, 0, INF, 0.75, *six_of_eight, 140, 0.5),
        "pgd:bounded (ε=1.5)": (NAN, NAN, NAN, 0, *none, 140, 0.5),
        "All L2 attacks": (1.5, 0, 1.5, 0, *none, NAN, NAN),
    }
    for row, values in expected.items():
        assert cell(table, row, "cnn").values == pytest.approx(values, nan_ok=True)
    assert cell(table, "pgd", "abs").text == "n/a"


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
    table = ranking_table(maker.make(), "L2")
    assert list(table.frame.index) == ["a", "b"]
    assert cell(table, "a", "cnn").values == (1,)
    assert cell(table, "b", "cnn").values == pytest.approx((0.5,))
    assert cell(table, "a", "abs").text == "unknown"
    assert cell(table, "b", "abs").text == "n/a"
    assert cell(table, "a", "all defenses").values == (1, 140, 0.5)
    assert cell(table, "a", "all defenses").notes == ("over 1 of 2 defenses",)


def test_an_attack_is_ranked_on_the_images_that_it_has_a_result_for():
    maker = RunMaker(["cnn"], 4)
    for name, distances in (("a", [2.0, 2.0, 2.0, NAN]), ("b", [1.0, 1.0, 2.0, 9.0])):
        maker.attack(name, ["L2"])
        maker.cell("cnn", name, "L2", distances, reasons={3: "exception"} if name == "a" else {})
    shown = cell(ranking_table(maker.make(), "L2"), "a", "cnn")
    assert shown.values == pytest.approx((0.0,))  # best 1, 1, 2, so e = 2: the attack breaks nothing below it
    assert shown.notes == ("3 of 4, 1 failed (exception)",)


def test_defenses_are_described(run):
    assert cell(defenses_table(run), "cnn", "citation").text == "cnn et al., 2019"


def test_problems_list_every_incomplete_cell(run):
    assert problems(run) == [
        "binary_cnn, L2: pointwise failed: exception (2/5)",
        "nearest_neighbour, L2: pgd violation: unperturbed (1/5)",
        "nearest_neighbour, L2: pointwise not run yet",
        "nearest_neighbour, L∞: pgd failed: timeout (5/5)",
    ]


def test_captions_state_samples_threshold_and_versions(run):
    for table in (summary_table(run, "L2"), mcnemar_table(run, "L2")):
        for fact in ("5 test images of synthetic", "ε = 1.5", "assay 0.1.0", "torch 2.15.0"):
            assert fact in table.caption


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
    table = bracket_table(bracketed.make(), "L2")
    assert list(table.frame.index) == ["nearest_neighbour", "abs"]
    assert cell(table, "nearest_neighbour", "lower bound").values == pytest.approx((1.25,))
    assert cell(table, "nearest_neighbour", "smallest adversarial").values == (1.5,)
    assert cell(table, "nearest_neighbour", "refuted").text == "0 of 4"
    assert cell(table, "nearest_neighbour", "the bound is").text == "a certificate"
    assert bracket_table(bracketed.make(), "Linf") is None


def test_an_estimate_that_an_adversarial_refutes_is_dropped_and_counted(bracketed):
    table = bracket_table(bracketed.make(), "L2")
    assert cell(table, "abs", "lower bound").values == (0.0,)  # of 0, 0, 0 and 3
    assert cell(table, "abs", "refuted").text == "2 of 4"
    assert cell(table, "abs", "the bound is").text == "an estimate, 5 starts for each class"
    assert refuted_certificates(bracketed.make()) == []


def test_a_certificate_above_an_adversarial_is_an_error_that_is_seen(bracketed):
    bracketed.bound("cnn", "L2", [0.0, 1.1, 1.0, 1.0], certificate=True)
    run = bracketed.make()
    assert refuted_certificates(run) == ["cnn, L2: 1 certificates exceed found adversarials (sample 1: 1.1 against 1)"]
    assert "certificate is wrong" in cell(bracket_table(run, "L2"), "cnn", "lower bound").doubts[0]


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
    assert cell(bracket_table(run, "L2"), "cnn", "refuted").text == "1 of 4"
    assert "binomial test" in bracket_table(run, "L2").caption


def test_a_certificate_of_a_randomized_defense_without_draws_is_not_tested(drawn):
    """The draws on which the adversarial was selected say nothing of it."""
    run = drawn.make()
    assert refuted_certificates(run) == []
    assert cell(bracket_table(run, "L2"), "cnn", "refuted").text == "0 of 4, 2 not tested"
    assert cell(bracket_table(run, "L2"), "cnn", "lower bound").doubts == ()


def test_tests_of_many_samples_are_corrected(drawn):
    """232 of 400 have p = 8e-4: below .001 alone, not among two."""
    drawn.refutation("cnn", "L2", [-1, 232, 200, -1])
    assert refuted_certificates(drawn.make()) == []
    drawn.measured["refutation"].clear()
    drawn.refutation("cnn", "L2", [-1, 232, -1, -1])
    assert len(refuted_certificates(drawn.make())) == 1


def test_an_estimate_of_a_randomized_defense_is_dropped_where_an_adversarial_lies_within(drawn):
    drawn.randomize("abs")
    table = bracket_table(drawn.make(), "L2")
    assert cell(table, "abs", "refuted").text == "2 of 4"
    assert cell(table, "abs", "lower bound").values == (0.0,)


def test_a_bound_that_failed_or_has_not_run_is_a_problem(bracketed):
    bracketed.bound("cnn", "L2", [NAN] * 4, reason="exception: no luck")
    bracketed.bound("cnn", "Linf", None)
    assert problems(bracketed.make()) == [
        "cnn, L2: lower bound failed: exception: no luck (4/4)",
        "cnn, L∞: lower bound not run yet",
    ]


def test_distal_adversarials_are_counted_beside_the_calibration():
    maker = RunMaker(["cnn", "abs", "nearest_neighbour"], 4)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [1.0, 1.0, 2.0, INF])
    maker.distal("cnn", [0.95, 0.5, 0.9], steps=[10, 200, 30], alpha=1.2)
    maker.distal("abs", None, reason="exception: no luck")
    run = maker.make()
    table = distal_table(run)
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
    assert distal_table(maker.make()) is None


def test_detection_stands_beside_what_is_left_of_it_when_the_attacker_knows():
    maker = RunMaker(["beta_vac", "cnn"], 4)
    maker.attack("pgd", ["Linf"])
    maker.cell("beta_vac", "pgd", "Linf", [0.0, 0.1, 0.2, INF])
    maker.detection("beta_vac", "Linf", clean=[1, -1, -3, 2], adversarial=[3, 3, -2, 4], fooled="yyyn", evaded="nnyy")
    run = maker.make()
    table = detection_table(run)
    row = table.frame.loc["beta_vac, L∞ ε=0.3"]
    # Sample 0 is a clean error; of the other three clean images one is refused, of their two adversarials one.
    assert row["adversarials refused"].values == (0.5,)
    assert row["clean images refused"].values == pytest.approx((1 / 3,))
    assert row["detector's accuracy"].values == pytest.approx(((0.5 + 2 / 3) / 2,))
    assert row["ROC AUC"].values == pytest.approx((4 / 6,))
    assert row["right, under PGD"].values == (0.25,)
    assert row["right or refused, under PGD"].values == (0.75,)
    assert row["right or refused, under evading PGD"].values == (0.5,)
    assert problems(run) == []


def test_without_adversarials_there_is_no_detector_to_judge():
    maker = RunMaker(["beta_vac"], 2)
    maker.attack("pgd", ["Linf"])
    maker.cell("beta_vac", "pgd", "Linf", [INF, INF])
    maker.detection("beta_vac", "Linf", clean=[-1, -1], adversarial=[-2, -2], fooled="nn", evaded="nn")
    table = detection_table(maker.make())
    assert cell(table, "beta_vac, L∞ ε=0.3", "ROC AUC").text == "unknown"
    assert detection_table(every_status()) is None
