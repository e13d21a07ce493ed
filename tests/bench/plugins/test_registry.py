"""Built-ins, local files and installed packages, found by name and imported when needed."""

import importlib
import importlib.metadata
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.conformance.checks import check_attack, check_defense
from bench.contracts.cards import card_of
from bench.contracts.errors import UserError
from bench.datasets.dataset import load_dataset
from bench.plugins.builtins import BUILTINS
from bench.plugins.registry import Registry
from bench.training.loading import make_defense

PLUGIN_PACKAGE = Path(__file__).parents[2] / "plugin_package"
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
        "import sys, bench, bench.plugins.registry; bench.plugins.registry.Registry();"
        "assert not {'torch', 'pandas', 'defenses', 'attacks', 'reports'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_local_file_offers_its_plugins(write):
    path = write(GOOD)
    registry = Registry([path])
    assert registry.get("defenses", "mine").source == f"file {path}"
    assert registry.get("attacks", "nudge").attack_card.parameters == {"size": 0.1}


def digest_of(path, group="attacks", name="nudge"):
    return Registry([path]).get(group, name).code.digest


def test_a_plugins_digest_is_that_of_its_code_wherever_it_lies(write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    first = digest_of(write(GOOD))
    assert digest_of(write(GOOD, "elsewhere/plugin.py")) == first
    assert digest_of(write(f'"""Mine."""\n{GOOD}# the end')) == first
    assert digest_of(write(GOOD.replace("0.1", "0.2"))) != first


HELPED = """
from bench import attack, defense
from mynet import build

@defense("mine", datasets=["digits"])
def mine():
    return build()

@attack("nudge", norms=["L2"], access="decision", budget=5)
def nudge(oracle, x, y, *, size=0.1):
    from mynet.parts import SIZE
    return (x + SIZE).clamp(0, 1)
"""
HELPERS = {
    "mynet/__init__.py": "from mynet.parts import build",
    "mynet/parts.py": "SIZE = 1\ndef build(): return SIZE",
}


@pytest.fixture
def helped(tmp_path):
    """Writes a plugin with a package beside it into a folder, and returns the plugin's path."""

    def write_files(folder="here", **changes):
        for name, text in {"plugin.py": HELPED, **HELPERS, **changes}.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
        return tmp_path / folder / "plugin.py"

    return write_files


def test_a_plugin_imports_what_lies_beside_it(helped, monkeypatch):
    path = helped()
    plugin = Registry([path]).get("defenses", "mine")
    assert plugin.function() == 1
    assert set(plugin.code.modules) - {"bench.contracts.cards", "bench.contracts.norms.names"} == {
        "plugin.py",
        "mynet.parts",
    }
    monkeypatch.chdir(path.parent)
    assert Registry(["plugin.py"]).get("defenses", "mine").code.digest == plugin.code.digest


def test_the_bytes_that_are_digested_are_the_bytes_that_run(helped):
    """Python takes bytecode from its cache where a file's size and time are those of before."""
    path = helped()
    code = f"import sys; sys.path.insert(0, {str(path.parent)!r}); import mynet.parts, plugin"
    subprocess.run([sys.executable, "-c", code], check=True)  # bytecode is cached
    for changed in (path, path.parent / "mynet" / "parts.py"):
        old, before = Registry([path]).get("defenses", "mine"), changed.stat()
        text = changed.read_text().replace("SIZE = 1", "SIZE = 2").replace("return build()", "return 333333.")
        changed.write_text(text)
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        new = Registry([path]).get("defenses", "mine")
        assert new.code.digest != old.code.digest
        assert new.function() != old.function()
        path = helped()


def test_a_function_that_imports_later_gets_what_was_digested(helped):
    path = helped(**{"mynet/parts.py": "SIZE = 0.25\ndef build(): ..."})
    attack = Registry([path]).get("attacks", "nudge")
    for name in [name for name in sys.modules if name.startswith("mynet")]:
        del sys.modules[name]
    helped(**{"mynet/parts.py": "SIZE = 0.75\ndef build(): ..."})
    assert attack.function(None, torch.zeros(1), None).item() == 0.25


def test_helpers_of_one_name_in_two_folders_are_not_mixed_up(helped):
    first, second = helped(), helped("there", **{"mynet/parts.py": "def build(): return 2"})
    assert Registry([first]).get("defenses", "mine").function() == 1
    assert Registry([second]).get("defenses", "mine").function() == 2
    assert Registry([first]).get("defenses", "mine").function() == 1
    with pytest.raises(UserError, match=r"each imports a module 'mynet' of its own folder; rename one"):
        Registry([first, second])


def test_what_a_user_keeps_beside_a_plugin_does_not_hide_ours(helped):
    files = {"attacks/__init__.py": "raise RuntimeError", "bench.py": "", "torch/data.txt": "", "numpy.txt": ""}
    plugin = "import attacks.parts.lines, random, torch.nn\n" + HELPED
    path = helped(**files, **{"random.py": "raise RuntimeError", "plugin.py": plugin})
    assert Registry([path]).get("defenses", "mine").function() == 1


@pytest.mark.parametrize("where", ["{}", "def f():\n    {}\nf()"])
@pytest.mark.parametrize("end", ["import sys; sys.exit(0)", "import sys; sys.exit()", "raise SystemExit", "exit(0)"])
def test_a_plugin_that_ends_the_program_is_broken(write, where, end):
    path = write(f"from bench import defense\n{where.format(end)}\n{GOOD}")
    with pytest.raises(UserError, match=r"unknown defense 'mine'.*plugin .*plugin\.py is broken: SystemExit"):
        Registry([path]).get("defenses", "mine")


def test_a_factory_that_ends_the_program_is_broken(write):
    text = GOOD.replace("return torch.nn.Sequential", "raise SystemExit(0)\n    return torch.nn.Sequential")
    with pytest.raises(UserError, match=r"defense 'mine' .* cannot be built: SystemExit: 0"):
        make_defense("mine", load_dataset("digits"), Registry([write(text)]))


def test_a_file_that_is_named_twice_is_one_plugin(write, monkeypatch):
    path = write(GOOD)
    (path.parent / "link.py").symlink_to(path)
    (path.parent / "folder").mkdir()
    monkeypatch.chdir(path.parent)
    registry = Registry([path, "plugin.py", "./plugin.py", "folder/../plugin.py", "link.py"])
    assert registry.get("defenses", "mine").source == f"file {path}"
    assert registry.plugins == (str(path),)


@pytest.mark.parametrize(
    "change",
    [
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_device('meta')",
        "torch.set_grad_enabled(False)",
    ],
)
@pytest.mark.parametrize("place", ["import", "factory"])
def test_a_plugin_leaves_torchs_defaults_to_others(write, change, place):
    text = f"{GOOD}\n{change}" if place == "import" else GOOD.replace("    return torch", f"    {change}; return torch")
    try:
        make_defense("mine", load_dataset("digits"), Registry([write(text)]))
        assert torch.ones(1).dtype == torch.float32
        assert torch.ones(1).device.type == "cpu"
        assert torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)


def test_an_installed_package_offers_its_plugins(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    registry = Registry()
    defense = registry.get("defenses", "example_linear")
    assert defense.source.startswith("package assay")
    dataset = load_dataset("digits")
    failed = [c for c in check_defense(make_defense("example_linear", dataset, registry), dataset) if not c.passed]
    assert failed == []
    assert [c for c in check_attack(registry.get("attacks", "example_blend")) if not c.passed] == []
    assert "assay_example.plugins" in defense.code.modules
    file = installed / "assay_example" / "plugins.py"
    text = file.read_text()
    file.write_text(text + "\nMORE = 1\n")
    assert Registry().get("defenses", "example_linear").code.digest != defense.code.digest
    file.write_text(text)


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
    monkeypatch.setattr(
        "bench.plugins.registry.entry_points", lambda group: [point] if group == "assay.defenses" else []
    )
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
