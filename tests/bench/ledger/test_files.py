"""The ledger's files appear whole or not at all, describe and seal themselves, and are never trusted unread."""

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench.contracts.errors import UserError
from bench.contracts.norms import NORMS
from bench.ledger.entries import CellEntry, DatasetEntry, DefenseEntry, StudyEntry
from bench.ledger.files import read_cell, write_cell, write_study
from bench.ledger.loading import load_adversarials, load_clean, load_ledger, load_studies, load_study_images
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest, write_manifest
from bench.ledger.reader import is_done, reader, write_clean
from bench.ledger.schema import CELL_SCHEMA, COLUMNS, DISTANCES, FIRST_DISTANCES, sample_hash
from bench.ledger.seals import column_hashes, sealed

IMAGES = np.random.default_rng(0).random((4, 1, 4, 4), np.float32)
LABELS = np.array([0, 1, 2, 3])
ADVERSARIALS = np.stack([IMAGES[0], IMAGES[1] / 2, np.zeros_like(IMAGES[2]), np.zeros_like(IMAGES[3])])
NAN, INF = np.nan, np.inf


def distances(column):
    """Of a clean error, of image 1 at half its brightness, of one that is not broken, of a violation."""
    clean, moved = torch.from_numpy(IMAGES[1:2]), torch.from_numpy(IMAGES[1:2] / 2)
    (own,) = (norm.distance(moved, clean).item() for norm in NORMS.values() if norm.column == column)
    return [0.0, own, INF, NAN]


def records(cell="c1", **columns):
    """A clean error, a sample found, one not found, and a violation."""
    values = {name: 0 if kind is not object else "" for name, kind in COLUMNS.items()}
    frame = pd.DataFrame([{**values, "cell": cell} for _ in range(4)])
    frame = frame.assign(
        dataset="d",
        sample=range(4),
        sample_hash=[sample_hash(image) for image in IMAGES],
        label=LABELS,
        defense="net",
        attack="pgd",
        norm="L2",
        epsilon=NAN,
        clean_prediction=[9, 1, 2, 3],
        adversarial_prediction=[9, 8, -1, -1],
        status=["clean_error", "found", "not_found", "violation"],
        reason=["", "", "", "out_of_range"],
        broken=[True, True, False, False],
        success_rate=[1.0, 1.0, NAN, NAN],
        success_low=NAN,
        success_high=NAN,
        likely_rate=NAN,
        **{column: distances(column) for column in DISTANCES},
    )
    return frame.assign(**columns)[list(COLUMNS)]


def entry(cell="c1", file="one.parquet", epsilon=None):
    return CellEntry(
        id=cell, defense="net", attack="pgd", norm="L2", epsilon=epsilon, file=file, parameters={}, budget=9
    )


STUDY_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("cell", "dataset", "defense", "norm", "status", "reason")),
        ("sample", pa.int64()),
        ("lower_bound", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
STUDY = StudyEntry(id="s1", kind="lower_bound", defense="net", norm="L2", file="study.parquet")


def study(**columns):
    return pd.DataFrame({"sample": range(4)}).assign(
        **{
            "cell": "s1",
            "dataset": "d",
            "defense": "net",
            "norm": "L2",
            "status": "bound",
            "reason": "",
            "lower_bound": 0.1,
            "seconds": 1.0,
            **columns,
        }
    )


def manifest(folder, cells, studies=(), randomized=False):
    return Manifest(
        matrix="m",
        dataset=DatasetEntry(name="d", classes=10, shape=(1, 4, 4)),
        samples=(0, 1, 2, 3),
        images=write_clean(folder, IMAGES, LABELS),
        seed=0,
        thresholds={"L2": 0.5},
        defenses=(DefenseEntry(name="net", randomized=randomized),),
        attacks=(),
        cells=tuple(cells),
        studies=tuple(studies),
        not_applicable=(),
    )


def one(run):
    return run / "ledger" / "one.parquet"


@pytest.fixture
def run(tmp_path):
    """A run of one finished and one missing cell."""
    write_manifest(tmp_path, manifest(tmp_path, [entry(), entry("c2", "two.parquet")]))
    write_cell(one(tmp_path), records(), ADVERSARIALS, {"versions": {"torch": "2"}})
    return tmp_path


@pytest.fixture
def finished(tmp_path):
    """A finished run of one cell and one study."""
    write_cell(one(tmp_path), records(), ADVERSARIALS, {"versions": {"torch": "2"}})
    write_study(tmp_path / "ledger" / "study.parquet", study(), STUDY_SCHEMA, {}, IMAGES)
    write_manifest(tmp_path, manifest(tmp_path, [entry()], [STUDY]), finished=True)
    return tmp_path


def read_all(run):
    """Whatever a report reads."""
    load_ledger(run)
    load_studies(run, "lower_bound")
    load_clean(run)
    for cell in load_manifest(run).cells:
        load_adversarials(run, cell.id)
    for own in load_manifest(run).studies:
        load_study_images(run, own.id)


def refusal(run):
    """The one line with which a run is not read."""
    with pytest.raises(UserError) as caught:
        read_all(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is written is read back.


def test_what_is_written_is_read_back_with_its_provenance(run):
    frame, provenance = read_cell(one(run))
    assert list(frame.columns) == list(COLUMNS)
    assert frame["l2"].tolist()[:3] == distances("l2")[:3]
    assert provenance["versions"] == {"torch": "2"}
    assert np.array_equal(load_clean(run), IMAGES)
    assert np.array_equal(load_adversarials(run, "c1"), ADVERSARIALS)


def test_a_ledger_holds_the_finished_cells_of_the_manifest(run):
    write_cell(run / "ledger" / "old.parquet", records("other"), ADVERSARIALS, {})
    assert load_ledger(run)["cell"].unique().tolist() == ["c1"]


@pytest.mark.parametrize("cells", [1, 2])
def test_a_ledgers_frame_can_be_written_to(run, cells):
    if cells == 2:
        write_cell(run / "ledger" / "two.parquet", records("c2"), ADVERSARIALS, {})
    frame = load_ledger(run)
    for column, value in (("l2", 5.0), ("sample", 7), ("broken", False), ("status", "mine")):
        frame.loc[0, column] = value
        assert frame[column].iloc[0] == value
    assert len(frame) == 4 * cells
    assert frame["l2"].iloc[1] == distances("l2")[1]


def test_anyone_can_read_a_cell_with_pandas(run):
    assert pd.read_parquet(one(run))["sample"].tolist() == [0, 1, 2, 3]


def test_an_empty_ledger_has_its_columns(tmp_path):
    write_manifest(tmp_path, manifest(tmp_path, []))
    assert list(load_ledger(tmp_path).columns) == list(COLUMNS)


def test_the_same_records_give_the_same_bytes(run):
    first = one(run).read_bytes()
    write_cell(one(run), records(), ADVERSARIALS, {"versions": {"torch": "2"}})
    assert one(run).read_bytes() == first


def test_result_files_are_for_everybody_whom_the_umask_lets_read(tmp_path):
    before = os.umask(0o022)
    try:
        write_cell(one(tmp_path), records(), ADVERSARIALS, {})
        write_manifest(tmp_path, manifest(tmp_path, [entry()]))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "ledger").iterdir()} == {0o644}


# A cell is done if its file exists and verifies.


def test_a_cell_is_done_if_its_file_is_whole_and_nothing_failed(run):
    files = reader(run, load_manifest(run))
    assert is_done(entry(), files)
    assert not is_done(entry("c2", "two.parquet"), files)
    failed = records(status=["clean_error", "found", "not_found", "failed"], reason=["", "", "", "timeout"])
    write_cell(one(run), failed, ADVERSARIALS, {})
    assert not is_done(entry(), files)


def test_a_cell_with_a_sample_whose_logits_are_not_finite_is_done(run):
    failed = records(status=["clean_error", "found", "not_found", "failed"], reason=["", "", "", "non_finite"])
    write_cell(one(run), failed, ADVERSARIALS, {})
    assert is_done(entry(), reader(run, load_manifest(run)))


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped"])
@pytest.mark.parametrize("file", ["one.parquet", "one.npz"])
def test_a_corrupt_result_is_named_in_one_line(run, file, damage):
    path = run / "ledger" / file
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "emptied":
        content = bytearray()
    else:
        content[30] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=file) as caught:
        is_done(entry(), reader(run, load_manifest(run)))
    assert "\n" not in str(caught.value)
    assert "delete" in str(caught.value)


# Records that the judge cannot have written are refused, also where every hash is right.


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


# Each file seals itself: what is altered is named, whoever wrote it.


def rewrite(path, change):
    """Alters the records of a file (a frame) and keeps what it says about itself."""
    table = pq.read_table(path)
    frame = table.to_pandas()
    change(frame)
    pq.write_table(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False), path)


@pytest.mark.parametrize("column", list(COLUMNS))
def test_an_altered_column_differs_from_the_seal(run, column):
    def change(frame):
        value = frame.loc[2, column]
        frame[column] = frame[column].astype(object)
        frame.loc[2, column] = not value if column in ("broken", "claimed") else f"{value}x"
        if COLUMNS[column] is not object and column not in ("broken", "claimed"):
            frame.loc[2, column] = 77

    rewrite(one(run), change)
    with pytest.raises(UserError, match=rf"one\.parquet: its column '{column}' was altered"):
        read_cell(one(run))


def test_another_encoding_of_the_same_records_is_the_same(run):
    before, table = load_ledger(run), pq.read_table(one(run))
    pq.write_table(table, one(run), compression="none", use_dictionary=False)
    pd.testing.assert_frame_equal(load_ledger(run), before)


@pytest.mark.parametrize("change", ["altered", "added", "removed"])
def test_an_altered_fact_differs_from_the_seal(run, change):
    table = pq.read_table(one(run))
    facts = json.loads(table.schema.metadata[b"assay"])
    facts = {**facts, "versions": {"torch": "3"}} if change == "altered" else {**facts, "versionz": 1}
    if change == "removed":
        del facts["versions"], facts["versionz"]
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), one(run))
    with pytest.raises(UserError, match=r"its fact 'version.' was altered"):
        read_cell(one(run))


@pytest.mark.parametrize("column", ["l2", "status"])
def test_a_column_of_another_type_or_none_is_refused(run, column):
    table = pq.read_table(one(run))
    pq.write_table(table.drop_columns(column), one(run))
    with pytest.raises(UserError, match=f"column '{column}'"):
        read_cell(one(run))


def test_clean_images_are_those_that_their_name_says(run):
    path = run / "ledger" / load_manifest(run).images
    altered = IMAGES.copy()
    altered[0, 0, 0, 0] += 0.01
    np.savez_compressed(path, images=altered, labels=LABELS)
    assert "differ from the hash in their name" in refusal(run)


# The manifest of a finished run holds the hash of every file.


def test_a_finished_runs_manifest_holds_the_hash_of_every_file(finished):
    names = {file.name for file in (finished / "ledger").iterdir()}
    assert set(load_manifest(finished).files) == names - {"manifest.json"}
    read_all(finished)


@pytest.mark.parametrize("file", ["one.parquet", "study.parquet"])
def test_a_file_written_anew_after_the_end_of_a_run_is_refused(finished, file):
    path = finished / "ledger" / file
    if file == "one.parquet":
        write_cell(path, records(seconds=7.0), ADVERSARIALS, {})
    else:
        write_study(path, study(seconds=7.0), STUDY_SCHEMA, {}, IMAGES)
    assert f"{file}: it is not the file that the run ended with" in refusal(finished)


def test_a_file_missing_from_a_finished_run_is_named(finished):
    one(finished).unlink()
    assert "one.parquet: missing, and the manifest has its hash" in refusal(finished)


# Versions.


def test_a_result_of_another_schema_version_is_refused(run):
    table = pq.read_table(one(run))
    facts = {**json.loads(table.schema.metadata[b"assay"]), "schema": 99}
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), one(run))
    with pytest.raises(UserError, match="schema version 99, this assay reads 2 and 3"):
        read_cell(one(run))


def without(path, column):
    """Writes a file anew without a column of distances, as it was written before that norm was known."""
    frame, facts = read_cell(path)
    schema = pa.schema([field for field in CELL_SCHEMA if field.name != column])
    table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    facts = sealed({**facts, "columns_sha256": column_hashes(table)})
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), path)


@pytest.mark.parametrize("column", DISTANCES[len(FIRST_DISTANCES) :])
def test_a_file_older_than_a_norm_is_read_with_unknown_distances_in_it(run, column):
    before = load_ledger(run)
    without(one(run), column)
    write_manifest(run, load_manifest(run), finished=True)
    after = load_ledger(run)
    assert after[column].isna().all()
    pd.testing.assert_frame_equal(after.drop(columns=column), before.drop(columns=column))


@pytest.mark.parametrize("column", FIRST_DISTANCES)
def test_a_file_without_distances_that_every_file_has_is_refused(run, column):
    without(one(run), column)
    write_manifest(run, load_manifest(run), finished=True)
    assert f"its column {column!r} is missing, expected double" in refusal(run)


def test_unknown_distances_in_a_column_that_is_there_are_refused(run):
    frame = records()
    frame["linf"] = NAN
    write_cell(one(run), frame, ADVERSARIALS, {})
    assert "row 0 (sample 0) linf is None; a clean error is at distance 0" in refusal(run)


def test_a_file_cannot_shed_its_seal_by_calling_itself_older(run):
    table = pq.read_table(one(run))
    facts = {**json.loads(table.schema.metadata[b"assay"]), "schema": 2}
    pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), one(run))
    assert "one.parquet" in refusal(run)
