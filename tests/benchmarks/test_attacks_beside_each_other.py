"""Attacks beside each other on MNIST: what they find and what they cost, in the same run."""

import time

import torch
from attack_problems import Outcome, Problem, run

import bench


def problem(name: str, samples: int, data_dir) -> Problem:
    """The first correctly classified of ``samples`` MNIST test images, for the defense ``name``."""
    defense = bench.load_defense(name, dataset="mnist", data_dir=data_dir)
    dataset = bench.load_dataset("mnist", data_dir)
    x, y = dataset.test.images[:samples], dataset.test.labels[:samples]
    right = torch.cat([defense.logits(part).argmax(1) for part in x.split(100)]) == y
    return Problem(defense, x[right], y[right], 10, (dataset.train.images[:500], dataset.train.labels[:500]))


def timed(problem: Problem, name: str, norm: str, **parameters) -> tuple[Outcome, float]:
    """What an attack achieves, and its seconds of processor time."""
    started = time.process_time()
    return run(problem, name, norm, **parameters), time.process_time() - started


def test_sparse_rs_beside_pointwise_10x(report, data_dir):
    cnn = problem("cnn", 30, data_dir)
    (ours, spent), (theirs, their_spent) = (timed(cnn, name, "L0") for name in ("sparse_rs", "pointwise_10x"))
    report(
        "sparse_rs beside pointwise_10x, cnn on mnist",
        f"median {ours.distance.median():.3g} ({theirs.distance.median():.3g}), passes {ours.forwards.mean():.0f} "
        f"({theirs.forwards.mean():.0f}), seconds {spent:.1f} ({their_spent:.1f}), ratio {spent / their_spent:.2f}",
    )
    assert ours.distance.median() <= theirs.distance.median()
    assert spent <= their_spent
