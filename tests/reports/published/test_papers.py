"""The papers' statistics, from ledgers small enough that every answer here was worked out by hand.

Schott et al. 2019, Table 1: medians, accuracies and the minimum over attacks. Ju & Wagner 2020: accuracy under bounded
attacks, McNemar's test between models.
"""

from math import comb

import pytest
from reading import table_of, tables_of, values
from synthetic_runs import INF, RunMaker


@pytest.fixture(scope="module")
def schott():
    """Six images. `cnn` is beaten by both attacks in turn; `abs` survives one attack and most of the other."""
    maker = RunMaker(["cnn", "abs"], 6)
    maker.attack("deepfool", ["L2"])
    maker.attack("pointwise", ["L2"], access="decision")
    maker.cell("cnn", "deepfool", "L2", [0.0, 1.0, 1.4, 1.6, 3.0, INF])
    maker.cell("cnn", "pointwise", "L2", [0.0, 1.2, 1.2, 2.0, 1.4, INF])
    maker.cell("abs", "deepfool", "L2", [INF] * 6)
    maker.cell("abs", "pointwise", "L2", [1.0, 2.0, 3.0, 4.0, INF, INF])
    return maker.make()


@pytest.mark.parametrize(
    ("attack", "defense", "median", "accuracy"),
    [
        ("deepfool", "cnn", (1.4 + 1.6) / 2, 3 / 6),  # 0, 1, 1.4 | 1.6, 3, inf; beyond 1.5: three
        ("pointwise", "cnn", (1.2 + 1.4) / 2, 2 / 6),  # 0, 1.2, 1.2 | 1.4, 2, inf; beyond 1.5: two
        ("All L2 attacks", "cnn", (1.2 + 1.4) / 2, 2 / 6),  # smallest: 0, 1, 1.2 | 1.4, 1.6, inf
        ("deepfool", "abs", INF, 1.0),
        ("pointwise", "abs", (3.0 + 4.0) / 2, 5 / 6),
        ("All L2 attacks", "abs", (3.0 + 4.0) / 2, 5 / 6),
    ],
)
def test_schott_et_al_table_1(schott, attack, defense, median, accuracy):
    assert values(table_of(schott, "summary", "L2").row(attack)[defense]) == pytest.approx(
        {"median": median, "accuracy": accuracy}
    )


def test_the_clean_error_counts_at_distance_0(schott):
    assert values(table_of(schott, "summary", "L2").row("clean")["cnn"]) == pytest.approx({"accuracy": 5 / 6})
    assert values(table_of(schott, "summary", "L2").row("clean")["abs"]) == {"accuracy": 1}


@pytest.fixture(scope="module")
def ju():
    """Thirty images under one bounded attack: `eabs` alone survives 14 of them, `cnn` alone 1, both 10, neither 5;
    `adv_l2` survives the same as `eabs` but for one."""
    maker = RunMaker(["cnn", "adv_l2", "eabs"], 30)
    maker.attack("pgd:bounded", ["L2"], kind="bounded")
    survived = {
        "cnn": [*range(10), 10],
        "adv_l2": [*range(10), *range(11, 24)],
        "eabs": [*range(10), *range(11, 25)],
    }
    for defense, alive in survived.items():
        maker.cell(defense, "pgd:bounded", "L2", [INF if i in alive else 1.5 for i in range(30)])
    maker.member("eabs", "E-ABS", "A", "D", "V")
    maker.member("adv_l2", "E-ABS", "D")
    return maker.make()


@pytest.mark.parametrize(("defense", "alive"), [("cnn", 11), ("adv_l2", 23), ("eabs", 24)])
def test_ju_and_wagner_table_1(ju, defense, alive):
    accuracy, low, high = table_of(ju, "accuracy").row("pgd:bounded (ε=1.5), L2")[defense].values["accuracy"]
    assert accuracy == pytest.approx(alive / 30)
    # Wilson: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964, n = 30.
    z2 = 1.959964**2
    center = (alive / 30 + z2 / 60) / (1 + z2 / 30)
    half = (z2 * (alive / 30 * (1 - alive / 30) / 30 + z2 / 3600)) ** 0.5 / (1 + z2 / 30)
    assert (low, high) == pytest.approx((center - half, center + half), abs=1e-6)


def test_mcnemar_between_models(ju):
    table = table_of(ju, "mcnemar", "L2")
    # eabs against cnn: 14 and 1 discordant, p = 2 (1 + 15) / 2^15; adv_l2 against cnn: 13 and 1, p = 2 (1 + 14) / 2^14;
    # eabs against adv_l2: 1 and 0, p = 1. Holm: 3 p, 2 p (which must not be less than the one before), 1.
    eabs_cnn, adv_cnn = 2 * (comb(15, 0) + comb(15, 1)) / 2**15, 2 * (comb(14, 0) + comb(14, 1)) / 2**14
    assert values(table.row("eabs")["cnn"]) == pytest.approx({"p": eabs_cnn, "adjusted p": 3 * eabs_cnn})
    assert values(table.row("adv_l2")["cnn"]) == pytest.approx(
        {"p": adv_cnn, "adjusted p": max(2 * adv_cnn, 3 * eabs_cnn)}
    )
    assert values(table.row("eabs")["adv_l2"]) == {"p": 1.0, "adjusted p": 1.0}
    assert table.row("eabs")["cnn"].significant
    # Columns 11, 23, 24; rows with 3, 2, 1 or 0 survivors: 10, 13, 2, 5. Q = (K-1) (K Σ C² - T²) / (K T - Σ R²)
    q = 2 * (3 * (11**2 + 23**2 + 24**2) - 58**2) / (3 * 58 - (10 * 9 + 13 * 4 + 2 * 1))
    assert f"Cochran's Q that all 3 do: {q:.3g}," in table.caption


def test_what_is_best_is_bold_only_where_it_differs_from_all_others(ju):
    assert not any(cell.significant for cell in table_of(ju, "accuracy").row("All L2 attacks").values())
    maker = RunMaker(["cnn", "eabs"], 30)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [1.0] * 30)
    maker.cell("eabs", "pgd", "L2", [1.0] * 20 + [2.0] * 10)  # 10 to 0: p = 2 / 2^10
    alone = maker.make()
    assert table_of(alone, "summary", "L2").row("pgd")["eabs"].significant
    assert table_of(alone, "accuracy").row("pgd, L2")["eabs"].significant
    assert not table_of(alone, "accuracy").row("pgd, L2")["cnn"].significant


def test_nothing_is_bold_beside_a_defense_that_nobody_knows():
    maker = RunMaker(["cnn", "eabs", "abs"], 30)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [1.0] * 30)
    maker.cell("eabs", "pgd", "L2", [2.0] * 30)
    maker.cell("abs", "pgd", "L2")
    assert not any(cell.significant for cell in table_of(maker.make(), "summary", "L2").row("pgd").values())


def test_an_ablation_names_the_parts_and_begins_with_the_fewest(ju):
    (table,) = tables_of(ju, "ablation")
    assert list(table.frame.index) == ["adv_l2", "eabs"]
    assert table.row("eabs")["parts"].text == "A, D, V"
    assert values(table.row("eabs")["All L2 attacks"]) == pytest.approx({"accuracy": 24 / 30})


def test_an_ablation_leaves_out_norms_in_which_the_family_was_not_attacked():
    maker = RunMaker(["cnn", "eabs", "ad_abs"], 1)
    maker.attack("pgd", ["L2", "Linf"])
    for defense, norm in (("cnn", "Linf"), ("eabs", "L2"), ("ad_abs", "L2")):
        maker.cell(defense, "pgd", norm, [1.0])
    maker.member("eabs", "E-ABS", "A", "D", "V")
    maker.member("ad_abs", "E-ABS", "A", "D")
    (table,) = tables_of(maker.make(), "ablation")
    assert list(table.frame) == ["parts", "clean", "All L2 attacks"]
