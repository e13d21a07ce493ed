"""Results are kept only while their defense answers as it did, and only under the code that made them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.ledger.manifest_file import load_manifest
from bench.planning.staleness import difference

MATRIX = """
dataset = "digits"
samples = 4
defenses = [{defenses}]
attacks = [{{ name = "gaussian_noise", parameters = {{ repetitions = 1, num_scales = 3 }} }}]
studies = []
thresholds = {{ L2 = 1.0 }}
"""
HEAD = """
from pathlib import Path
import numpy as np
import torch
from bench import defense
from bench.conformance.checks import ClassMeans

HERE = Path(__file__).parent
"""
OBJECT = """
class Net:
    def __init__(self, scale):
        self.scale = scale
    def logits(self, x):
        return x.flatten(1)[:, 20:30] * self.scale + x.flatten(1)[:, 30:40]

@defense("mine", datasets=["digits"])
def mine():
    return Net(SCALE)
"""
OTHER = """
@defense("other", datasets=["digits"])
def other(dataset):
    return ClassMeans(dataset)
"""
SOURCES = {
    "an object that loads a file": "SCALE = torch.load(HERE / 'scale.pt')",
    "a data file read at each pass": "class Scale:\n"
    "    def __rmul__(self, x):\n"
    "        return x * float(np.load(HERE / 'scale.npy'))\n"
    "SCALE = Scale()",
    "a constant of a module beside": "from helper import SCALE",
    "a constant of a module far beside": "def scale():\n"
    "    from helpers.deep import SCALE\n"
    "    return SCALE\n"
    "SCALE = scale()",
}


def put(folder, scale):
    """Changes the scale, wherever a plugin has it from, without a trace in sizes and times."""
    torch.save(torch.tensor(scale), folder / "scale.pt")
    np.save(folder / "scale.npy", np.array(scale))
    (folder / "helpers").mkdir(exist_ok=True)
    for name in ("helper.py", "helpers/deep.py"):
        (folder / name).write_text(f"SCALE = {scale}")
        os.utime(folder / name, (1, 1))


@pytest.fixture
def write(tmp_path):
    def written(source="SCALE = 1.0", defenses=("mine", "other"), scale=1.0):
        put(tmp_path, scale)
        (tmp_path / "plugin.py").write_text(HEAD + source + OBJECT)
        (tmp_path / "others.py").write_text(HEAD + OTHER)
        (tmp_path / "small.toml").write_text(MATRIX.format(defenses=", ".join(f'"{name}"' for name in defenses)))
        return tmp_path

    return written


def run(folder, **options):
    plugins = [folder / "plugin.py", folder / "others.py"]
    options = {"out": folder / "out", "runner": "serial", **options}
    return bench.run(folder / "small.toml", plugins=plugins, device="cpu", **options)


def times(folder):
    """When each result was written, by defense."""
    cells = load_manifest(folder / "out").cells
    return {cell.defense: (folder / "out" / "ledger" / cell.files[0]).stat().st_mtime_ns for cell in cells}


def plan(folder, *options):
    plugins = ["--plugin", folder / "plugin.py", "--plugin", folder / "others.py"]
    command = ["plan", folder / "small.toml", *plugins, "--out", folder / "out", *options]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("source", SOURCES)
def test_a_defense_that_has_changed_runs_again_and_no_other(write, capsys, source):
    folder = write(SOURCES[source])
    first, before = run(folder), times(folder)
    run(folder)
    assert times(folder) == before
    put(folder, 7.0)
    code = "constant" in source
    shown = plan(folder, "--check")
    assert ("code changed: helper" if code else "mine answers 16 fixed images differently (") in shown
    assert "1 there, 1 to run" in shown
    capsys.readouterr()
    second, after = run(folder), times(folder)
    assert code or "1 cells run again: mine answers 16 fixed images differently (" in capsys.readouterr().err
    assert after["mine"] > before["mine"]
    assert after["other"] == before["other"]
    mine = (frame[frame["defense"] == "mine"]["l2"].tolist() for frame in (first, second))
    assert next(mine) != next(mine)
    run(folder)
    assert times(folder) == after


def test_a_change_below_rounding_runs_nothing(write):
    folder = write(SOURCES["an object that loads a file"])
    run(folder)
    before = times(folder)
    put(folder, 1.0 + 1e-5)
    run(folder)
    assert times(folder) == before


def test_a_plan_does_not_ask_unless_told_to(write):
    folder = write(SOURCES["an object that loads a file"])
    run(folder)
    put(folder, 7.0)
    assert "2 there, 0 to run" in plan(folder)


RANDOM = """
import random

class Noisy(torch.nn.Module):
    def forward(self, x, rng):
        noise = DRAW
        return SCALE * x.flatten(1)[:, 20:30] + noise

@defense("noisy", datasets=["digits"], randomized=True)
def noisy():
    return Noisy()
"""


@pytest.mark.parametrize(
    "draw",
    [
        "rng.normal((10,))",
        "torch.randn(len(x), 10)",
        "torch.tensor(np.random.randn(len(x), 10)).float()",
        "random.random() * torch.arange(10.)",
    ],
)
def test_a_randomized_defense_is_asked_on_fixed_draws(write, draw):
    folder = write("SCALE = torch.load(HERE / 'scale.pt')" + RANDOM.replace("DRAW", draw), ["noisy"])
    run(folder)
    before = times(folder)
    torch.randn(3)
    run(folder)
    assert times(folder) == before
    put(folder, 7.0)
    run(folder)
    assert times(folder)["noisy"] > before["noisy"]


def test_adversarials_are_not_imported_for_a_defense_that_has_changed(write):
    folder = write(SOURCES["an object that loads a file"])
    run(folder)
    np.savez(folder / "mine.npz", adversarials=np.zeros((4, 1, 8, 8), np.float32))
    options = ["--defense", "mine", "--dataset", "digits", "--out", folder / "out", "--plugin", folder / "plugin.py"]
    command = [*map(str, ["import-adversarials", folder / "mine.npz", *options])]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert any(cell.imported for cell in load_manifest(folder / "out").cells)
    put(folder, 7.0)
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert "was made when mine gave other logits (" in str(result.exception)
    run(folder)
    assert not any(cell.imported for cell in load_manifest(folder / "out").cells)


def test_a_transferred_attack_runs_again_when_the_substitute_has_changed(write):
    folder = write(SOURCES["an object that loads a file"], ["other"])
    matrix = (folder / "small.toml").read_text().replace("gaussian_noise", "transfer").replace("repetitions = 1, ", "")
    (folder / "small.toml").write_text(f'substitute = "mine"\n{matrix}')
    run(folder)
    before = times(folder)
    put(folder, 7.0)
    run(folder)
    assert times(folder)["other"] > before["other"]


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], True),
        ([[1.0, 2.0]], [[1.0, 2.001]], True),
        ([[1.0, 2.0]], [[1.0, 2.01]], False),
        ([[1000.0, 0.0]], [[1000.0, 0.5]], True),
        ([[1e-12, 2e-12]], [[1e-12, 2.1e-12]], False),
        ([[1.0, 1.0001]], [[1.0001, 1.0]], False),
        ([[1.0, 1.0, 1.0]], [[1.0, 1.0]], False),
        ([[None, 1.0]], [[None, 1.0]], True),
        ([[None, 1.0]], [[0.0, 1.0]], False),
        ([[0.0, 0.0]], [[0.0, 0.0]], True),
        (None, None, True),
        (None, [[1.0]], False),
        ([[1.0]], None, False),
    ],
)
def test_answers_are_the_same_if_predictions_are_and_logits_nearly(before, now, same):
    assert (difference(before, now) == "") == same


# What a plan says of cells that would run.


def test_a_plan_says_why_cells_would_run(write):
    folder = write(SOURCES["a constant of a module beside"])
    assert plan(folder).count("new") == 2
    run(folder)
    assert "missing" not in plan(folder)
    matrix = (folder / "small.toml").read_text()

    def changed(old, new, path=folder / "small.toml", *options):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        shown = [line.partition("missing")[2].strip() for line in plan(folder).splitlines() if "missing" in line]
        path.write_text(text)
        return shown

    assert changed("num_scales = 3", "num_scales = 4") == ["parameters"] * 2
    assert changed("samples = 4", "samples = 3\nseed = 1") == ["seed"] * 2
    assert changed("samples = 4", "samples = 3") == ["not run yet, or failed"] * 2
    assert changed("samples = 4", "samples = 4\nchunk = 2") == ["chunk"] * 2
    assert changed('"gaussian_noise"', '"gaussian_noise", budget = 7') == ["budget"] * 2
    assert changed('"gaussian_noise"', '"gaussian_noise", variant = "b"') == ["new"] * 2
    assert changed("SCALE = 1.0", "SCALE = 2.0", folder / "helper.py") == ["code changed: helper"]
    assert changed("import torch", "import torch, json", folder / "plugin.py") == ["code changed: plugin.py"]
    (scipy,) = changed("import torch", "import torch, scipy", folder / "plugin.py")
    assert scipy.startswith("code changed: plugin.py; libraries: numpy ")
    assert ", scipy 1." in scipy.partition(" -> ")[2]
    assert changed("import torch", "import torch  # the library", folder / "plugin.py") == []
    assert (folder / "small.toml").read_text() == matrix


def test_a_manifest_names_the_digest_of_every_module(write):
    folder = write(SOURCES["a constant of a module beside"])
    run(folder)
    modules = load_manifest(folder / "out").modules
    assert {"plugin.py", "helper", "bench.engine.judge", "attacks.noise", "attacks.parts.lines"} <= set(modules)
    assert not {"bench.contracts.progress", "reports.tables.cells"} & set(modules)
    json.dumps(modules)


# What plugins do to others.


def test_a_plugin_that_changes_torchs_defaults_while_it_answers_harms_nobody_else(write):
    folder = write()
    alone = run(folder, defenses=["other"])
    wild = "    def logits(self, x):\n        torch.set_default_dtype(torch.float64)\n"
    plugin = (folder / "plugin.py").read_text().replace("    def logits(self, x):\n", wild)
    (folder / "plugin.py").write_text(plugin)
    together = run(folder, out=folder / "both")
    other = together[together["defense"] == "other"].drop(columns=["seconds", "cell"]).reset_index(drop=True)
    assert other.equals(alone.drop(columns=["seconds", "cell"]).reset_index(drop=True))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("runner", ["serial", "process"])
def test_a_plugin_that_ends_the_program_fails_its_cells_only(write, runner):
    folder = write()
    attack = "import sys\nfrom bench import attack\n@attack('quit', norms=['L2'], access='decision', budget=9)\n"
    ends = f"{attack}def quit_(oracle, x, y):\n    sys.exit(0)\n"
    plugin = HEAD + "SCALE = 1.0" + OBJECT.replace("(self, x):", "(self, x):\n        raise SystemExit(0)") + ends
    (folder / "plugin.py").write_text(plugin)
    records = run(folder, attacks=["gaussian_noise", "quit"], runner=runner, workers=1)
    failed = records[records["status"] == "failed"]
    assert failed["reason"].unique().tolist() == ["exception: SystemExit: 0"]
    cells = {("mine", "gaussian_noise"), ("mine", "quit"), ("other", "quit")}
    assert set(zip(failed["defense"], failed["attack"], strict=True)) == cells
    assert len(failed) == 4 * len(cells)


def test_a_plugin_that_ends_a_command_is_no_success(write):
    folder = write()
    command = [sys.executable, "-c", "from bench.cli.app import main; main()", "check", "mine", "--plugin", "plugin.py"]
    (folder / "plugin.py").write_text(
        HEAD + "SCALE = 1.0" + OBJECT.replace("(self, x):", "(self, x):\n        raise SystemExit(0)")
    )
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "assay: a plugin ended the program: SystemExit: 0\n")


SCRIPT = """
import bench
bench.run({matrix!r}, plugins={plugins!r}, out={out!r}, device="cpu", workers=1, runner="process")
"""


def test_a_script_without_a_main_guard_gets_a_line_that_names_it(write):
    folder = write()
    plugins = [str(folder / name) for name in ("plugin.py", "others.py")]
    names = {"matrix": str(folder / "small.toml"), "plugins": plugins, "out": str(folder / "out")}
    (folder / "script.py").write_text(SCRIPT.format(**names))
    command = [sys.executable, str(folder / "script.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("bench.contracts.errors.UserError: worker processes import the script that starts them")
    assert 'if __name__ == "__main__":' in last
    assert not list((folder / "out" / "ledger").glob("*.parquet"))
