"""Built-ins, local files and installed packages, found by name and imported when needed."""

import importlib
import importlib.metadata
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.cards import card_of
from bench.conformance import check_attack, check_defense
from bench.datasets import load_dataset
from bench.errors import UserError
from bench.loading import make_defense
from bench.registry import BUILTINS, Registry

PLUGIN_PACKAGE = Path(__file__).parents[1] / "plugin_package"
GOOD = """
import torch
from bench import attack, defense

@defense("mine", datasets=["digits"])
def mine() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

@attack("nudge", norms=["L2"], access="decision", budget=5)
def nudge(oracle, x, y, *, size=0.1):
    return (x + size).clamp(0, 1)
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="plugin.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder into which the third-party package is really installed."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    shutil.copytree(PLUGIN_PACKAGE, source)
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


@pytest.mark.parametrize("group", ["defenses", "attacks"])
def test_the_table_of_built_ins_is_complete_and_true(group):
    package = importlib.import_module(group)
    declared = {}
    for module in pkgutil.walk_packages(package.__path__, f"{group}."):
        imported = importlib.import_module(module.name)
        for value in vars(imported).values():
            card = card_of(value)
            if card is not None and value.__module__ == module.name:
                declared[card.name] = module.name
    assert declared == BUILTINS[group]
    registry = Registry()
    for name in BUILTINS[group]:
        assert registry.get(group, name).card.name == name


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, bench, bench.registry; bench.registry.Registry();"
        "assert not {'torch', 'pandas', 'defenses', 'attacks', 'reports'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_local_file_offers_its_plugins(write):
    path = write(GOOD)
    registry = Registry([path])
    assert registry.get("defenses", "mine").source == f"file {path}"
    assert registry.get("attacks", "nudge").attack_card.parameters == {"size": 0.1}
    assert (
        Registry([write(GOOD + "\n", "other.py")]).get("attacks", "nudge").digest
        != registry.get("attacks", "nudge").digest
    )


def test_an_installed_package_offers_its_plugins(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    registry = Registry()
    defense = registry.get("defenses", "example_linear")
    assert defense.source.startswith("package assay")
    dataset = load_dataset("digits")
    failed = [c for c in check_defense(make_defense("example_linear", dataset, registry), dataset) if not c.passed]
    assert failed == []
    assert [c for c in check_attack(registry.get("attacks", "example_blend")) if not c.passed] == []


DEFENSES = [name for name in Registry().names("defenses") if not name.endswith(":schott2019")]


@pytest.mark.parametrize("name", DEFENSES)
def test_every_built_in_defense_passes_the_conformance_suite(name):
    """Untrained: what a defense promises does not depend on its weights."""
    torch.manual_seed(0)
    dataset = load_dataset("digits")
    assert [c for c in check_defense(make_defense(name, dataset, Registry()), dataset) if not c.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILTINS["attacks"])
def test_every_built_in_attack_passes_the_conformance_suite(name):
    assert [c for c in check_attack(Registry().get("attacks", name)) if not c.passed] == []


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown defense 'cnnn'; did you mean 'cnn'\? Allowed: a_abs, abs, "):
        Registry().get("defenses", "cnnn")


def test_a_name_declared_twice_is_refused_with_both_sources(write):
    first, second = write(GOOD), write(GOOD, "again.py")
    with pytest.raises(UserError, match=rf"'mine' is declared twice, by file {first} and file {second}"):
        Registry([first, second]).get("defenses", "mine")


def test_a_local_file_cannot_replace_a_built_in(write):
    path = write(GOOD.replace('"mine"', '"cnn"'))
    with pytest.raises(UserError, match="declared twice, by built-in and file"):
        Registry([path]).get("defenses", "cnn")


def test_a_broken_file_is_listed_and_fatal_only_if_needed(write):
    path = write("import torch\nraise RuntimeError('no luck')")
    registry = Registry([path])
    assert registry.get("defenses", "cnn").card.name == "cnn"
    broken = [(name, error) for name, source, error in registry.rows("defenses") if source == f"file {path}"]
    assert broken == [("plugin", "RuntimeError: no luck")]
    with pytest.raises(UserError, match="is broken: RuntimeError: no luck"):
        registry.get("defenses", "mine")


def test_a_file_without_plugins_says_so(write):
    assert {n: p for n, _, p in Registry([write("x = 1")]).rows("attacks")}["plugin"].startswith("declares no")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"--plugin .*none.py: no such file"):
        Registry([tmp_path / "none.py"])


def test_a_broken_package_is_fatal_only_if_selected(monkeypatch):
    point = importlib.metadata.EntryPoint("gone", "no_such_module:gone", "assay.defenses")
    monkeypatch.setattr("bench.registry.entry_points", lambda group: [point] if group == "assay.defenses" else [])
    registry = Registry()
    assert "no_such_module" in {name: str(plugin) for name, _, plugin in registry.rows("defenses")}["gone"]
    with pytest.raises(UserError, match="defense 'gone' of a package is broken: ModuleNotFoundError"):
        registry.get("defenses", "gone")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('@defense("Bad Name", datasets=["digits"])\ndef f(): pass', "not lower_snake_case"),
        ('@defense("a", datasets=["digits"], access="full")\ndef f(): pass', "unknown access 'full'"),
        ('@attack("a", norms=["L3"], access="score", budget=1)\ndef f(o, x, y): pass', "unknown norms 'L3'"),
        ('@attack("a", norms=["L2"], access="score", budget=0)\ndef f(o, x, y): pass', "budget is 0"),
        ('@attack("a", norms=["L2"], access="score", budget=1)\ndef f(o, x): pass', "its signature must be"),
        ('@attack("a", norms=["L2"], access="score", budget=1)\ndef f(o, x, y, *, k): pass', "'k' needs a default"),
        (
            '@attack("a", norms=["L2"], access="score", budget=1)\ndef f(o, x, y, *, k=[1]): pass',
            "'k' must be a number, a string or None",
        ),
    ],
)
def test_a_wrong_card_is_refused_at_declaration(write, text, message):
    path = write(f"from bench import attack, defense\n{text}\n")
    with pytest.raises(UserError, match=message):
        Registry([path]).get("defenses", "a")
