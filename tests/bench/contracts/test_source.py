"""What counts as the code of a result: normal forms, closures of imports, and the cells that get new ids."""

import hashlib
import importlib.machinery
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import bench.contracts.source
from bench.contracts.norms import NORMS
from bench.contracts.source import PACKAGES, ROOT, Sources, changed_modules, engine_code
from bench.contracts.syntax import normal_form
from bench.datasets.dataset import load_dataset
from bench.planning.cells import plan
from bench.planning.files import build_matrix
from bench.planning.studies import plan_studies
from bench.plugins.registry import Registry
from bench.studies.catalog import STUDIES, code_of
from bench.training.loading import make_defense

EVERYTHING = Path(__file__).with_name("every_syntax.py.txt")
"""A module with everything that Pythons parse differently."""
ITS_DIGEST = "5d5c2c4c4105c75bce4fc10080d13d570b395e0094e852de6503bb56fb78b850"


# The normal form.


def form(text):
    return normal_form(text.encode())


def test_the_normal_form_is_the_same_on_every_python():
    assert hashlib.sha256(normal_form(EVERYTHING.read_bytes()).encode()).hexdigest() == ITS_DIGEST


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_other_pythons_agree(version):
    """Whatever Pythons this machine has; the test above is for those of other machines."""
    python = shutil.which(f"python{version}")
    load = "import importlib.util as u; s = u.spec_from_file_location('source', sys.argv[1]); m = u.module_from_spec(s)"
    code = f"import sys; {load}; sys.modules['source'] = m; s.loader.exec_module(m)"
    form = "m.normal_form(open(sys.argv[2], 'rb').read())"
    show = f"import hashlib; print(hashlib.sha256({form}.encode()).hexdigest())"
    command = [
        python or "",
        "-I",
        "-c",
        f"{code}; {show}",
        str(ROOT / "bench" / "contracts" / "syntax.py"),
        str(EVERYTHING),
    ]
    result = subprocess.run(command, capture_output=True, text=True) if python else None
    if result is None or (result.returncode and "not found" in result.stderr):
        pytest.skip(f"no Python {version} here")
    assert result.stdout.strip() == ITS_DIGEST, result.stderr


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("x = 1", "x = 1  # one"),
        ("x = 1", "# one\n\nx = (\n    1\n)"),
        ("x = 1", '"""About this module."""\nx = 1\n"""What x is."""'),
        ("def f():\n    return 1", 'def f():\n    """Returns one."""\n    return 1'),
        ("class A:\n    pass", 'class A:\n    """Nothing."""'),
        ("async def f(): ...", 'async def f():\n    "Does nothing."'),
        ("x = 'a' 'b'", 'x = "ab"'),
        ("x = f'{y}' f'{z}'", "x = f'{y}{z}'"),
        ("x = f'a{y:}b' 'c'", "x = f'a{y}bc'"),
        ("x = f'{{{y}'", "x = '{' f'{y}'"),
        ("x = 1_000", "x = 1000"),
        ("x = 'é'", "x = '\\xe9'"),
        ("x = u'a'", "x = 'a'"),
    ],
)
def test_what_does_nothing_does_not_count(text, other):
    assert form(text) == form(other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 1", "x = '1'"),
        ("x = 'a'", "x = b'a'"),
        ("x = a", "x = 'a'"),
        ("x = 0.0", "x = -0.0"),
        ("x = None", "x = ..."),
        ("x = 'a]'", "x = ['a']"),
        ("f(a, b)", "f(a, *b)"),
        ("f(a=b)", "f(b=a)"),
        ("{**a}", "{'a': a}"),
        ("def f(*, a, b=None): ...", "def f(*, a=None, b): ..."),
        ("def f(a, /): ...", "def f(a): ..."),
        ("def f(a=None): ...", "def f(a): ..."),
        ("return_ = yield_", "return_ = -yield_"),
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
        ("if a: b()", "if a: pass\nelse: b()"),
        ("for a in b: c()", "for a in b: pass\nelse: c()"),
        ("match a:\n    case None: b()", "match a:\n    case _: b()"),
        ("x = f'{y}'", "x = f'{y!r}'"),
        ("x = f'{y:3}'", "x = f'{y}3'"),
        ("x = f'{y}'", "x = '{y}'"),
        ("x: int", "x: float"),
        ("import a", "import b as a"),
        ("from . import a", "from .. import a"),
        ("a < b", "a <= b"),
        ("a + (b + c)", "(a + b) + c"),
        ("x = 'one'\nx", "x = 'one'"),
    ],
)
def test_everything_else_counts(text, other):
    assert form(text) != form(other)


def test_a_long_sum_is_no_obstacle():
    assert form("x = " + " + ".join("a" * 500)) != form("x = " + " + ".join("a" * 499))


def test_a_source_that_is_no_python_counts_by_its_bytes(tmp_path):
    first = closure_of(tmp_path, {"helper.py": "x = (", "plugin.py": "import helper"})
    assert set(first.modules) == {"plugin.py", "helper"}
    assert closure_of(tmp_path, {"helper.py": "x = ("}).digest == first.digest
    assert closure_of(tmp_path, {"helper.py": "y = ("}).digest != first.digest


# Closures.


def closure_of(folder, files):
    """The closure of ``plugin.py`` in a folder, to which these files are added."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Sources(folder / "plugin.py").closure("plugin.py")


HELPERS = {
    "mynet/__init__.py": "from .layers import Layer as Block\nSIZE = 3",
    "mynet/layers.py": "from mynet.deep.inside import thing\nclass Layer: ...",
    "mynet/deep/__init__.py": "",
    "mynet/deep/inside.py": "from .. import other\nthing = 1",
    "mynet/other.py": "",
    "mynet/unused.py": "",
    "flat.py": "",
    "space/part.py": "from . import sibling",
    "space/sibling.py": "",
}


@pytest.mark.parametrize(
    ("imports", "modules"),
    [
        ("import flat", {"flat"}),
        ("def f():\n    import flat", {"flat"}),
        ("class A:\n    def f(self):\n        if self:\n            from flat import x", {"flat"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import flat", set()),
        ("import typing as t\nif t.TYPE_CHECKING:\n    import flat\nelse:\n    import space.part", {"space.*"}),
        ("import importlib\nflat = importlib.import_module('flat')", {"flat"}),
        ("import mynet.other", {"mynet.other"}),
        ("from mynet import other", {"mynet.other"}),
        ("from mynet.deep.inside import thing", {"mynet.deep.inside", "mynet.other"}),
        # What a package has from one of its modules is that module's, what it has itself makes it count.
        ("from mynet import Block", {"mynet.layers", "mynet.deep.inside", "mynet.other"}),
        ("import mynet\nmynet.Block()", {"mynet.layers", "mynet.deep.inside", "mynet.other"}),
        ("from mynet import SIZE", {"mynet", "mynet.layers", "mynet.deep.inside", "mynet.other"}),
        ("import mynet", {"mynet", "mynet.layers", "mynet.deep.inside", "mynet.other"}),
        ("from mynet import *", {"mynet", "mynet.layers", "mynet.deep.inside", "mynet.other"}),
        ("import space.part", {"space.*"}),
        ("from space import part", {"space.*"}),
        ("import random, torch, nowhere", set()),
    ],
)
def test_a_plugins_closure_is_what_it_imports_from_its_folder(tmp_path, imports, modules):
    found = set(closure_of(tmp_path, {**HELPERS, "plugin.py": imports}).modules)
    spread = {"space.part", "space.sibling"} if modules == {"space.*"} else modules
    assert found == {"plugin.py"} | spread


def test_what_a_plugin_takes_from_us_is_in_its_closure_by_its_own_module(tmp_path):
    text = "import bench\nfrom bench import load_dataset\n@bench.defense('a', datasets=['digits'])\ndef a(): ..."
    found = closure_of(tmp_path, {"plugin.py": text})
    assert {"bench.contracts.cards", "bench.contracts.norms.names"} == set(found.modules) - {"plugin.py"}


def test_a_folder_of_ours_or_pythons_name_beside_a_plugin_is_not_meant(tmp_path):
    files = {"attacks/__init__.py": "", "attacks/parts/lines.py": "x = 1", "random.py": "x = 1"}
    found = closure_of(tmp_path, {**files, "plugin.py": "import random\nfrom attacks.parts.lines import bisect"})
    assert (
        found.modules["attacks.parts.lines"] == Sources().closure("attacks.parts.lines").modules["attacks.parts.lines"]
    )
    assert "random" not in found.modules


def test_other_sources_count_by_their_bytes(tmp_path):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    files = {
        f"fast{suffix}": "compiled",
        "csrc/kernel.cu": '#include "part.h"\nint x;',
        "csrc/part.h": "int y;",
        "unnamed.c": "int z;",
        "plugin.py": "import fast\nload(name='k', sources=[str(HERE / 'kernel.cu')])",
    }
    before = closure_of(tmp_path, files)
    assert set(before.modules) == {"plugin.py", "fast", "plugin.py: kernel.cu", "plugin.py: part.h"}
    for name in (f"fast{suffix}", "csrc/kernel.cu", "csrc/part.h"):
        changed = closure_of(tmp_path, {**files, name: files[name] + " "})
        assert len(changed_modules(before.modules, changed.modules)) == 1
    assert closure_of(tmp_path, {**files, "unnamed.c": "int w;"}).digest == before.digest


def test_a_closure_does_not_depend_on_where_its_folder_is(tmp_path):
    files = {**HELPERS, "plugin.py": "import mynet"}
    assert closure_of(tmp_path / "a", files).digest == closure_of(tmp_path / "b", files).digest


def test_libraries_count_where_they_are_called(tmp_path):
    files = {"helper.py": "def f():\n    from foolbox.attacks import LinfPGD", "plugin.py": "import helper, pandas"}
    versions = closure_of(tmp_path, files).versions(without=engine_code())
    assert [name.split()[0] for name in versions.split(", ")] == ["foolbox", "torch"]
    assert Sources().closure("attacks.autoattack").versions(without=engine_code()).startswith("pyautoattack 0.")
    assert "scikit-learn" not in versions
    assert "sklearn 1." in code_of("detection").versions(without=engine_code())


def test_every_norm_is_in_the_closures_of_what_looks_norms_up(tmp_path):
    """The package imports its modules by scanning, so no import names them."""
    modules = {f"bench.contracts.norms.{type(norm).__module__.rpartition('.')[2]}" for norm in NORMS.values()}
    for found in (engine_code(), code_of("detection"), Sources().closure("bench.contracts.threat")):
        assert modules <= set(found.modules)
    for found in (Sources().closure("defenses.abs"), closure_of(tmp_path, {"plugin.py": "from bench import attack"})):
        assert not modules & set(found.modules)


def test_the_engines_closure_holds_what_computes_a_cell_and_not_what_plans_or_shows_it():
    modules = set(engine_code().modules)
    assert {
        "bench.engine.cell",
        "bench.engine.judge",
        "bench.engine.oracle",
        "bench.contracts.streams",
        "bench.contracts.devices",
    } <= modules
    assert (
        not {
            "bench.planning.matrix",
            "bench.execution.execute",
            "bench.plugins.registry",
            "bench.contracts.progress",
            "bench.contracts.errors",
        }
        & modules
    )
    assert {name.partition(".")[0] for name in modules} == {"bench"}


# Which cells get new ids (criterion 3).

ATTACKS = ["pgd", "ddn", "boundary", "transfer", "autoattack"]
WITH_LINES = {"ddn", "boundary", "transfer", "autoattack"}
SMOOTHED = "randomized_smoothing:cnn_gaussian"
DEFENSES = ["cnn", "abs", "eabs", SMOOTHED]
MATRIX = {
    "dataset": "digits",
    "samples": 2,
    "defenses": DEFENSES,
    "attacks": [{"name": name, "bounded": name == "autoattack"} for name in ATTACKS],
    "studies": STUDIES.names(),
    "thresholds": {"L2": 1.0},
}
EVERY_CELL = {(defense, attack) for defense in DEFENSES for attack in ATTACKS}


@pytest.fixture(scope="module")
def untrained():
    dataset, registry = load_dataset("digits"), Registry()
    return {name: make_defense(name, dataset, registry) for name in DEFENSES}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of our packages, whose sources count instead of those that run."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=lambda _, names: [n for n in names if n == "weights"])
    monkeypatch.setattr(bench.contracts.source, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def ids(untrained):
    """Plans the matrix anew: ids of cells by defense and attack, and of studies by defense and kind."""

    def planned():
        registry, dataset = Registry(), load_dataset("digits")
        matrix = build_matrix("test", MATRIX, registry)
        defenses = {name: again(name, made, registry) for name, made in untrained.items()}
        cells, _ = plan(matrix, dataset, defenses, defenses["cnn"], registry, {})
        studies = plan_studies(matrix, dataset, defenses)
        of_cells = {(cell.defense, cell.attack): cell.id for cell in cells}
        return of_cells, {(study.defense, study.kind, study.norm): study.id for study in studies}

    return planned


def again(name, made, registry):
    """The same defense, with the code that it has now."""
    base = None if made.base is None else again(made.base.card.name, made.base, registry)
    return replace(made, plugin=registry.get("defenses", name), base=base)


def renewed(before, after):
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


def append(folder, module, line):
    path = folder / module
    path.write_text(f"{path.read_text()}\n{line}\n")


def of_defenses(*names):
    return {(defense, attack) for defense, attack in EVERY_CELL if defense in names}


@pytest.mark.parametrize(
    ("module", "cells", "kinds"),
    [
        ("attacks/parts/lines.py", {(d, a) for d, a in EVERY_CELL if a in WITH_LINES}, set()),
        ("attacks/parts/gradients.py", EVERY_CELL, set()),
        ("bench/engine/judge.py", EVERY_CELL, None),
        ("bench/contracts/norms/l0.py", EVERY_CELL, None),
        ("bench/engine/cell.py", EVERY_CELL, None),
        ("bench/engine/oracle.py", EVERY_CELL, None),
        ("defenses/abs/descent.py", of_defenses("abs", "eabs"), None),
        ("defenses/abs/__init__.py", of_defenses("abs"), None),
        ("defenses/smoothing.py", of_defenses(SMOOTHED), None),
        # The wrapped defense, and the substitute.
        ("defenses/cnn.py", of_defenses("cnn", SMOOTHED) | {(d, "transfer") for d in DEFENSES}, None),
        ("reports/tables/cells.py", set(), set()),
        ("bench/contracts/progress.py", set(), set()),
        ("bench/contracts/errors.py", set(), set()),
        ("bench/plugins/scan.py", set(), set()),
        ("bench/plugins/catalog.py", set(), set()),
        ("bench/datasets/digits.py", set(), set()),
        ("bench/cli/app.py", set(), set()),
        ("bench/execution/execute.py", set(), set()),
        ("bench/studies/bounds.py", set(), {"lower_bound"}),
        ("bench/studies/distal.py", set(), {"distal"}),
        ("bench/studies/detection.py", set(), {"detection"}),
    ],
)
def test_exactly_the_cells_that_depend_on_a_line_get_new_ids(copy, ids, module, cells, kinds):
    before = ids()
    append(copy, module, "# one more comment")
    assert ids() == before
    append(copy, module, "ONE_MORE = 1")
    after = ids()
    assert renewed(before[0], after[0]) == cells
    changed = renewed(before[1], after[1])
    if kinds is not None:
        assert {kind for _, kind, _ in changed} <= kinds
        assert changed or "lower_bound" not in kinds
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    depending = {
        (defense, kind, norm)
        for defense, kind, norm in before[1]
        if name in code_of(kind).modules or ((defense, "pgd") in cells and name.startswith("defenses"))
    }
    assert changed == depending


def test_versions_of_torch_and_of_the_libraries_called_are_in_the_ids(ids, monkeypatch):
    before = ids()
    installed = bench.contracts.source.library_version
    monkeypatch.setattr(
        bench.contracts.source, "library_version", lambda name: "9" if name == "pyautoattack" else installed(name)
    )
    assert renewed(before[0], ids()[0]) == {(defense, "autoattack") for defense in DEFENSES}
    monkeypatch.setattr(
        bench.contracts.source, "library_version", lambda name: "9" if name == "torch" else installed(name)
    )
    assert renewed(before[0], ids()[0]) == EVERY_CELL
