"""The embedded matrix is short because its budgets are well spent, not because its attacks are weak."""

import numpy as np
import pandas as pd
import pytest

import bench
from bench.matrix import read_matrix
from bench.registry import BUILTINS

REFERENCE = [f"{name}.method='coordinate'" for name in BUILTINS["attacks"] if name.endswith("_ge")]
"""Gradient estimation as in Schott et al. 2019, section 5; all else at the attacks' defaults."""


def medians(frame: pd.DataFrame) -> pd.Series:
    own = np.select([frame["norm"] == "L0", frame["norm"] == "L2"], [frame["l0"], frame["l2"]], frame["linf"])
    minimal = frame.assign(distance=own)[frame["epsilon"].isna()]
    return minimal.groupby(["norm", "attack"])["distance"].median()


@pytest.mark.slow
def test_on_cnn_every_median_is_within_1_1_of_the_attack_at_its_reference_budget(tmp_path):
    data = read_matrix("digits")[1]
    names = {entry if isinstance(entry, str) else entry["name"] for entry in data["attacks"]}
    lines = [f"dataset = 'digits'\nsamples = {data['samples']}\ndefenses = ['cnn']\nattacks = {sorted(names)}"]
    lines += ["[thresholds]", *(f"{norm} = {value}" for norm, value in data["thresholds"].items())]
    (tmp_path / "reference.toml").write_text("\n".join(lines))
    reference = bench.run(str(tmp_path / "reference.toml"), out=tmp_path / "reference", settings=REFERENCE)
    embedded = bench.run("digits", defenses=["cnn"], out=tmp_path / "embedded")
    ratios = medians(embedded) / medians(reference)
    print(ratios.to_string())
    assert ratios.notna().all()
    assert (ratios <= 1.1).all(), ratios[ratios > 1.1]
