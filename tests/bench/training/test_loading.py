"""Training on first use, one after the other and side by side."""

from pathlib import Path

import pytest
import torch

from bench.contracts.errors import UserError
from bench.datasets.dataset import load_dataset
from bench.plugins.registry import Registry
from bench.training.loading import load_trained, make_defense, needs_training, train_side_by_side

CPU = torch.device("cpu")
PLUGIN = """
import os, torch
from bench import defense

class Linear(torch.nn.Module):
    def __init__(self, dies):
        super().__init__()
        self.dies = dies
        self.layer = torch.nn.Linear(64, 10)

    def logits(self, x):
        return self.layer(x.flatten(1))

    def fit(self, data, trainer):
        if self.dies:
            os._exit(9)
        trainer.initialize(self)
        loss = lambda x, y, done: torch.nn.functional.cross_entropy(self.logits(x), y)
        trainer.minimize(self.parameters(), loss, data, epochs=1, batch_size=100, learning_rate=0.1)

@defense("first", datasets=["digits"])
def first():
    return Linear(False)

@defense("second", datasets=["digits"])
def second():
    return Linear(False)

@defense("deadly", datasets=["digits"])
def deadly():
    return Linear(True)
"""


@pytest.fixture
def registry(tmp_path, monkeypatch):
    plugin = tmp_path / "linear.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    return Registry([plugin])


def weights(name, registry):
    return load_trained(name, load_dataset("digits"), registry, 0, CPU).defense.layer.weight


def test_trained_side_by_side_is_trained_as_alone(registry, tmp_path, monkeypatch, capfd):
    dataset = load_dataset("digits")
    assert needs_training(make_defense("first", dataset, registry), dataset, 0)
    train_side_by_side(["first", "second"], dataset, registry, 0, workers=2)
    assert "training 2 defenses on digits" in capfd.readouterr().err
    for name in ("first", "second"):
        assert not needs_training(make_defense(name, dataset, registry), dataset, 0)
    together = weights("first", registry)
    monkeypatch.setenv("ASSAY_CACHE", str(Path(tmp_path, "another")))
    assert torch.equal(weights("first", registry), together)


def test_a_training_process_that_dies_is_named(registry):
    with pytest.raises(UserError, match=r"training .*: its process died; try --workers 1"):
        train_side_by_side(["deadly", "deadly"], load_dataset("digits"), registry, 0, workers=2)
