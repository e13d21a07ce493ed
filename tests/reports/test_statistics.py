import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from synthetic_runs import INF, NAN, RunMaker, every_status

from reports.statistics import (
    accuracy_at,
    accuracy_distortion_curve,
    clean_accuracy,
    mcnemar,
    median_distance,
    median_interval,
    smallest_adversarials,
)

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
    [(1.0, NAN, 1.0), (NAN, 1.0, 1.0), (INF, NAN, NAN), (NAN, INF, NAN), (NAN, NAN, NAN), (INF, INF, INF), (0, NAN, 0)],
)
def test_a_failed_attack_hides_robustness_but_no_adversarial(first, second, smallest):
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
    expected[np.isinf(expected) & np.isnan(values).any(0)] = NAN
    np.testing.assert_array_equal(smallest_adversarials(records, "L2")["distance"], expected)


def test_clean_accuracy_counts_each_sample_once():
    records = every_status().records
    assert clean_accuracy(records[records["defense"] == "cnn"], 5) == pytest.approx(4 / 5)
    assert clean_accuracy(records[records["defense"] == "nearest_neighbour"], 5) == 1


def test_clean_accuracy_is_unknown_where_no_cell_judged_a_sample():
    records = every_status().records
    unjudged = records.assign(clean_prediction=np.where(records["sample"] == 2, -1, records["clean_prediction"]))
    assert np.isnan(clean_accuracy(unjudged[unjudged["defense"] == "cnn"], 5))
    assert np.isnan(clean_accuracy(records.iloc[:0], 5))
