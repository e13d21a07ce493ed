"""The attacks written here beside foolbox's own on the same net: passes and seconds for the strength they reach.

A gradient counts as two passes, a Jacobian as one pass forward and one back for each class, on both sides.
"""

import os
import time

import foolbox
import pytest
import torch
from attack_problems import Problem, run
from torch import nn

import bench
from bench.threat import distance

SAMPLES = 20
LADDER = [0.02 * 1.2**k for k in range(25)]
"""Epsilons that a plain script would try with a bounded attack: 25 from 0.02 to 1.6."""
SALT_AND_PEPPER = foolbox.attacks.SaltAndPepperNoiseAttack(steps=1000)

CASES = {
    "salt_and_pepper L0": ("salt_and_pepper", "L0", {}, SALT_AND_PEPPER, None),
    "pointwise L0": ("pointwise", "L0", {}, foolbox.attacks.PointwiseAttack(init_attack=SALT_AND_PEPPER), None),
    "boundary L2": ("boundary", "L2", {"steps": 850}, foolbox.attacks.BoundaryAttack(steps=5000), None),
    "deepfool L2": ("deepfool", "L2", {}, foolbox.attacks.L2DeepFoolAttack(), None),
    "deepfool Linf": ("deepfool", "Linf", {}, foolbox.attacks.LinfDeepFoolAttack(), None),
    "pgd L2": ("pgd", "L2", {}, foolbox.attacks.L2PGD(steps=40), [8 * epsilon for epsilon in LADDER]),
    "pgd Linf": ("pgd", "Linf", {}, foolbox.attacks.LinfPGD(steps=40), LADDER),
}


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
def problem(request):
    data_dir = os.environ.get("ASSAY_DATA")
    if request.param == "mnist" and data_dir is None:
        pytest.skip("ASSAY_DATA is not set: MNIST is not here")
    torch.set_num_threads(1)
    defense = bench.load_defense("cnn", dataset=request.param, data_dir=data_dir)
    dataset = bench.load_dataset(request.param, data_dir)
    test, train = dataset.test, dataset.train
    right = (defense.logits(test.images[:100]).argmax(1) == test.labels[:100]).nonzero()[:SAMPLES, 0]
    pool = (train.images[:500], train.labels[:500])
    return Problem(defense, test.images[right], test.labels[right], 10, pool)


@pytest.mark.parametrize("case", CASES)
def test_beside_foolbox(benchmark, report, request, problem, case):
    name, norm, parameters, attack, epsilons = CASES[case]
    ours = benchmark.pedantic(lambda: run(problem, name, norm, **parameters), rounds=1)
    spent = benchmark.stats.stats.min
    counted = Counted(problem.defense).eval()
    torch.manual_seed(0)
    started = time.perf_counter()
    model = foolbox.PyTorchModel(counted, bounds=(0, 1))
    _, clipped, success = attack(model, problem.x, problem.y, epsilons=epsilons)
    theirs_spent = time.perf_counter() - started
    if epsilons is None:
        clipped, success = [clipped], success[None]
    found = torch.stack([distance(images, problem.x, norm) for images in clipped])
    theirs = torch.where(success, found, torch.inf).amin(0)
    passes = (ours.forwards + ours.backwards).mean().item()
    report(
        f"{case}, cnn on {request.node.callspec.params['problem']}",
        f"median {ours.distance.median():.3g} (foolbox {theirs.median():.3g}), passes {passes:.0f} "
        f"({counted.passes / len(problem.x) / passes:.1f} times as many), seconds {spent:.1f} "
        f"({theirs_spent / spent:.1f} times as many)",
    )
    assert ours.distance.median() <= 1.001 * theirs.median()
