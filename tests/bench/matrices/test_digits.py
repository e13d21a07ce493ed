"""The embedded matrix has something for every table and figure, and is short because its budgets are well spent, not
because its attacks are weak."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

import bench
from bench.contracts.protocols import HasDetectionScore
from bench.datasets.dataset import load_dataset
from bench.planning.files import build_matrix, read_matrix
from bench.plugins.builtins import BUILTINS
from bench.plugins.registry import Registry
from bench.studies.catalog import KINDS
from bench.training.checkpoints import zoo_cards
from bench.training.loading import make_defense
from reports.measures.sweeps import SWEEP_LENGTH

REFERENCE = [f"{name}.method='coordinate'" for name in BUILTINS["attacks"] if name.endswith("_ge")]
"""Gradient estimation as in Schott et al. 2019, section 5; all else at the attacks' defaults."""


@pytest.fixture(scope="module")
def matrix():
    return build_matrix(*read_matrix("digits"), Registry())


def test_it_has_a_detector_an_ablation_and_sweeps_of_a_randomized_and_another_defense(matrix):
    dataset, registry = load_dataset("digits"), Registry()
    made = {label: make_defense(label, dataset, registry) for label in matrix.labels}
    assert set(matrix.studies) == set(KINDS)
    detectors = [label for label in matrix.studied("detection") if isinstance(made[label].defense, HasDetectionScore)]
    assert detectors == ["beta_vac"]
    assert Counter(loaded.card.family for loaded in made.values())["E-ABS"] == 8
    values = {}
    for entry in matrix.attacks:
        for label in matrix.attacked_by(entry) if entry.bounded else []:
            for name, value in entry.parameters.items():
                values.setdefault((label, entry.name, name), set()).add(value)
    swept = {(label, name) for (label, _, name), found in values.items() if len(found) >= SWEEP_LENGTH}
    assert swept == {("eabs", "eot_samples"), ("ad_abs", "steps"), ("ad_abs", "restarts")}
    assert made["eabs"].card.randomized


def test_what_takes_long_to_train_comes_trained(matrix):
    dataset, registry = load_dataset("digits"), Registry()
    trained = {card["defense"] for card in zoo_cards() if card["dataset"] == "digits"}
    made = [make_defense(label, dataset, registry) for label in matrix.labels]
    family = {loaded.learner.card.name for loaded in made if loaded.card.family == "E-ABS"}
    assert family | {"beta_vac"} <= trained


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
