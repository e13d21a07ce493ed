"""Records that the judge cannot have written are refused, also where every hash is right."""

import numpy as np
import pytest
from stored_cells import (
    ADVERSARIALS,
    IMAGES,
    INF,
    NAN,
    STUDY,
    STUDY_SCHEMA,
    entry,
    manifest,
    one,
    read_all,
    records,
    refusal,
    study,
)

from bench.ledger.files import write_cell, write_study
from bench.ledger.manifest_file import write_manifest


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        (2, "broken", True),
        (1, "broken", False),
        (1, "status", "not_found"),
        (2, "status", "found"),
        (0, "status", "not_found"),
        (1, "status", "clean_error"),
        (1, "status", "mine"),
        (3, "reason", ""),
        (1, "l2", INF),
        (1, "l2", NAN),
        (1, "l2", -1.0),
        (1, "l2", 50.0),
        (1, "l2", 0.001),
        (1, "linf", 1.5),
        (1, "linf", 0.001),
        (1, "l0", 0.0),
        (1, "l0", 2.5),
        (1, "l0", 17.0),
        (0, "linf", 0.1),
        (2, "l0", 3.0),
        (3, "l2", INF),
        (1, "label", 4),
        (1, "sample", 0),
        (1, "sample", 5),
        (1, "sample_hash", "0" * 16),
        (1, "clean_prediction", 2),
        (0, "clean_prediction", 0),
        (1, "adversarial_prediction", 1),
        (1, "adversarial_prediction", 10),
        (1, "adversarial_prediction", -1),
        (2, "adversarial_prediction", 4),
        (0, "adversarial_prediction", 8),
        (1, "success_rate", 0.9),
        (1, "success_rate", 1.1),
        (1, "epsilon", 0.5),
        (1, "forwards", -1.0),
        (1, "seconds", NAN),
        (1, "useless_gradients", 1.5),
        (1, "cell", "c2"),
        (1, "norm", "Linf"),
        (1, "defense", "other"),
        (1, "attack", "other"),
        (1, "dataset", "other"),
    ],
)
def test_a_record_that_cannot_be_is_named_with_file_row_and_field(run, row, field, value):
    frame = records()
    frame[field] = frame[field].astype(object)
    frame.loc[row, field] = value
    write_cell(one(run), frame, ADVERSARIALS, {})
    line = refusal(run)
    assert str(one(run)) in line
    assert f"row {row}" in line
    if field not in ("status", "broken", "linf"):  # either may be the wrong one of the two
        assert f" {field} is " in line


def test_a_distance_outside_the_ball_is_refused(tmp_path):
    write_manifest(tmp_path, manifest(tmp_path, [entry(epsilon=0.5)]))
    write_cell(one(tmp_path), records(epsilon=0.5), ADVERSARIALS, {})
    assert "the ball's radius is 0.5" in refusal(tmp_path)


def test_a_randomized_defense_may_be_wrong_most_of_the_time_and_answer_the_label_most_often(tmp_path):
    write_manifest(tmp_path, manifest(tmp_path, [entry()], randomized=True))
    frame = records(adversarial_prediction=[9, 1, -1, -1], success_rate=[0.6, 0.7, NAN, NAN])
    write_cell(one(tmp_path), frame, ADVERSARIALS, {})
    read_all(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("success_rate", 0.9), ("success_low", 0.8), ("likely_errors", 3), ("draws_deciding", 10), ("likely_rate", 0.5)],
)
def test_a_deterministic_defense_has_no_draws(run, field, value):
    frame = records()
    frame.loc[1, field] = value
    write_cell(one(run), frame, ADVERSARIALS, {})
    assert f"row 1 (sample 1) {field} is {value}" in refusal(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [("success_low", 0.8), ("success_high", 0.6), ("likely_errors", 21), ("draws_choosing", -1), ("likely_rate", 2.0)],
)
def test_shares_and_counts_of_a_randomized_defense_stay_in_their_ranges(tmp_path, field, value):
    write_manifest(tmp_path, manifest(tmp_path, [entry()], randomized=True))
    rates = {"success_rate": [0.6, 0.7, NAN, NAN], "success_low": 0.5, "success_high": 0.9}
    frame = records(**rates, likely_rate=0.5, likely_errors=9, likely_draws=20)
    frame.loc[1, field] = value
    write_cell(one(tmp_path), frame, ADVERSARIALS, {})
    assert f"row 1 (sample 1) {field} is {value}" in refusal(tmp_path)


def test_half_of_the_rows_are_refused(run):
    write_cell(one(run), records().head(2), ADVERSARIALS[:2], {})
    assert "number of rows is 2; the run has 4 samples" in refusal(run)


def test_another_cells_file_under_this_name_is_refused(run):
    write_cell(one(run), records("c2"), ADVERSARIALS, {})
    assert "row 0 cell is 'c2'; expected 'c1'" in refusal(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images * 3, "outside [0, 1]"),
        (lambda images: images[:2], "float32 (2, 1, 4, 4)"),
        (lambda images: np.where(np.arange(4)[:, None, None, None] == 2, 0.5, images).astype(np.float32), "row 2"),
        (lambda images: np.where(images == 0, np.float32(-0.0), images), "image is -0.0 somewhere"),
    ],
    ids=["range", "count", "image of a sample that is not broken", "negative zero"],
)
def test_images_that_do_not_fit_the_records_are_refused(run, change, message):
    write_cell(one(run), records(), change(ADVERSARIALS), {})
    assert message in refusal(run)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"cell": "s2"}, "cell is 's2'"),
        ({"status": "found"}, "status is 'found'; allowed: bound, failed"),
        ({"lower_bound": -1.0}, "lower_bound is -1"),
        ({"sample": 3}, "sample is out of order"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, columns, message):
    write_manifest(tmp_path, manifest(tmp_path, [], [STUDY]))
    write_study(tmp_path / "ledger" / "study.parquet", study(**columns), STUDY_SCHEMA, {}, IMAGES)
    assert message in refusal(tmp_path)
