"""Each place of the summary, on distances whose median and accuracy are worked out by hand."""

import pytest
from reading import cell, interval, table_of, values
from synthetic_runs import INF, NAN, RunMaker, every_status

from reports.statistics.distances import accuracy_interval
from reports.tables.cells import BLANK


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_rows_and_columns_stand_in_the_manifests_order(run):
    table = table_of(run, "summary", "Linf")
    assert list(table.frame.index) == ["clean", "pgd", "pgd:bounded (ε=0.3)", "All L∞ attacks"]
    assert list(table.frame.columns) == ["cnn", "binary_cnn", "nearest_neighbour"]


def test_norms_stand_in_the_order_of_the_thresholds(run):
    assert run.norms == ["L2", "Linf", "L0"]


def test_a_cell_is_median_and_accuracy_at_the_threshold(run):
    assert values(cell(table_of(run, "summary", "L2"), "pgd", "cnn")) == {"median": 1.0, "accuracy": 0.2}


def test_the_clean_row_is_an_accuracy_alone(run):
    assert values(cell(table_of(run, "summary", "L2"), "clean", "cnn")) == {"accuracy": 0.8}


def test_a_bounded_attack_has_an_accuracy_at_its_epsilon_and_no_median(run):
    shown = cell(table_of(run, "summary", "Linf"), "pgd:bounded (ε=0.3)", "nearest_neighbour")
    assert values(shown) == {"accuracy": 0.6}


def test_what_does_not_apply_says_why(run):
    shown = cell(table_of(run, "summary", "L2"), "pgd", "binary_cnn")
    assert (shown.values, shown.text) == ({}, "n/a")
    assert shown.notes == ("not applicable: gives score access only",)


@pytest.mark.parametrize(
    ("norm", "attack", "defense", "text", "note"),
    [
        ("L2", "pointwise", "nearest_neighbour", "not run yet", ()),
        ("Linf", "pgd", "nearest_neighbour", "failed: timeout (5/5)", ("timeout: more than 60 s",)),
    ],
)
def test_where_no_record_has_a_distance_a_reason_takes_the_numbers_place(run, norm, attack, defense, text, note):
    shown = cell(table_of(run, "summary", norm), attack, defense)
    assert (shown.values, shown.text, shown.notes) == ({}, text, note)


@pytest.mark.parametrize(
    ("attack", "defense", "numbers", "notes"),
    [
        ("pgd", "nearest_neighbour", (1.875, 0.75), ("4 of 5, 1 violation (unperturbed)",)),  # 1, 1.75, 2 and 3
        ("pointwise", "binary_cnn", (1.0, 1 / 3),
         ("3 of 5, 2 failed (exception)", "exception: RuntimeError: 50% of C:\\x_y|z")),  # 0, 1 and 2
    ],
)  # fmt: skip
def test_a_number_is_over_the_records_with_a_distance_and_says_how_many_lack_one(run, attack, defense, numbers, notes):
    shown = cell(table_of(run, "summary", "L2"), attack, defense)
    assert values(shown) == pytest.approx(dict(zip(("median", "accuracy"), numbers, strict=True)))
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
    table = table_of(one_image_without_logits(), "summary", "L2")
    failed = ("19 of 20, 1 failed (non_finite)",)
    assert values(cell(table, "pgd", "cnn")) == {"median": 2.0, "accuracy": 16 / 19}
    assert values(cell(table, "All L2 attacks", "cnn")) == {"median": 1.0, "accuracy": 0}
    assert cell(table, "pgd", "cnn").notes == cell(table, "All L2 attacks", "cnn").notes == failed
    assert values(cell(table, "clean", "cnn")) == {"accuracy": 17 / 19}
    assert cell(table, "clean", "cnn").notes == ("19 of 20, 1 failed",)


def test_intervals_are_over_the_images_with_a_result():
    run = one_image_without_logits()
    strength = table_of(run, "strength", "L2")
    expected = accuracy_interval([1.0] * 3 + [INF] * 16, 1.5)
    assert interval(cell(strength, "pgd", "cnn"), "accuracy") == expected
    accuracies = table_of(run, "accuracy")
    assert cell(accuracies, "pgd, L2", "cnn").values["accuracy"] == pytest.approx((16 / 19, *expected))
    assert cell(accuracies, "clean", "cnn").values["accuracy"] == pytest.approx(
        (17 / 19, *accuracy_interval([0] * 2 + [INF] * 17, 0))
    )
    assert cell(accuracies, "pgd, L2", "cnn").notes == ("19 of 20, 1 failed (non_finite)",)


def test_the_best_is_found_among_the_images_known_for_all():
    """On the 18 known for both, the cnn survives none and abs ten: p = 2 / 2^10."""
    maker = RunMaker(["cnn", "abs"], 20)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [NAN] + [1.0] * 19, reasons={0: "exception"})
    maker.cell("abs", "pgd", "L2", [INF] * 11 + [1.0] * 8 + [NAN], reasons={19: "exception"})
    shown = table_of(maker.make(), "summary", "L2").row("pgd")
    assert [shown[name].significant for name in ("cnn", "abs")] == [False, True]
    assert values(shown["abs"])["accuracy"] == 11 / 19


def test_all_attacks_is_the_per_sample_minimum(run):
    """pgd finds 0, .5, 1, 1.5, 2 and pointwise 0, .75, .875: together 0, .5, .875, 1.5, 2."""
    assert values(cell(table_of(run, "summary", "L2"), "All L2 attacks", "cnn")) == {"median": 0.875, "accuracy": 0.2}


def test_all_attacks_names_the_attacks_that_are_incomplete(run):
    shown = cell(table_of(run, "summary", "L2"), "All L2 attacks", "nearest_neighbour")
    assert values(shown) == {"median": 1.875, "accuracy": 0.75}
    assert shown.notes == ("4 of 5, 1 violation (unperturbed)", "incomplete: pointwise not run yet")


def test_all_attacks_without_any_result_says_so_and_why():
    maker = RunMaker(["cnn"], 2)
    maker.attack("a", ["L2"])
    maker.attack("b", ["L2"])
    maker.cell("cnn", "a", "L2", [NAN] * 2, reasons={0: "timeout: 1 s", 1: "timeout: 1 s"})
    maker.cell("cnn", "b", "L2")
    shown = cell(table_of(maker.make(), "summary", "L2"), "All L2 attacks", "cnn")
    assert (shown.text, shown.notes) == ("unknown (2/2)", ("incomplete: a failed: timeout (2/2); b not run yet",))


def test_where_an_attack_failed_all_attacks_are_the_others_and_it_is_named():
    """Sample 0 is unbroken by the other attack, which counts; sample 1 is unknown to both."""
    maker = RunMaker(["cnn"], 4)
    maker.attack("a", ["L2"])
    maker.attack("b", ["L2"])
    maker.cell("cnn", "a", "L2", [NAN, NAN, 1.0, 2.0], reasons={0: "timeout", 1: "timeout"})
    maker.cell("cnn", "b", "L2", [INF, NAN, 3.0, INF], reasons={1: "exception"})
    shown = cell(table_of(maker.make(), "summary", "L2"), "All L2 attacks", "cnn")
    assert values(shown) == {"median": 2.0, "accuracy": 2 / 3}
    assert shown.notes == ("3 of 4, 1 failed (timeout)", "incomplete: a failed: timeout (1/4)")


def test_all_attacks_keeps_its_number_where_another_attack_found_what_a_failed_one_did_not():
    maker = RunMaker(["cnn"], 2)
    maker.attack("a", ["L2"])
    maker.attack("b", ["L2"])
    maker.cell("cnn", "a", "L2", [1.0, NAN], reasons={1: "timeout"})
    maker.cell("cnn", "b", "L2", [2.0, 3.0])
    shown = cell(table_of(maker.make(), "summary", "L2"), "All L2 attacks", "cnn")
    assert values(shown) == {"median": 2.0, "accuracy": 0.5}
    assert shown.notes == ("incomplete: a failed: timeout (1/2)",)


def test_a_defense_that_no_attack_applies_to_says_so(run):
    shown = cell(table_of(run, "summary", "Linf"), "All L∞ attacks", "binary_cnn")
    assert (shown.text, shown.notes) == ("—", ("no attack applies",))


def test_bounded_attacks_alone_give_no_median():
    maker = RunMaker(["cnn"], 2)
    maker.attack("pgd:bounded", ["L2"], kind="bounded")
    maker.cell("cnn", "pgd:bounded", "L2", [1.5, INF])
    assert values(cell(table_of(maker.make(), "summary", "L2"), "All L2 attacks", "cnn")) == {"accuracy": 0.5}


def test_an_attack_kept_from_a_defense_by_the_matrix_is_told_from_one_that_does_not_apply():
    shown = table_of(spared(), "summary", "L2")
    assert cell(shown, "pgd", "abs") == BLANK
    assert shown.caption.endswith("Blank: not in the matrix.")


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
    shown = table_of(spared(), "summary", "L2")
    assert cell(shown, "fgm", "abs").significant
    assert cell(shown, "All L2 attacks", "abs").notes == ("under 1 of 2 attacks only",)
    assert not cell(shown, "All L2 attacks", "abs").significant
    assert cell(shown, "All L2 attacks", "cnn").notes == ()
    assert cell(table_of(spared(), "mcnemar", "L2"), "abs", "cnn").notes == ("not under the same attacks",)


def test_a_norms_tables_have_the_defenses_that_it_says_something_of():
    run = spared()
    for norm, defenses in (("L2", ["cnn", "abs"]), ("Linf", ["mute"])):
        assert run.in_norms[norm].defenses == defenses
        assert list(table_of(run, "summary", norm).frame) == defenses
        assert list(table_of(run, "ranking", norm).frame) == ["all defenses", *defenses]
    shown = table_of(run, "accuracy")
    assert list(shown.frame) == run.defenses
    assert [each == BLANK for each in shown.row("fgm, L∞").values()] == [True, True, False]
    assert [values(each) for each in shown.row("clean").values()] == [{"accuracy": 1}] * 3
