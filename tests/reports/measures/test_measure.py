"""Every number of a run stands in one frame; a missing one has its reason in its row."""

import numpy as np
import pytest
from synthetic_runs import every_status, random_answers, studied

from reports.measures.measure import measure
from reports.measures.numbers import EVERY_DEFENSE, Number

RUNS = (every_status, studied, random_answers)


def rows(frame, **columns):
    chosen = np.logical_and.reduce([frame[name] == value for name, value in columns.items()])
    return frame[chosen].to_dict("records")


@pytest.mark.parametrize("run", RUNS)
def test_a_number_is_missing_exactly_where_there_is_a_reason(run):
    frame = measure(run()).frame
    assert list(frame.columns) == list(Number._fields)
    assert (frame["value"].isna() == (frame["reason"] != "")).all()


@pytest.mark.parametrize("run", RUNS)
def test_a_number_lies_within_its_interval(run):
    frame = measure(run()).frame.dropna(subset="low")
    assert (frame["low"] <= frame["value"]).all()
    assert (frame["value"] <= frame["high"]).all()


@pytest.mark.parametrize("run", RUNS)
def test_each_place_has_one_number_of_a_quantity(run):
    assert not measure(run()).frame.duplicated(["norm", "defense", "attack", "quantity"]).any()


@pytest.mark.parametrize(
    ("place", "value", "n", "reason"),
    [
        ({"defense": "cnn", "attack": "pgd", "quantity": "median"}, 1.0, 5, ""),
        ({"defense": "cnn", "attack": "pgd", "quantity": "accuracy"}, 0.2, 5, ""),
        ({"defense": "cnn", "attack": "clean", "quantity": "accuracy"}, 0.8, 5, ""),
        ({"defense": "nearest_neighbour", "attack": "pgd", "quantity": "median"}, 1.875, 4, ""),
        ({"defense": "nearest_neighbour", "attack": "pointwise", "quantity": "seconds"}, np.nan, 0, "not run yet"),
        ({"defense": "binary_cnn", "attack": "pgd", "quantity": "accuracy"}, np.nan, 0, "n/a"),
        ({"defense": "cnn", "attack": "All L2 attacks", "quantity": "median"}, 0.875, 5, ""),
    ],
)
def test_a_number_says_what_it_is_of(place, value, n, reason):
    (row,) = rows(measure(every_status()).frame, norm="L2", **place)
    assert row["value"] == pytest.approx(value, nan_ok=True)
    assert (row["n"], row["reason"]) == (n, reason)


def test_means_are_over_the_defenses_that_an_attack_ran_on():
    (mean,) = rows(measure(every_status()).frame, norm="L2", attack="pgd", defense=EVERY_DEFENSE, quantity="passes")
    assert mean["value"] == 140


def test_numbers_are_found_by_place_and_by_quantity():
    numbers = measure(every_status())
    assert numbers.of("L2", "pgd", "cnn")["median"].value == 1.0
    assert numbers.of("L2", "pgd", "nobody") == {}
    assert {number.norm for number in numbers.where("optimality", "L0")} == {"L0"}
