"""A bundle is a run in one file: readable without us, verified without running its code, unpacked with care."""

import io
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.ledger import bundles
from bench.ledger.manifest_file import load_manifest

PLUGIN = """
import pathlib
import torch
from bench import defense

pathlib.Path(MARKER).touch()


class Learned(torch.nn.Module):
    '''Class means, learned on first use.'''

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.zeros(10, 64))

    def fit(self, data, trainer):
        self.means = torch.stack([data.images[data.labels == c].mean(0).flatten() for c in range(10)])

    def logits(self, x):
        return 2 * x.flatten(1) @ self.means.T - self.means.square().sum(1)


@defense("learned", datasets=["digits"], batch_size=4, citation="this test")
def learned():
    return Learned()
"""
MATRIX = """
dataset = "digits"
samples = 4
defenses = ["learned"]
attacks = [{ name = "gaussian_noise", parameters = { repetitions = 1, num_scales = 8 } }]
thresholds = { L2 = 1.0 }
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a plugin, a run of it, and its bundle with weights."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mine.py").write_text(PLUGIN.replace("MARKER", repr(str(folder / "was run"))))
    (folder / "small.toml").write_text(MATRIX)
    bench.run(folder / "small.toml", plugins=[folder / "mine.py"], out=folder / "run", device="cpu", runner="serial")
    result = command("bundle", folder / "run", "--weights", "--out", folder / "run.zip")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the bundle, in a place where nothing is trained and the plugin has not been run."""
    shutil.copy(made / "run.zip", tmp_path / "run.zip")
    (made / "was run").unlink(missing_ok=True)
    return tmp_path / "run.zip"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))


def command(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def rewritten(path, change):
    """The bundle with other members: ``change`` gets and gives a dictionary from names to contents."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# Readable without us.


def test_a_bundle_is_read_with_zipfile_pandas_and_numpy(copy):
    with zipfile.ZipFile(copy) as archive:
        names = archive.namelist()
        assert b"one row per sample" in archive.read("README.md")
        assert json.loads(archive.read("matrix.json"))["samples"] == 4
        about = json.loads(archive.read("bundle.json"))
        manifest = json.loads(archive.read("ledger/manifest.json"))
        assert about["weights"] == {"learned": manifest["defenses"][0]["weights"]}
        (cell,) = manifest["cells"]
        (file,) = cell["files"]
        records = pd.read_parquet(io.BytesIO(archive.read(f"ledger/{file}")))
        assert records["sample"].tolist() == [0, 1, 2, 3]
        with np.load(io.BytesIO(archive.read(f"ledger/{file}".replace(".parquet", ".npz")))) as images:
            assert images["adversarial"].shape == (4, 1, 8, 8)
        assert "plugins/0/mine.py" in names
        assert any(name.startswith("weights/") and name.endswith(".safetensors") for name in names)


def test_the_same_run_gives_the_same_bytes(made, tmp_path):
    assert command("bundle", made / "run", "--weights", "--out", tmp_path / "again.zip").exit_code == 0
    assert (tmp_path / "again.zip").read_bytes() == (made / "run.zip").read_bytes()


def test_weights_are_packed_only_if_asked_for(made, tmp_path):
    assert command("bundle", made / "run", "--out", tmp_path / "light.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "light.zip") as archive:
        assert not any(name.startswith("weights/") for name in archive.namelist())


def test_an_unfinished_run_is_not_packed(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "ledger" / load_manifest(tmp_path / "run").cells[0].files[0]).unlink()
    assert "not finished" in str(command("bundle", tmp_path / "run").exception)


def test_a_plugin_that_has_changed_since_is_not_packed(made, tmp_path):
    source = (made / "mine.py").read_text()
    try:
        (made / "mine.py").write_text(source + "\n# another one\n")
        assert "changed since the run" in str(command("bundle", made / "run", "--out", tmp_path / "x.zip").exception)
    finally:
        (made / "mine.py").write_text(source)


def test_a_plugin_that_has_changed_since_is_not_run_for_its_weights(made, tmp_path):
    plugin = made / "mine.py"
    before = plugin.read_text()
    (made / "was run").unlink(missing_ok=True)
    try:
        plugin.write_text(f"{before}\nOTHER = 1\n")
        result = command("bundle", made / "run", "--weights", "--out", tmp_path / "x.zip")
        assert "changed since the run" in str(result.exception)
    finally:
        plugin.write_text(before)
    assert not (made / "was run").exists()


# Verified without running code out of it.


def test_no_code_of_a_bundle_is_run(made, copy):
    result = command("verify", copy, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "not re-judged" in result.output
    assert "learned" in result.output
    assert not (made / "was run").exists()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("how", ["plugin", "trust"])
def test_with_the_plugin_it_is_judged_again_on_the_packed_weights(made, copy, how):
    before = os.environ["ASSAY_CACHE"]
    options = ["--plugin", made / "mine.py"] if how == "plugin" else ["--trust"]
    result = command("verify", copy, "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    assert "not re-judged" not in result.output
    assert "images judged again; no faults." in result.output
    assert os.environ["ASSAY_CACHE"] == before


@pytest.mark.usefixtures("elsewhere")
def test_without_weights_it_says_what_is_missing(made, copy):
    rewritten(copy, lambda members: {k: v for k, v in members.items() if not k.startswith("weights/")})
    result = command("verify", copy, "--device", "cpu", "--plugin", made / "mine.py")
    assert "learned is not trained here" in result.output


def test_a_plugin_put_in_its_place_is_not_run(made, copy):
    rewritten(copy, lambda members: {**members, "plugins/0/mine.py": members["plugins/0/mine.py"] + b"\n"})
    result = command("verify", copy, "--device", "cpu", "--trust")
    assert "is not the one that was run" in str(result.exception)
    assert not (made / "was run").exists()


def test_an_altered_bundle_does_not_hold(made, copy):
    def change(members):
        manifest = json.loads(members["ledger/manifest.json"])
        manifest["thresholds"]["L2"] = 50
        members["ledger/manifest.json"] = json.dumps(manifest).encode()

    rewritten(copy, change)
    result = command("verify", copy, "--device", "cpu")
    assert result.exit_code != 0
    assert "'thresholds' was altered" in f"{result.output}{result.exception}"


# Unpacked with care.


def add(path, name, content=b"x", mode=None):
    info = zipfile.ZipInfo(name)
    if mode is not None:
        info.external_attr = mode << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, content)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../evil", None, "points out of the folder"),
        ("ledger/../../evil", None, "points out of the folder"),
        ("/tmp/evil", None, "points out of the folder"),
        ("ledger/./evil", None, "points out of the folder"),
        ("ledger\\..\\evil", None, "forbidden characters"),
        ("C:/evil", None, "forbidden characters"),
        ("ledger/link", stat.S_IFLNK | 0o777, "is a link or a special file"),
        ("ledger/pipe", stat.S_IFIFO | 0o666, "is a link or a special file"),
        ("evil.py", None, "is not what a bundle holds"),
        ("bench/__init__.py", None, "is not what a bundle holds"),
        ("LEDGER/manifest.json", None, "is not what a bundle holds"),
        ("ledger/Manifest.json", None, "stands twice"),
    ],
)
def test_a_member_that_does_not_belong_there_is_named_and_nothing_is_unpacked(copy, monkeypatch, name, mode, message):
    add(copy, name, mode=mode)
    monkeypatch.setattr(bundles, "_extract", None)
    result = command("verify", copy)
    assert message in str(result.exception)
    assert "nothing was unpacked" in str(result.exception)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_twice_is_refused(copy):
    add(copy, "ledger/manifest.json")
    assert "stands twice" in str(command("verify", copy).exception)


@pytest.mark.parametrize(("limit", "message"), [("MAX_BYTES", "bytes unpacked"), ("MAX_MEMBERS", "members")])
def test_a_bundle_that_would_take_too_much_is_refused(copy, monkeypatch, limit, message):
    monkeypatch.setattr(bundles, limit, 3)
    assert message in str(command("verify", copy).exception)


def test_arrays_that_would_take_too_much_are_refused(copy, monkeypatch):
    huge = io.BytesIO()
    np.savez_compressed(huge, images=np.zeros(10**6))
    add(copy, "ledger/images-huge.npz", huge.getvalue())
    monkeypatch.setattr(bundles, "MAX_BYTES", 10**6)
    assert "images-huge.npz holds 8" in str(command("verify", copy).exception)


def test_what_is_no_bundle_is_named(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"PK no")
    assert "not a readable zip file" in str(command("verify", tmp_path / "no.zip").exception)


@pytest.mark.parametrize("position", [0.3, 0.6])
def test_a_damaged_bundle_is_named(copy, position):
    content = bytearray(copy.read_bytes())
    content[int(position * len(content))] ^= 0xFF
    Path(copy).write_bytes(content)
    result = command("verify", copy, "--device", "cpu")
    assert result.exit_code != 0
