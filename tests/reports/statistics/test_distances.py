import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap, hypergeom
from statsmodels.stats.contingency_tables import cochrans_q
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from synthetic_runs import INF, NAN, RunMaker, every_status

from reports.statistics.brackets import significant_errors
from reports.statistics.distances import (
    accuracy_at,
    accuracy_distortion_curve,
    accuracy_interval,
    curve_area,
    local_optimality,
    median_distance,
    median_interval,
)
from reports.statistics.protocols import likeliest, share_interval, survival
from reports.statistics.records import clean_distances, smallest_adversarials
from reports.statistics.significance import cochran_q, falls, holm, mcnemar, median_difference

finite = st.floats(0, 100)
distances = st.lists(st.one_of(finite, st.just(INF)), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([3.0, 1.0, 2.0], 2.0),
        ([1.0, 2.0, 3.0, 4.0], 2.5),
        ([0.0, 0.0, 1.0], 0.0),
        ([1.0, 2.0, INF], 2.0),
        ([1.0, 2.0, INF, INF], INF),  # the upper middle one is infinite
        ([INF, INF], INF),
        ([1.0, NAN], NAN),
        ([], NAN),
    ],
)
def test_median_distance_is_the_mean_of_the_middle_order_statistics(values, median):
    assert median_distance(values) == pytest.approx(median, nan_ok=True)


@given(st.lists(finite, min_size=1, max_size=30))
def test_median_of_finite_distances_is_numpys(values):
    assert median_distance(values) == pytest.approx(np.median(values))


@given(distances)
def test_median_grows_when_adversarials_are_lost(values):
    assert median_distance([*values[1:], INF]) >= median_distance(values)


def test_the_interval_of_the_median_is_between_order_statistics():
    """P(Binomial(100, 1/2) <= 39) = .018 and of <= 40 it is .028: the 40th and the 61st of a hundred."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    assert median_interval(values) == (40, 61)


def test_infinite_distances_count_as_large_in_the_interval():
    assert median_interval([1.0] * 3 + [2.0] * 3 + [INF] * 4) == (1, INF)
    assert median_interval([1.0] * 9 + [INF]) == (1, 1)
    assert median_interval([1.0] * 30 + [INF] * 70) == (INF, INF)


def test_few_distances_say_nothing_and_unknown_ones_have_no_interval():
    assert median_interval([1.0] * 5) == (0, INF)
    for values in ([], [1.0] * 20 + [NAN]):
        assert np.isnan(median_interval(values)).all()


@given(distances)
def test_the_interval_holds_the_median(values):
    low, high = median_interval(values)
    assert low <= median_distance(values) <= high


def test_accuracy_counts_samples_that_are_not_broken_within_epsilon():
    values = [0.0, 1.0, 1.5, 1.5 + 1e-9, 1.51, INF]
    assert accuracy_at(values, 1.5) == pytest.approx(2 / 6)
    assert accuracy_at(values, 0.0) == pytest.approx(5 / 6)


def test_accuracy_is_unknown_where_a_distance_is():
    assert np.isnan(accuracy_at([1.0, NAN], 1.5))
    assert np.isnan(accuracy_at([], 1.5))


def test_curve_steps_down_at_each_distance():
    epsilons, accuracies = accuracy_distortion_curve([2.0, 0.0, 1.0, 1.0, INF])
    assert epsilons.tolist() == [0.0, 1.0, 2.0]
    assert accuracies.tolist() == pytest.approx([0.8, 0.4, 0.2])


@given(distances)
def test_curve_agrees_with_accuracy_between_its_steps(values):
    epsilons, accuracies = accuracy_distortion_curve(values)
    assert epsilons[0] == 0
    assert np.isfinite(epsilons).all()
    assert (np.diff(accuracies) < 0).all()
    for left, right, accuracy in zip(epsilons, [*epsilons[1:], epsilons[-1] + 1], accuracies, strict=True):
        if right - left > 1e-3:
            assert accuracy_at(values, (left + right) / 2) == pytest.approx(accuracy)


def test_mcnemar_of_a_worked_example():
    """Nine samples that only the first survives, one that only the second does: 2 (1 + 10) / 2^10."""
    first = [True] * 9 + [False] + [True] * 5 + [False] * 5
    second = [False] * 9 + [True] + [True] * 5 + [False] * 5
    assert mcnemar(first, second) == pytest.approx(22 / 1024)


@given(arrays(bool, st.tuples(st.just(2), st.integers(1, 60))))
def test_mcnemar_is_statsmodels_exact_test(survival):
    first, second = survival
    table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
    assert mcnemar(first, second) == pytest.approx(reference_mcnemar(table, exact=True).pvalue)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_defenses_that_never_differ_have_p_one():
    assert mcnemar([True, False], [True, False]) == 1


def test_smallest_adversarials_take_the_nearest_of_all_attacks_in_the_norm():
    smallest = smallest_adversarials(every_status().records, "L2").set_index(["defense", "sample"])
    assert smallest.loc["cnn", "distance"].tolist() == [0, 0.5, 0.875, 1.5, 2.0]
    assert smallest.loc[("cnn", 2), "attack"] == "pointwise"
    assert smallest.loc[("cnn", 3), "cell"] == "cnn-pgd-L2"


def test_bounded_attacks_take_part_with_what_they_found():
    smallest = smallest_adversarials(every_status().records, "Linf").set_index(["defense", "sample"])
    assert smallest.loc["cnn", "distance"].tolist() == [0, 0.05, 0.1, 0.15, 0.25]


def two_attacks(first, second):
    maker = RunMaker(["cnn"], 1)
    for name, distance in (("a", first), ("b", second)):
        maker.attack(name, ["L2"])
        maker.cell("cnn", name, "L2", [distance], reasons={0: "exception"} if np.isnan(distance) else {})
    return maker.make().records


@pytest.mark.parametrize(
    ("first", "second", "smallest"),
    [(1.0, NAN, 1.0), (NAN, 1.0, 1.0), (INF, NAN, INF), (NAN, INF, INF), (NAN, NAN, NAN), (INF, INF, INF), (0, NAN, 0)],
)
def test_where_an_attack_failed_the_others_say_how_near_the_smallest_is(first, second, smallest):
    chosen = smallest_adversarials(two_attacks(first, second), "L2")
    assert chosen["distance"].tolist() == pytest.approx([smallest], nan_ok=True)


@given(arrays(float, st.tuples(st.just(3), st.integers(1, 6)), elements=st.sampled_from([0.5, 1.0, 2.0, INF, NAN])))
def test_smallest_distance_is_the_minimum_over_attacks(values):
    records = pd.DataFrame(
        [
            {"defense": "cnn", "norm": "L2", "sample": sample, "l2": value}
            for row in values
            for sample, value in enumerate(row)
        ]
    )
    expected = np.where(np.isnan(values), INF, values).min(0)
    expected[np.isnan(values).all(0)] = NAN
    np.testing.assert_array_equal(smallest_adversarials(records, "L2")["distance"], expected)


def test_clean_accuracy_counts_each_sample_once():
    records = every_status().records
    assert accuracy_at(clean_distances(records[records["defense"] == "cnn"]), 0) == pytest.approx(4 / 5)
    assert accuracy_at(clean_distances(records[records["defense"] == "nearest_neighbour"]), 0) == 1


def test_clean_accuracy_is_unknown_where_no_cell_judged_a_sample():
    records = every_status().records
    unjudged = records.assign(clean_prediction=np.where(records["sample"] == 2, -1, records["clean_prediction"]))
    distances = clean_distances(unjudged[unjudged["defense"] == "cnn"])
    assert distances.tolist() == pytest.approx([0, INF, NAN, INF, INF], nan_ok=True)
    assert clean_distances(records.iloc[:0]).empty


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_interval_of_an_accuracy_is_wilsons(survivors, samples):
    survivors = min(survivors, samples)
    values = [INF] * survivors + [1.0] * (samples - survivors)
    expected = proportion_confint(survivors, samples, method="wilson")
    assert accuracy_interval(values, 1.0) == pytest.approx(expected, abs=1e-12)


def test_an_accuracy_that_is_unknown_has_no_interval():
    for values in ([], [1.0, NAN]):
        assert np.isnan(accuracy_interval(values, 1.0)).all()


@given(distances, st.floats(0.1, 50))
def test_the_area_is_that_under_the_curves_steps(values, end):
    epsilons, accuracies = accuracy_distortion_curve(values)
    widths = np.diff([*np.minimum(epsilons, end), end])
    assert curve_area(values, end) == pytest.approx(float(np.sum(widths * accuracies)))


def test_local_optimality_of_a_worked_example():
    """Best area up to 3: (0 + 1 + 2 + 3) / 4 = 1.5; nothing broken: 3/4 of 3. The attack's: (0 + 2 + 2 + 3) / 4."""
    best = [0.0, 1.0, 2.0, 3.0]
    assert local_optimality([0.0, 2.0, 2.0, INF], best) == pytest.approx(1 - 0.25 / 0.75)
    assert local_optimality(best, best) == 1
    assert local_optimality([0.0, INF, INF, INF], best) == 0
    assert np.isnan(local_optimality([0.0, NAN, 2.0, INF], best))
    assert np.isnan(local_optimality([0.0, INF], [0.0, INF]))
    assert local_optimality([0.0, 2.0], [0.0, 2.0]) == 1
    assert local_optimality([0.0, INF], [0.0, 2.0]) == 0


@given(distances, st.data())
def test_local_optimality_lies_between_nothing_and_the_best(best, data):
    factors = data.draw(arrays(np.float64, len(best), elements=st.floats(1, 5)))
    assert np.isnan(value := local_optimality(np.multiply(best, factors), best)) or -1e-9 <= value <= 1 + 1e-9


@settings(max_examples=15)  # theirs takes a tenth of a second
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_adjustment_is_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1])


def test_a_missing_p_value_counts_for_nothing():
    np.testing.assert_allclose(holm([0.01, NAN, 0.04, 0.03]), [0.03, NAN, 0.06, 0.06])


@given(arrays(bool, st.tuples(st.integers(1, 25), st.integers(2, 5))))
def test_cochrans_q_is_statsmodels(survived):
    if (survived.sum(1) % survived.shape[1]).any():
        reference = cochrans_q(survived)
        assert cochran_q(survived) == pytest.approx((reference.statistic, reference.pvalue), abs=1e-9)
    else:
        assert cochran_q(survived) == (0, 1)


def test_cochrans_q_of_two_defenses_is_mcnemars_chi_squared():
    """b = 6, c = 2: (6 - 2)^2 / 8."""
    survived = [[1, 0]] * 6 + [[0, 1]] * 2 + [[1, 1]] * 3
    assert cochran_q(survived)[0] == pytest.approx(2)


def test_the_bootstrap_of_medians_is_scipys():
    random = np.random.default_rng(3)
    first, second = random.normal(2, 1, 80), random.normal(1, 1, 80)
    difference, low, high = median_difference(first, second)
    reference = bootstrap(
        (first, second),
        lambda a, b, axis: np.median(a, axis=axis) - np.median(b, axis=axis),
        paired=True,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert difference == np.median(first) - np.median(second)
    assert (low, high) == pytest.approx(tuple(reference), abs=0.06)


def test_infinite_medians_leave_their_difference_open():
    assert median_difference([INF] * 9, [INF] * 9)[1:] == (-INF, INF)
    assert np.isnan(median_difference([INF] * 9, [INF] * 9)[0])
    assert median_difference([INF] * 9, [1.0] * 9) == (INF, INF, INF)
    assert median_difference([1.0] * 9, [3.0] * 9) == (-2, -2, -2)
    assert np.isnan(median_difference([1.0, NAN], [1.0, 2.0])).all()
    assert np.isnan(median_difference([], [])).all()


def test_survival_of_worked_examples():
    """Of 20 draws with 2 errors, C(18, 10) / C(20, 10) = (10 * 9) / (20 * 19) of the choices of ten have none."""
    assert survival([2], [20], 10) == pytest.approx([90 / 380])
    assert survival([0, 20, 11], [20, 20, 20], 10).tolist() == [1, 0, 0]
    assert survival([5], [20], 1) == pytest.approx([0.75])
    assert survival([0, 0], [20, 10], 20) == pytest.approx([1, NAN], nan_ok=True)


@given(st.integers(1, 40), st.data())
def test_survival_is_hypergeometric(draws, data):
    """No wrong one among N of n draws of which k are wrong."""
    errors, times = data.draw(st.integers(0, draws)), data.draw(st.integers(1, draws))
    assert survival([errors], [draws], times) == pytest.approx([hypergeom.pmf(0, draws, errors, times)], abs=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_survival_is_unbiased(p):
    """Of images that are misclassified with probability p, (1 - p)^N survive."""
    errors = np.random.default_rng(0).binomial(20, p, 200_000)
    for times in (1, 3, 10):
        assert survival(errors, np.full(len(errors), 20), times).mean() == pytest.approx((1 - p) ** times, abs=0.003)


def test_the_interval_of_shares_is_scipys_bootstrap():
    shares = np.random.default_rng(1).choice([0, 0.25, 0.9, 1], 60, p=[0.3, 0.1, 0.1, 0.5])
    mean, low, high = share_interval(shares)
    reference = bootstrap((shares,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert mean == pytest.approx(shares.mean())
    assert (low, high) == pytest.approx(tuple(reference), abs=0.01)
    assert share_interval(shares) == (mean, low, high)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.9])
def test_where_all_samples_agree_the_interval_is_wilsons(share):
    """A bootstrap of equal values would be certain."""
    assert share_interval([share] * 30)[1:] == pytest.approx(proportion_confint(share * 30, 30, method="wilson"))


def test_unknown_shares_have_no_interval():
    for values in ([], [1.0, NAN]):
        assert np.isnan(share_interval(values)).all()


def test_the_likeliest_image_is_chosen_by_the_choosing_draws_alone():
    """Choosing the attack with most errors of fresh draws would count the luckiest of several estimates."""
    columns = ["cell", "sample", "likely_rate", "likely_errors", "likely_draws"]
    rows = [("a", 0, 0.6, 8, 20), ("b", 0, 0.7, 5, 20), ("a", 1, 0.9, 3, 20), ("b", 1, NAN, 0, 0), ("b", 2, 0.5, 0, 0)]
    chosen = likeliest(pd.DataFrame(rows, columns=columns)).set_index("sample")
    assert chosen["likely_errors"].to_dict() == {0: 5, 1: 3}


def test_a_larger_setting_that_breaks_fewer_images():
    """Seven images are lost and one is gained: P(Binomial(8, 1/2) >= 7) = 9 / 256."""
    smaller, larger = [True] * 7 + [False] * 3, [False] * 7 + [True] + [False] * 2
    assert falls(smaller, larger) == pytest.approx(9 / 256)
    assert falls(larger, smaller) == pytest.approx(255 / 256)
    assert falls(smaller, smaller) == 1


def test_errors_are_significant_after_holms_adjustment_within_defense_and_norm():
    """Of 400 draws 232 give p = 8e-4, which one of two samples may not have; 240 give 4e-5."""
    columns = ["defense", "norm", "sample", "errors", "draws"]
    rows = [("a", "L2", 0, 240, 400), ("a", "L2", 1, 232, 400), ("b", "L2", 0, 232, 400), ("a", "Linf", 1, 232, 400)]
    found = significant_errors(pd.DataFrame(rows, columns=columns), "L2")
    assert found.to_dict() == {("a", 0): True, ("a", 1): True, ("b", 0): True}
    more = [*rows, ("a", "L2", 2, 232, 400), ("a", "L2", 3, 100, 400)]
    assert significant_errors(pd.DataFrame(more, columns=columns), "L2").to_dict() == {
        ("a", 0): True, ("a", 1): False, ("a", 2): False, ("a", 3): False, ("b", 0): True
    }  # fmt: skip
    assert significant_errors(pd.DataFrame(), "L2").empty
