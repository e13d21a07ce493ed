"""Each kind of plugin has a catalog, and a new one is a new file alone."""

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from bench.contracts.cards import AttackCard, DefenseCard, FamilyCard, attached
from bench.contracts.errors import UserError
from bench.contracts.source import PACKAGES, ROOT
from bench.datasets.cards import DatasetCard
from bench.datasets.catalog import DATASETS
from bench.execution.runners import RUNNERS, RunnerCard
from bench.plugins import scan as scanning
from bench.plugins.catalog import Catalog
from bench.plugins.registry import BUILT_IN, FAMILIES
from bench.studies.cards import StudyCard
from bench.studies.catalog import STUDIES

CATALOGS = {
    "attacks": (BUILT_IN["attacks"], "attacks", AttackCard),
    "defenses": (BUILT_IN["defenses"], "defenses", DefenseCard),
    "families": (FAMILIES, "defenses", FamilyCard),
    "datasets": (DATASETS, "bench.datasets", DatasetCard),
    "studies": (STUDIES, "bench.studies", StudyCard),
    "runners": (RUNNERS, "bench.execution", RunnerCard),
}


def modules(package):
    """Returns all modules of a package, imported, by name."""
    top = importlib.import_module(package)
    names = [package, *(each.name for each in pkgutil.walk_packages(top.__path__, f"{package}."))]
    return {name: importlib.import_module(name) for name in names}


@pytest.mark.parametrize("kind", CATALOGS)
def test_the_names_that_are_found_without_importing_a_module_are_those_of_its_cards(kind):
    catalog, package, card_type = CATALOGS[kind]
    scanned: dict[str, set[str]] = {}
    for declaration in catalog.scan().declarations:
        scanned.setdefault(declaration.module, set()).add(declaration.name)
    imported: dict[str, set[str]] = {}
    for name, module in modules(package).items():
        for value in vars(module).values():
            card = attached(value, card_type)
            if card is not None and value.__module__ == name:
                imported.setdefault(name, set()).add(card.name)
    assert scanned == imported
    assert scanned
    assert catalog.scan().broken == {}


@pytest.mark.parametrize("kind", CATALOGS)
def test_every_name_gets_the_card_of_this_name(kind):
    catalog, _, _ = CATALOGS[kind]
    assert [(name, card.name) for name, card in catalog.rows()] == [(name, name) for name in catalog.names()]


@pytest.fixture
def things(tmp_path, monkeypatch):
    """A catalog of attacks in the package ``things``, and a function that writes modules into it."""
    monkeypatch.setattr(scanning, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "things").mkdir()

    def write(name, text):
        (tmp_path / "things" / f"{name}.py").write_text(f"from bench import attack\n{text}")

    write("__init__", "")
    yield Catalog("attack", "things", AttackCard), write
    for name in [name for name in sys.modules if name.partition(".")[0] == "things"]:
        del sys.modules[name]


MINE = '@attack("mine", norms=["L2"], access="score", budget=1)\ndef mine(oracle, x, y): ...\n'


def test_a_module_is_imported_when_its_name_is_asked_for(things):
    catalog, write = things
    write("one", MINE)
    write("two", MINE.replace("mine", "other"))
    assert catalog.names() == ["mine", "other"]
    assert catalog.module("other") == "things.two"
    assert "things" not in sys.modules
    assert catalog.get("mine").card.budget == 1
    assert "things.two" not in sys.modules


def test_a_broken_module_is_listed_with_its_error_and_leaves_the_others(things):
    catalog, write = things
    write("good", MINE)
    write("unreadable", "def f(:")
    write("raises", MINE.replace("mine", "other") + "raise OSError('no luck')")
    write("lies", "ATTACK_NAMES = ('absent',)")
    found = {name: card if isinstance(card, str) else card.name for name, card in catalog.rows()}
    assert found.pop("unreadable").startswith("SyntaxError: invalid syntax")
    assert found == {
        "mine": "mine",
        "other": "built-in attack 'other' (things.raises) is broken: OSError: no luck",
        "absent": "built-in attack 'absent': the source of things.lies names it, but no card does",
    }
    with pytest.raises(
        UserError, match=r"unknown attack 'mini'; did you mean 'mine'\?.*; things.unreadable is broken:"
    ):
        catalog.get("mini")


def test_a_name_that_two_modules_declare_is_refused_with_both(things):
    catalog, write = things
    write("one", MINE)
    write("two", MINE)
    assert catalog.names() == ["mine"]
    with pytest.raises(UserError, match=r"attack 'mine' is declared twice, by things.one and things.two; rename one"):
        catalog.get("mine")


NEW_FILES = {
    "attacks/to_black.py": """
from bench.contracts.cards import attack

@attack("to_black", norms=["L2"], access="decision", budget=10, citation="nobody")
def to_black(oracle, x, y):
    return 0 * x
""",
    "defenses/by_side.py": """
import torch
from bench.contracts.cards import defense

@defense("by_side", datasets=["halves"], citation="nobody")
def by_side():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    left = (torch.arange(16) % 4 < 2).float()
    net[1].weight.data, net[1].bias.data = torch.stack([left, 1 - left]), torch.tensor([0.0, 0.1])
    return net
""",
    "bench/datasets/halves.py": """
import torch
from bench.datasets.cards import dataset
from bench.datasets.split import Split

@dataset("halves", classes=2, shape=(1, 4, 4), train=10, test=10, source="this test", citation="nobody")
def halves(part, data_dir):
    labels = torch.arange(10) % 2
    left = (torch.arange(4) < 2).float().expand(1, 4, 4)
    return Split(torch.stack([1 - left if label else left for label in labels]), labels)
""",
    "bench/studies/brightness.py": """
import pyarrow as pa
from bench.studies.cards import study
from bench.studies.study import Measured, records, schema

SCHEMA = schema(("brightness", pa.float64()))

@study("brightness", schema=SCHEMA, norms_of=lambda defense: (None,), samples_of=lambda dataset, samples: samples)
def measure(study, defense, dataset, device, on_samples):
    means = dataset.test.images[: study.samples].flatten(1).mean(1).double().numpy()
    on_samples(study.samples)
    return Measured(records(SCHEMA, study, range(study.samples), status="measured", brightness=means, seconds=0.0))
""",
    "bench/execution/backwards.py": """
from bench.execution.runners import runner
from bench.execution.worker import Worker

@runner("backwards")
def run_backwards(job, shards, processes, listener):
    worker = Worker(job)
    for shard in reversed([*shards]):
        print("backwards:", shard.work.title)
        listener.started(shard)
        listener.done(shard, worker.execute(shard, lambda samples, shard=shard: listener.advanced(shard, samples)))
""",
    "attacks/half_written.py": "@attack('half', norms=",
    "halves.toml": """
dataset = "halves"
samples = 6
defenses = ["by_side"]
attacks = ["to_black"]
studies = ["brightness"]
[thresholds]
L2 = 1.0
""",
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of our packages with one new file of each kind, and a function that runs the command there."""
    folder = tmp_path_factory.mktemp("extended")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    for name, text in NEW_FILES.items():
        (folder / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    code = "from bench.cli.app import main; main()"

    def assay(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return folder, assay


def test_one_new_file_is_listed(extended):
    _, assay = extended
    for what, name in (("attacks", "to_black"), ("defenses", "by_side"), ("datasets", "halves")):
        assert name in [line.split()[0] for line in assay("list", what).splitlines()]
    assert "backwards" in assay("run", "--help")
    assert "SyntaxError: '(' was never closed" in next(
        line for line in assay("list", "attacks").splitlines() if line.startswith("half_written")
    )


def test_one_new_file_is_planned_and_run(extended):
    folder, assay = extended
    planned = assay("plan", "halves.toml")
    assert "to_black" in planned
    assert "brightness" in planned
    ran = assay("run", "halves.toml", "--runner", "backwards", "--out", "run")
    assert "backwards: by_side · to_black · L2" in ran
    assert "backwards: by_side · brightness" in ran
    files = {
        file.name.partition("--")[2].partition("--")[0]: file for file in (folder / "run/ledger").glob("*.parquet")
    }
    found, measured = pd.read_parquet(files["to_black"]), pd.read_parquet(files["brightness"])
    assert found["status"].tolist() == ["found", "not_found"] * 3
    assert measured["brightness"].tolist() == [0.5] * 6
