"""Limits that are measured on a trained defense: from the training, from the zoo's card, or by `assay calibrate`."""

import json

import pytest
import torch
from typer.testing import CliRunner

from bench.cli.app import app
from bench.contracts.errors import UserError
from bench.contracts.protocols import HasCalibration
from bench.datasets.dataset import load_dataset
from bench.plugins.registry import Registry
from bench.training.loading import load_trained

CPU = torch.device("cpu")
PLUGIN = """
import torch
from bench import defense

class Limited(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.calibration = {}

    def logits(self, x):
        return self.layer(x.flatten(1))

    def calibrate(self, data):
        return {"largest": round(self.logits(data.images).max().item(), 3)}

    def use(self, calibration):
        self.calibration = dict(calibration)

class Trained(Limited):
    def fit(self, data, trainer):
        trainer.initialize(self)
        loss = lambda x, y, done: torch.nn.functional.cross_entropy(self.logits(x), y)
        trainer.minimize(self.parameters(), loss, data, epochs=1, batch_size=100, learning_rate=0.1)

@defense("trained", datasets=["digits"])
def trained():
    return Trained()

@defense("made", datasets=["digits"])
def made():
    made = Limited()
    with torch.no_grad():
        made.layer.weight.fill_(0.01)
        made.layer.bias.fill_(0.0)
    return made

@defense("halved", datasets=["digits"], wraps="trained")
class Halved:
    def __init__(self, base):
        self.base = base

    def logits(self, x):
        return self.base.logits(x) / 2
"""


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def load(tmp_path):
    """Loads a defense of the plugin."""
    path = tmp_path / "limited.py"
    path.write_text(PLUGIN)
    return lambda name: load_trained(name, load_dataset("digits"), Registry([path]), 0, CPU)


def _set(card, calibration):
    """Changes the limits in a checkpoint's card."""
    card.write_text(json.dumps({**json.loads(card.read_text()), "calibration": calibration}))


def _assay(tmp_path, *arguments):
    command = [*arguments, "--dataset", "digits", "--plugin", str(tmp_path / "limited.py")]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def test_a_training_ends_with_its_limits_in_the_card(load, tmp_path):
    first = load("trained").defense
    assert isinstance(first, HasCalibration)
    assert first.calibration == first.calibrate(load_dataset("digits").train)
    # They are read from there, not measured again.
    card = next((tmp_path / "cache").rglob("trained*.json"))
    assert json.loads(card.read_text())["calibration"] == first.calibration
    _set(card, {"largest": 7})
    assert load("trained").defense.calibration == {"largest": 7}


def test_limits_are_part_of_what_identifies_a_measurement(load, tmp_path):
    dataset = load_dataset("digits")
    before = load("trained").state(dataset)
    assert json.loads(before["calibration"]) == load("trained").defense.calibration
    assert load("halved").state(dataset)["calibration"] == before["calibration"]
    assert "calibration" not in load("made").state(dataset)


def test_the_command_measures_and_keeps_them_for_these_weights(load, tmp_path):
    assert load("made").defense.calibration == {}
    done = _assay(tmp_path, "calibrate", "made")
    assert done.exit_code == 0, done.output
    limits = load("made").defense.calibration
    assert limits == load("made").defense.calibrate(load_dataset("digits").train)
    assert f"largest: {limits['largest']}" in done.output


def test_the_command_measures_what_a_defense_wraps(load, tmp_path):
    measured = load("trained").defense.calibration
    _set(next((tmp_path / "cache").rglob("trained*.json")), {"largest": 7})
    done = _assay(tmp_path, "calibrate", "halved")
    assert done.exit_code == 0, done.output
    assert "trained on digits" in done.output
    assert load("halved").base.defense.calibration == measured


def test_the_command_puts_them_into_a_zoos_card(load, tmp_path):
    measured = load("trained").defense.calibration
    zoo = ["--into", str(tmp_path / "zoo")]
    with pytest.raises(UserError, match=r"trained.json: no such file; assay train trained --into"):
        _assay(tmp_path, "calibrate", "trained", *zoo)
    assert _assay(tmp_path, "train", "trained", *zoo).exit_code == 0
    card = tmp_path / "zoo" / "digits" / "trained.json"
    _set(card, {"largest": 7})
    assert _assay(tmp_path, "calibrate", "trained", *zoo).exit_code == 0
    assert json.loads(card.read_text())["calibration"] == measured


def test_a_defense_without_limits_is_refused_in_one_line(tmp_path):
    (tmp_path / "limited.py").write_text(PLUGIN)
    with pytest.raises(UserError, match=r"^defense .cnn_gaussian. has no limits to measure$"):
        _assay(tmp_path, "calibrate", "randomized_smoothing:cnn_gaussian")
