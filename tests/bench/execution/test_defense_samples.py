"""A defense may be measured on fewer samples than the others: the first ones, in all its cells and studies."""

import numpy as np
import pytest
import torch
from small_runs import PLUGIN, run
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.ledger.loading import load_studies
from bench.ledger.manifest_file import load_manifest
from reports import write_report

MATRIX = """
dataset = "digits"
samples = 5
chunk = 2
defenses = ["class_means", { name = "nearest_neighbour", samples = 3 }]
substitute = "class_means"
attacks = ["gaussian_noise"]
studies = ["lower_bound"]
[thresholds]
L2 = 1.0
"""


@pytest.fixture
def made(tmp_path):
    (tmp_path / "small.toml").write_text(MATRIX)
    run(tmp_path / "small.toml", tmp_path / "run", runner="serial")
    return tmp_path


def test_its_cells_and_studies_have_its_samples(made):
    frame = bench.load_ledger(made / "run")
    samples = {name: own["sample"].tolist() for name, own in frame.groupby("defense")}
    assert samples == {"class_means": [0, 1, 2, 3, 4], "nearest_neighbour": [0, 1, 2]}
    bounds = load_studies(made / "run", "lower_bound")
    assert bounds["sample"].tolist() == [0, 1, 2]
    assert [entry.samples for entry in load_manifest(made / "run").defenses] == [None, 3]


def test_it_never_has_more_than_the_matrix(made):
    run(made / "small.toml", made / "fewer", runner="serial", samples=2)
    assert bench.load_ledger(made / "fewer").groupby("defense").size().tolist() == [2, 2]


def test_the_run_verifies_and_its_tables_say_how_many(made):
    write_report(made / "run", made / "run" / "report", 1)
    result = CliRunner().invoke(app, ["verify", str(made / "run"), "--plugin", str(PLUGIN)])
    assert result.exit_code == 0, result.output
    page = (made / "run" / "report" / "index.html").read_text()
    assert "nearest_neighbour: the first 3" in page


def test_an_import_into_it_has_its_samples(made):
    images = bench.load_dataset("digits").test.images[:3]
    np.savez(made / "mine.npz", adversarials=torch.flip(images, [0]).numpy())
    arguments = ["import-adversarials", str(made / "mine.npz"), "--defense", "nearest_neighbour", "--dataset", "digits"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(made / "run"), "--plugin", str(PLUGIN)])
    assert result.exit_code == 0, result.output
    frame = bench.load_ledger(made / "run")
    assert len(frame[frame["attack"].str.startswith("imported")]) == 3
