"""Cost as the work grows: four times the work must take about four times as long."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from measuring import make_cell, seconds
from torch import nn

import bench
from bench.contracts.cards import DefenseCard
from bench.contracts.protocols import ModuleDefense
from bench.datasets.split import Split
from bench.engine.cell import Adversary, Target, run_cell
from bench.plugins.registry import Registry


@pytest.mark.parametrize(
    ("attack", "norm"), [("boundary", "L2"), ("pointwise", "L0"), ("bim", "Linf"), ("deepfool", "L2")]
)
def test_samples(benchmark, report, device, attack, norm):
    """Four times the samples, in chunks of the same size."""
    dataset = bench.load_dataset("digits")
    defense = bench.load_defense("cnn", dataset="digits", device=device.type)
    function = Registry().get("attacks", attack).function
    few = make_cell(attack, norm, budget=300)
    many = replace(few, samples=256)
    run_cell(few, Target(defense), Adversary(function), dataset, device)
    small = seconds(run_cell, few, defense, function, dataset, device)
    large = seconds(benchmark.pedantic, run_cell, (many, defense, function, dataset, device), rounds=1)
    report(f"{attack} {norm}, {device.type}: 4 times the samples take", f"{large / small:.1f} times as long")
    assert large < 5 * small


def test_classes(benchmark, report, device):
    """DeepFool takes the derivatives of all logits: 4 times the classes, on a linear classifier."""
    dataset = bench.load_dataset("digits")
    function = Registry().get("attacks", "deepfool").function
    spent = []
    for classes in (10, 40):
        torch.manual_seed(0)
        card = DefenseCard(name="linear", datasets=("digits",))
        defense = ModuleDefense(card, nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).to(device))
        logits = defense.logits(dataset.test.images.to(device)).cpu()
        relabeled = Split(dataset.test.images, logits.argmax(1))
        labeled = SimpleNamespace(classes=classes, train=dataset.train, test=relabeled)
        cell = make_cell("deepfool", "L2", budget=10**6)
        run_cell(cell, Target(defense), Adversary(function), labeled, device)
        spent.append(seconds(run_cell, cell, defense, function, labeled, device))
    benchmark.pedantic(run_cell, (cell, defense, function, labeled, device), rounds=1)
    report(f"deepfool L2, {device.type}: 4 times the classes take", f"{spent[1] / spent[0]:.1f} times as long")
    assert spent[1] < 5 * spent[0]


def test_cells(benchmark, report, device, tmp_path):
    """What a cell costs that has next to nothing to do, with 1 and 4 defenses and 1 and 4 attacks."""
    spent = {}
    for defenses, attacks in ((1, 1), (1, 4), (4, 1), (4, 4)):
        names = ["cnn", "binary_cnn", "adv_l2", "adv_linf"][:defenses]
        entries = [
            f"[[attacks]]\nname = 'fgm'\nvariant = 'v{k}'\n"
            f"parameters = {{ num_scales = 2, binary_search_steps = {k + 1} }}"
            for k in range(attacks)
        ]
        matrix = tmp_path / f"{defenses}x{attacks}.toml"
        matrix.write_text(
            f"dataset = 'digits'\nsamples = 1\ndefenses = {names}\nthresholds = {{ L2 = 0.5 }}\n" + "\n".join(entries)
        )
        options = {"workers": 1, "device": device.type}
        bench.run(str(matrix), out=tmp_path / "warm" / matrix.stem, **options)
        spent[defenses, attacks] = seconds(bench.run, str(matrix), out=tmp_path / matrix.stem, **options)
    benchmark.pedantic(bench.run, (str(matrix),), {"out": tmp_path / "last", **options}, rounds=1)
    per_cell = (spent[4, 4] - spent[4, 1]) / 12
    report(f"a cell with nothing to do costs, {device.type}", f"{1000 * per_cell:.0f} ms")
    for (defenses, attacks), s in spent.items():
        report(f"a run of {defenses} defenses x {attacks} attacks, 1 sample, {device.type}", f"{s:.2f} s")
