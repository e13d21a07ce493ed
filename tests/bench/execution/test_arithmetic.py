"""A run says how this machine computes the defenses that it can compute in several ways, and never mixes the ways."""

import pytest
import torch

import bench
from bench.contracts.protocols import HasArithmetic
from bench.ledger.files import read_cell
from bench.ledger.manifest_file import load_manifest
from bench.ledger.schema import ledger_dir
from bench.verification.laboratory import Laboratory
from bench.verification.verify import verify

MATRIX = """
dataset = "digits"
samples = 4
defenses = ["cnn", "abs", "eabs", "halved:abs"]
studies = ["lower_bound"]
attacks = [{ name = "ddn", parameters = { steps = 5 } }]
thresholds = { L2 = 0.5 }
"""
PLUGIN = """
from bench import defense
from bench.contracts.protocols import Defense

@defense("halved:abs", datasets=["digits"], citation="-", wraps="abs")
class Halved:
    def __init__(self, base: Defense) -> None:
        self.base = base

    def logits(self, x):
        return self.base.logits(x) / 2
"""


@pytest.fixture
def computed(monkeypatch):
    """Lets a way to compute be chosen. Both compute the same here: `tests/defenses/test_compiled.py` compares them."""

    def choose(way):
        monkeypatch.setattr("defenses.abs.model.LatentClassifier.arithmetic", way)

    choose("one")
    return choose


@pytest.fixture
def matrix(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(MATRIX)
    (tmp_path / "halved.py").write_text(PLUGIN)
    return path


def _run(matrix):
    folder = matrix.parent
    bench.run(matrix, plugins=[folder / "halved.py"], out=folder / "run", device="cpu", runner="serial")
    return load_manifest(folder / "run")


def test_the_first_line_the_manifest_and_every_cell_name_the_way(matrix, computed, capfd):
    manifest = _run(matrix)
    assert capfd.readouterr().err.splitlines()[0] == "small: inference by one"
    assert manifest.provenance["arithmetic"] == "one"
    for cell in manifest.cells:
        way = None if cell.defense == "cnn" else "one"
        assert cell.identity["state"].get("arithmetic") == way
        _, facts = read_cell(ledger_dir(matrix.parent / "run") / cell.files[0])
        assert facts["state"].get("arithmetic") == way


def test_a_run_that_is_continued_in_another_way_is_repeated_not_mixed(matrix, computed, capfd):
    before = _run(matrix)
    computed("another")
    after = _run(matrix)
    kept = {work.id for work in before.works} & {work.id for work in after.works}
    assert {work.defense for work in after.works if work.id in kept} == {"cnn"}
    assert after.provenance["arithmetic"] == "another"


def test_a_run_is_verified_in_another_way(matrix, computed):
    _run(matrix)
    computed("another")
    found = verify(matrix.parent / "run", Laboratory(None, torch.device("cpu"), [matrix.parent / "halved.py"]))
    assert not found.faults
    assert found.judged


def test_defenses_say_it_by_protocol():
    assert isinstance(bench.load_defense("abs", dataset="digits"), HasArithmetic)
    assert not isinstance(bench.load_defense("cnn", dataset="digits"), HasArithmetic)
