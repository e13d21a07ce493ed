"""Brendel-Bethge beside foolbox's, on 30 images, from the same salt and pepper noise and with at most 500 steps.

Foolbox's solver needs numba, which no extra of this package installs.
"""

import time

import foolbox
import pytest
import torch
from attack_problems import Problem, run
from foolbox_attacks import SALT_AND_PEPPER
from test_attacks_beside_foolbox import Counted

import bench
from bench.contracts.norms import NORMS

SAMPLES, STEPS = 30, 500
THEIRS = {
    "L0": foolbox.attacks.L0BrendelBethgeAttack,
    "L1": foolbox.attacks.L1BrendelBethgeAttack,
    "L2": foolbox.attacks.L2BrendelBethgeAttack,
    "Linf": foolbox.attacks.LinfinityBrendelBethgeAttack,
}


@pytest.fixture(scope="module", params=["cnn", "adv_linf"])
def problem(request, data_dir):
    pytest.importorskip("numba", reason="foolbox's solver needs numba: pip install numba")
    defense, dataset = (
        bench.load_defense(request.param, dataset="mnist", data_dir=data_dir),
        bench.load_dataset("mnist", data_dir),
    )
    x, y = dataset.test.images[: 2 * SAMPLES], dataset.test.labels[: 2 * SAMPLES]
    right = (defense.logits(x).argmax(1) == y).nonzero()[:SAMPLES, 0]
    pool = (dataset.train.images[:500], dataset.train.labels[:500])
    return Problem(defense, x[right], y[right], 10, pool)


@pytest.mark.filterwarnings("ignore:At the first initialisation")
@pytest.mark.parametrize("norm", THEIRS)
def test_beside_foolbox(report, monkeypatch, problem, norm):
    counted = Counted(problem.defense).eval()
    model = foolbox.PyTorchModel(counted, bounds=(0, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start, _, found = SALT_AND_PEPPER(model, problem.x, problem.y, epsilons=None)
    assert found.all()
    monkeypatch.setattr("attacks.brendel_bethge.start", lambda oracle, x, y: (start.clone(), found))
    THEIRS[norm](steps=2)(model, problem.x, problem.y, starting_points=start, epsilons=None)  # Compiles its solver.
    counted.passes, started = 0, time.process_time()
    attack = THEIRS[norm](steps=STEPS)
    _, clipped, _ = attack(model, problem.x, problem.y, starting_points=start, epsilons=None)
    theirs, theirs_spent = NORMS[norm].distance(clipped, problem.x), time.process_time() - started
    started = time.process_time()
    ours = run(problem, "brendel_bethge", norm, steps=STEPS)
    spent = time.process_time() - started
    passes, theirs_passes = (ours.forwards + ours.backwards).mean().item(), counted.passes / SAMPLES
    report(
        f"brendel_bethge {norm}, {problem.defense.card.name} on mnist",
        f"median {ours.distance.median():.4g} (foolbox {theirs.median():.4g}), passes {passes:.0f} "
        f"(foolbox {theirs_passes:.0f}), CPU seconds {spent:.1f} (foolbox {theirs_spent:.1f})",
    )
    assert ours.distance.median() <= 1.01 * theirs.median()
    assert passes <= theirs_passes
    assert spent <= theirs_spent / 3
