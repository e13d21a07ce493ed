"""Where trained states come from: the cache, the zoo, or training."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import bench.training.checkpoints
from bench.cli.app import app
from bench.contracts.errors import UserError
from bench.contracts.source import Closure
from bench.datasets.dataset import load_dataset
from bench.plugins.registry import Registry
from bench.training.checkpoints import (
    Checkpoint,
    clean_accuracy,
    ensure_trained,
    find_checkpoint,
    write_to_zoo,
    zoo,
    zoo_cards,
)
from bench.training.loading import make_defense, needs_training

CPU = torch.device("cpu")
CODE = Closure({"mine": "0123"}, {})
PLUGIN = """
import torch
from bench import defense

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def logits(self, x):
        return self.layer(x.flatten(1))

    def fit(self, data, trainer):
        trainer.initialize(self)
        loss = lambda x, y, done: torch.nn.functional.cross_entropy(self.logits(x), y)
        trainer.minimize(self.parameters(), loss, data, epochs=2, batch_size=100, learning_rate=0.1)

@defense("linear", datasets=["digits"], version=VERSION)
def linear():
    return Linear()

class Zero(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def logits(self, x):
        return self.base.logits(x) * 0 + torch.eye(10)[0]

@defense("zero:linear", datasets=["digits"], wraps="linear")
def zero(base):
    return Zero(base)
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the linear defense at a version, untrained; caches and the zoo are in a temporary folder."""
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench.training.checkpoints, "zoo", lambda: tmp_path / "zoo")
    dataset = load_dataset("digits")

    def linear(version=1):
        plugin = tmp_path / "linear.py"
        plugin.write_text(PLUGIN.replace("VERSION", str(version)))
        # The digest of a plugin's file is part of the recipe; a built-in has none.
        return make_defense("linear", dataset, Registry([plugin])).defense

    return linear


@pytest.fixture
def filled(make, tmp_path, monkeypatch):
    """The zoo holds the linear defense, and the cache nothing."""
    dataset = load_dataset("digits")
    checkpoint = ensure_trained(make(), dataset, 0, CPU, "", CODE)
    written = write_to_zoo(make(), dataset, checkpoint, CPU, tmp_path / "zoo")
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "empty"))
    return written


def test_the_zoo_spares_training(filled, make):
    found = ensure_trained(make(), load_dataset("digits"), 0, CPU, "", CODE)
    assert found.path == filled.path
    assert found.path.parts[-2:] == ("digits", "linear.safetensors")


def test_weights_in_the_zoo_are_half_precision_and_used_in_single(filled, make):
    assert {tensor.dtype for tensor in load_file(filled.path).values()} == {torch.float16}
    defense = make()
    ensure_trained(defense, load_dataset("digits"), 0, CPU, "", CODE)
    assert defense.layer.weight.dtype == torch.float32
    assert torch.equal(defense.layer.weight.half(), load_file(filled.path)["layer.weight"])
    assert filled.card["clean_accuracy"] == clean_accuracy(defense, load_dataset("digits").test, CPU)


def test_coarse_matrices_are_kept_in_eight_bits(make, tmp_path):
    dataset, defense = load_dataset("digits"), make()
    checkpoint = ensure_trained(defense, dataset, 0, CPU, "", CODE)
    defense.coarse = ("layer.",)
    card = {**checkpoint.card, "clean_accuracy": clean_accuracy(rounded(defense), dataset.test, CPU)}
    written = write_to_zoo(defense, dataset, Checkpoint(checkpoint.path, card), CPU, tmp_path / "zoo")
    kept = {key: tensor.dtype for key, tensor in load_file(written.path).items()}
    assert kept == {"layer.weight": torch.float8_e4m3fn, "layer.bias": torch.float16}


def rounded(defense):
    """The linear defense with weights of eight bits."""
    coarse = copy.deepcopy(defense)
    coarse.layer.weight.data = defense.layer.weight.to(torch.float8_e4m3fn).float()
    return coarse


def test_half_precision_that_costs_accuracy_is_not_used(make, tmp_path):
    dataset, defense = load_dataset("digits"), make()
    checkpoint = ensure_trained(defense, dataset, 0, CPU, "", CODE)
    better = {**checkpoint.card, "clean_accuracy": checkpoint.card["clean_accuracy"] + 0.01}
    written = write_to_zoo(defense, dataset, Checkpoint(checkpoint.path, better), CPU, tmp_path / "zoo")
    assert written.card["precision"] == "single"
    assert written.card["clean_accuracy"] == better["clean_accuracy"]
    assert {tensor.dtype for tensor in load_file(written.path).values()} == {torch.float32}


def test_a_plan_says_that_weights_were_trained_by_other_code_and_keeps_them(make, tmp_path, monkeypatch):
    make()
    plugin, dataset = ["--plugin", str(tmp_path / "linear.py")], ["--dataset", "digits"]
    assert CliRunner().invoke(app, ["train", "linear", *plugin, *dataset]).exit_code == 0
    (card,) = (tmp_path / "cache").rglob("linear-*.json")
    trained_by = json.loads(card.read_text())["code"]
    assert {"linear.py", "bench.training.trainer", "bench.contracts.devices"} <= set(trained_by)
    options = [*plugin, "--defenses", "linear", "--attacks", "fgm", "--samples", "2", "--out", str(tmp_path / "out")]

    def planned():
        return CliRunner().invoke(app, ["plan", "digits", *options]).stdout

    assert "trained by other code" not in planned()
    card.write_text(json.dumps({**json.loads(card.read_text()), "code": {**trained_by, "bench.training.trainer": "0"}}))
    line = "linear: its weights were trained by other code and are kept (changed: bench.training.trainer)"
    assert line in planned()
    assert "0 defenses to train" in planned()
    # Cards of the zoo that were written before say nothing.
    card.write_text(json.dumps({key: value for key, value in json.loads(card.read_text()).items() if key != "code"}))
    assert "trained by other code" not in planned()
    assert "0 defenses to train" in planned()


@pytest.mark.parametrize(
    ("old", "new", "untrained"),
    [("epochs=2", "epochs=3", 1), ("def linear():", "def linear():  # mine", 0), ("", "", 0)],
)
def test_a_plugin_that_learns_otherwise_is_trained_anew(make, tmp_path, old, new, untrained):
    make()
    path = tmp_path / "linear.py"
    arguments = ["--plugin", str(path), "--dataset", "digits"]
    assert CliRunner().invoke(app, ["train", "linear", *arguments]).exit_code == 0
    path.write_text(path.read_text().replace(old, new))
    loaded = make_defense("linear", load_dataset("digits"), Registry([path]))
    assert needs_training(loaded, load_dataset("digits"), 0) == bool(untrained)


def test_a_card_says_how_to_remake_the_weights(filled):
    card = json.loads(filled.path.with_suffix(".json").read_text())
    assert card == filled.card
    assert card["command"] == "assay train linear --dataset digits --seed 0 --into defenses/weights"
    assert card["epochs"] == 2
    assert {"recipe", "seed", "device", "threads", "torch", "seconds", "precision", "sha256", "code"} <= set(card)


def test_a_defense_around_another_has_its_accuracy_in_the_zoo_and_no_weights(make, tmp_path):
    make()
    plugin, dataset = ["--plugin", str(tmp_path / "linear.py")], ["--dataset", "digits"]
    trained = CliRunner().invoke(app, ["train", "zero:linear", *plugin, *dataset, "--into", str(tmp_path / "zoo")])
    files = sorted(path.name for path in (tmp_path / "zoo" / "digits").iterdir())
    assert files == ["linear.json", "linear.safetensors", "zero-linear.json"]
    base, card = zoo_cards()
    accuracy = (load_dataset("digits").test.labels == 0).float().mean().item()
    assert card["clean_accuracy"] == pytest.approx(accuracy)
    assert (card["defense"], card["wraps"], card["sha256"]) == ("zero:linear", "linear", base["sha256"])
    assert card["command"] == "assay train zero:linear --dataset digits --seed 0 --into defenses/weights"
    assert f"zero:linear on digits: clean accuracy {accuracy:.2%}, card" in trained.stdout
    listed = bench.list_defenses([tmp_path / "linear.py"]).set_index("name")["trained"]
    assert listed["zero:linear"] == f"digits {accuracy:.2%}"


@pytest.mark.parametrize("changed", [{"version": 2}, {"seed": 1}])
def test_weights_of_another_recipe_are_not_used(filled, make, changed):
    defense = make(changed.get("version", 1))
    assert find_checkpoint(make(), load_dataset("digits"), 0, "") is not None
    assert find_checkpoint(defense, load_dataset("digits"), changed.get("seed", 0), "") is None


def test_what_is_trained_for_the_zoo_does_not_come_from_it(filled, make):
    assert find_checkpoint(make(), load_dataset("digits"), 0, "", in_zoo=False) is None
    trained = ensure_trained(make(), load_dataset("digits"), 0, CPU, "", CODE, in_zoo=False)
    assert trained.path.parent.parent.name == "checkpoints"
    # What was trained here goes before the zoo.
    assert find_checkpoint(make(), load_dataset("digits"), 0, "").path == trained.path


def test_a_corrupt_file_of_the_zoo_is_named(filled, make):
    content = bytearray(filled.path.read_bytes())
    content[-1] ^= 1
    filled.path.write_bytes(content)
    with pytest.raises(UserError, match=r"linear.safetensors: SHA-256 differs"):
        ensure_trained(make(), load_dataset("digits"), 0, CPU, "", CODE)


@pytest.mark.parametrize("card", zoo_cards(), ids=lambda card: f"{card['dataset']}-{card['defense']}")
def test_the_zoos_weights_fit_the_present_recipe(card, request, tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    name, dataset = card["defense"], card["dataset"]
    data = load_dataset(dataset, None if dataset == "digits" else request.getfixturevalue("data_dir"))
    made = make_defense(name, data, Registry())
    assert not needs_training(made, data, 0)
    used = ensure_trained(made.learner.defense, data, 0, CPU, "", CODE)
    # Of a defense around another one, the card says the accuracy with these.
    assert card["sha256"] == used.card["sha256"]


def test_the_zoo_stays_small():
    assert sum(path.stat().st_size for path in zoo().rglob("*.safetensors")) <= 21e6
