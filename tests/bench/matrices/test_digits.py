"""The embedded matrices on digits hold what the report's tables need.

The default one is short because its budgets are well spent, not because its attacks are weak.
"""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

import bench
from bench.contracts.protocols import HasDetectionScore
from bench.datasets.dataset import load_dataset
from bench.planning.files import build_matrix, read_matrix
from bench.plugins.registry import Registry
from bench.studies.catalog import STUDIES
from bench.training.loading import make_defense
from reports.measures.sweeps import SWEEP_LENGTH

REFERENCE = [f"{name}.method='coordinate'" for name in Registry().names("attacks") if name.endswith("_ge")]
"""Gradient estimation as in Schott et al. 2019, section 5; all else at the attacks' defaults."""


def read(name):
    return build_matrix(*read_matrix(name), Registry())


def made_in(matrix):
    dataset, registry = load_dataset("digits"), Registry()
    return {label: make_defense(label, dataset, registry) for label in matrix.labels}


@pytest.fixture(scope="module")
def matrix():
    return read("digits")


def attacks_on(matrix, label):
    return {entry.label for entry in matrix.attacks if label in matrix.attacked_by(entry)}


def test_each_deterministic_defense_meets_every_attack_and_each_randomized_one_fewer(matrix):
    made = made_in(matrix)
    assert len(made) == 8
    deterministic = [label for label, loaded in made.items() if not loaded.card.randomized]
    everything = {entry.label for entry in matrix.attacks} - {"unrolled_pgd:bounded"}
    unrolled = {label: {"unrolled_pgd:bounded"} if "abs" in label else set() for label in deterministic}
    assert {label: attacks_on(matrix, label) for label in deterministic} == {
        label: everything | more for label, more in unrolled.items()
    }
    few = {"eot_pgd:bounded", "deepfool", "ddn", "fmn", "boundary", "pointwise"}
    assert attacks_on(matrix, "eabs") == few | {"unrolled_pgd:bounded"}
    assert attacks_on(matrix, "variational_smoothing:cnn_gaussian") == few


def test_what_randomized_defenses_meet_is_written_in_the_matrix(matrix):
    randomized = [label for label, loaded in made_in(matrix).items() if loaded.card.randomized]
    entries = [entry for entry in matrix.attacks if {*matrix.attacked_by(entry)} & {*randomized}]
    assert all({*matrix.attacked_by(entry)} <= {*randomized} for entry in entries)
    assert all({"steps", "num_scales"} & entry.parameters.keys() for entry in entries)


def test_the_ablation_has_all_parts_of_eabs():
    assert Counter(loaded.card.family for loaded in made_in(read("digits-ablation")).values())["E-ABS"] == 8


def test_the_sweeps_are_of_a_randomized_and_another_defense():
    matrix = read("digits-sweeps")
    values = {}
    for entry in matrix.attacks:
        for label in matrix.attacked_by(entry):
            for name, value in entry.parameters.items():
                values.setdefault((label, entry.name, name), set()).add(value)
    swept = {(label, name) for (label, _, name), found in values.items() if len(found) >= SWEEP_LENGTH}
    assert swept == {("eabs", "eot_samples"), ("ad_abs", "steps"), ("ad_abs", "restarts")}
    assert made_in(matrix)["eabs"].card.randomized


def test_the_detection_has_a_detector_and_a_defense_without_one():
    matrix = read("digits-detection")
    assert "detection" in matrix.studies
    scored = [isinstance(loaded.defense, HasDetectionScore) for loaded in made_in(matrix).values()]
    assert sorted(scored) == [False, True]


def test_every_kind_of_study_is_in_one_of_the_matrices(matrix):
    assert {*matrix.studies, *read("digits-detection").studies} == {*STUDIES.names()}


def medians(frame: pd.DataFrame) -> pd.Series:
    own = np.select([frame["norm"] == "L0", frame["norm"] == "L2"], [frame["l0"], frame["l2"]], frame["linf"])
    minimal = frame.assign(distance=own)[frame["epsilon"].isna()]
    return minimal.groupby(["norm", "attack"])["distance"].median()


@pytest.mark.slow
def test_on_cnn_every_median_is_within_1_1_of_the_attack_at_its_reference_budget(matrix, tmp_path):
    names = {entry.name for entry in matrix.attacks if not entry.bounded}
    lines = [f"dataset = 'digits'\nsamples = {matrix.samples}\ndefenses = ['cnn']\nattacks = {sorted(names)}"]
    lines += ["[thresholds]", *(f"{norm} = {value}" for norm, value in matrix.thresholds.items())]
    (tmp_path / "reference.toml").write_text("\n".join(lines))
    reference = bench.run(str(tmp_path / "reference.toml"), out=tmp_path / "reference", settings=REFERENCE)
    embedded = bench.run("digits", defenses=["cnn"], out=tmp_path / "embedded")
    ratios = medians(embedded) / medians(reference)
    print(ratios.to_string())
    assert ratios.notna().all()
    assert (ratios <= 1.1).all(), ratios[ratios > 1.1]
