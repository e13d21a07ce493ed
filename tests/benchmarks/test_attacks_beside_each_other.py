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


PARTS = ("pgd", "apgd_ce", "apgd_t")


def test_strongest_beside_its_parts(report, data_dir):
    """More errors than its parts together, in no more time, on adversarial training in its own ball."""
    adv_linf = problem("adv_linf", 1000, data_dir)
    found, seconds = {}, {}
    for name in ("strongest", *PARTS):
        outcome, seconds[name] = timed(adv_linf, name, "Linf", epsilon=0.3, chunk=adv_linf.defense.card.batch_size)
        found[name] = outcome.found
        errors, passes = outcome.found.sum(), (outcome.forwards + outcome.backwards).mean()
        report(
            f"{name}, adv_linf on 1,000 images of mnist, Linf .3",
            f"{errors} errors, {errors / seconds[name]:.2f} a second ({seconds[name]:.0f} s), passes {passes:.0f}",
        )
    together = torch.stack([found[name] for name in PARTS]).any(0)
    spent = sum(seconds[name] for name in PARTS)
    report("the parts together", f"{together.sum()} errors, {together.sum() / spent:.2f} a second ({spent:.0f} s)")
    assert found["strongest"].sum() > together.sum()
    assert seconds["strongest"] <= spent
