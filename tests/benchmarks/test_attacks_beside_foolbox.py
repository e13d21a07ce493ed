"""The attacks written here beside foolbox's own on the same net: passes and seconds for the strength they reach.

A gradient counts as two passes, a Jacobian as one pass forward and one back for each class, on both sides. Foolbox's
bounded attacks have no search for the smallest epsilon: they are run on a ladder, as a script would, and pay for it.
"""

import time

import foolbox
import pytest
from attack_problems import Problem, run
from foolbox_attacks import LADDER, SALT_AND_PEPPER, foolbox_distances
from torch import nn

import bench

SAMPLES = 60
POINTWISE = foolbox.attacks.PointwiseAttack(init_attack=SALT_AND_PEPPER, l2_binary_search=False)
CASES = {
    "salt_and_pepper L0": ("salt_and_pepper", "L0", SALT_AND_PEPPER, None),
    "pointwise L0": ("pointwise", "L0", POINTWISE, None),
    "boundary L2": ("boundary", "L2", foolbox.attacks.BoundaryAttack(steps=5000), None),
    "deepfool L2": ("deepfool", "L2", foolbox.attacks.L2DeepFoolAttack(), None),
    "deepfool Linf": ("deepfool", "Linf", foolbox.attacks.LinfDeepFoolAttack(), None),
    "pgd L2 (foolbox: ladder)": ("pgd", "L2", foolbox.attacks.L2PGD(steps=40), LADDER),
    "pgd Linf (foolbox: ladder)": ("pgd", "Linf", foolbox.attacks.LinfPGD(steps=40), LADDER),
}
BOUNDARY_STEPS = {"digits": 600, "mnist": 1000}
"""Enough to get as far as foolbox does in 5000."""


class Counted(nn.Module):
    """Counts forward and backward passes per image."""

    def __init__(self, defense):
        super().__init__()
        self.defense, self.passes = defense, 0

    def forward(self, x):
        self.passes += len(x)
        logits = self.defense.logits(x)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient):
        self.passes += len(gradient)


@pytest.fixture(scope="module", params=["digits", "mnist"])
def problem(request, device):
    data_dir = request.getfixturevalue("data_dir") if request.param == "mnist" else None
    defense = bench.load_defense("cnn", dataset=request.param, data_dir=data_dir, device=device.type)
    dataset = bench.load_dataset(request.param, data_dir)
    test, train = dataset.test, dataset.train
    x, y = test.images[:100].to(device), test.labels[:100].to(device)
    right = (defense.logits(x).argmax(1) == y).nonzero()[:SAMPLES, 0]
    pool = (train.images[:500].to(device), train.labels[:500].to(device))
    return Problem(defense, x[right], y[right], 10, pool)


@pytest.mark.parametrize("case", CASES)
def test_beside_foolbox(benchmark, report, request, problem, device, case):
    name, norm, attack, epsilons = CASES[case]
    dataset = request.node.callspec.params["problem"]
    parameters = {"steps": BOUNDARY_STEPS[dataset]} if name == "boundary" else {}
    ours = benchmark.pedantic(lambda: run(problem, name, norm, **parameters), rounds=1)
    spent = benchmark.stats.stats.min
    counted = Counted(problem.defense).eval()
    started = time.perf_counter()
    theirs = foolbox_distances(counted, problem.x, problem.y, attack, norm, epsilons)
    theirs_spent = time.perf_counter() - started
    passes = (ours.forwards + ours.backwards).mean().item()
    report(
        f"{case}, cnn on {dataset}, {device.type}",
        f"median {ours.distance.median():.3g} (foolbox {theirs.median():.3g}), passes {passes:.0f} "
        f"(foolbox {counted.passes / len(problem.x):.0f}), seconds {spent:.1f} (foolbox {theirs_spent:.1f})",
    )
    assert ours.distance.median() <= 1.01 * theirs.median()
