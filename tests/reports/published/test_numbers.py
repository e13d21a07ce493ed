import numpy as np
import pytest
from reading import table_of, tables_of, values
from synthetic_runs import RunMaker, every_status

from bench.plugins.registry import Registry
from reports.measures.measure import measure
from reports.published.numbers import PAPERS, published_numbers


def mnist_run(thresholds=None):
    maker = RunMaker(["adv_linf", "abs:schott2019", "cnn:ju2020"], 2, dataset="mnist", thresholds=thresholds)
    maker.attack("gaussian_noise", ["L2"])
    maker.attack("bim:bounded", ["L2"], kind="bounded")
    maker.attack("pointwise", ["L2", "L0"])
    maker.attack("pointwise_10x", ["L0"])
    maker.attack("somebodys_attack", ["L2"])
    for attack, entry in maker.attacks.items():
        for defense in maker.defenses:
            for norm in entry["norms"]:
                maker.cell(defense, attack, norm, [1.0, 2.0])
    return maker.make()


@pytest.fixture(scope="module")
def numbers():
    return published(mnist_run(), "L2", "schott2019")


def published(run, norm, paper):
    measured = measure(run)
    return published_numbers(measured, measured.norms[norm], paper)


@pytest.mark.parametrize(
    ("attack", "defense", "printed"),
    [
        ("gaussian_noise", "abs:schott2019", (10.9, 0.98)),  # the released weights are the paper's ABS
        ("gaussian_noise", "adv_linf", (5.4, 0.96)),  # the paper's "Madry et al."
        ("All L2 attacks", "abs:schott2019", (2.3, 0.80)),
    ],
)
def test_numbers_are_those_of_schott_et_al_table_1(numbers, attack, defense, printed):
    assert tuple(numbers[attack, defense].values.values()) == printed


def test_the_clean_row_has_the_printed_accuracy(numbers):
    median, accuracy = numbers["clean", "adv_linf"].values.values()
    assert np.isnan(median)
    assert accuracy == 0.988


def test_a_bounded_attack_is_compared_by_accuracy_alone(numbers):
    median, accuracy = numbers["bim:bounded (ε=1.5)", "adv_linf"].values.values()
    assert np.isnan(median)
    assert accuracy == 0.88


def test_other_nets_and_other_attacks_have_no_published_numbers(numbers):
    assert {defense for _, defense in numbers} == {"adv_linf", "abs:schott2019"}
    assert not {attack for attack, _ in numbers} & {"somebodys_attack"}


def test_pointwise_on_l0_was_published_with_ten_repetitions():
    numbers = published(mnist_run(), "L0", "schott2019")
    assert numbers["pointwise_10x", "abs:schott2019"].values == {"median": 16.5, "accuracy": 0.69}
    assert ("pointwise", "abs:schott2019") not in numbers


def test_accuracy_at_another_threshold_is_not_compared():
    numbers = published(mnist_run({"L2": 2.0, "L0": 12}), "L2", "schott2019")
    median, accuracy = numbers["gaussian_noise", "adv_linf"].values.values()
    assert median == 5.4
    assert np.isnan(accuracy)


def test_published_numbers_stand_beside_the_measured_ones_that_they_are_for():
    beside = table_of(mnist_run(), "published", "L2", papers=["schott2019"])
    assert beside.name == "published_L2_schott2019"
    assert values(beside.frame.loc["gaussian_noise", "adv_linf"]) == {"median": 1.5, "accuracy": 0.5}
    assert beside.frame.loc["gaussian_noise", "adv_linf"].published == {"median": 5.4, "accuracy": 0.96}
    assert "cnn:ju2020" not in beside.frame
    assert "somebodys_attack" not in beside.frame.index
    assert PAPERS["schott2019"].reference in beside.caption


def test_ju_and_wagner_call_their_own_nets_cnn_and_abs():
    numbers = published(mnist_run(), "L2", "ju2020")
    assert numbers["clean", "cnn:ju2020"].values["accuracy"] == 0.995
    assert numbers["All L2 attacks", "adv_linf"].values["accuracy"] == 0.815
    assert numbers["gaussian_noise", "cnn:ju2020"].values["accuracy"] == 0.993
    assert not any(defense == "abs:schott2019" for _, defense in numbers)


def test_what_looks_misprinted_says_so():
    maker = RunMaker(["abs:ju2020"], 2, dataset="mnist")
    maker.attack("deepfool", ["L2"])
    maker.cell("abs:ju2020", "deepfool", "L2", [1.0, 2.0])
    run = maker.make()
    beside = table_of(run, "published", "L2", papers=["ju2020"])
    assert "misprint" in beside.row("deepfool")["abs:ju2020"].notes[0]
    assert not beside.row("clean")["abs:ju2020"].notes


def test_detectors_stand_beside_those_of_maggipinto_et_al():
    maker = RunMaker(["beta_vac"], 2, dataset="mnist")
    maker.detection("beta_vac", "Linf", [0.0, -1.0], [0.0, 1.0], "ny", "ny")
    maker.attack("pgd", ["Linf"])
    maker.cell("beta_vac", "pgd", "Linf", [0.0, 0.1])
    run = maker.make()
    _, beside = tables_of(run, "detection", papers=["maggipinto2020"])
    assert beside.frame.loc["beta_vac, L∞ ε=0.3", "detector's accuracy"].published == {
        "share": 0.972
    }  # their net with the least l1 penalty; ours has none


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_names_known_defenses(paper):
    known = set(Registry().names("defenses"))
    assert {name for name in PAPERS[paper].defenses if "robustbench" not in name} <= known


@pytest.mark.parametrize("paper", PAPERS)
def test_a_dataset_without_published_numbers_has_no_such_table(paper):
    run = every_status()
    assert published(run, "L2", paper) == {}
    assert tables_of(run, "published", "L2", papers=[paper]) == []
