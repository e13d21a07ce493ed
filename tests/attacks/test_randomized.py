"""Attacks on a randomized defense end where fresh draws agree, near the exact optimum of what it is on average."""

from dataclasses import replace

import pytest
import torch
from attack_problems import run

from bench.contracts.chunk import Chunk
from bench.contracts.threat import ThreatModel
from bench.contracts.work import ALPHA
from bench.engine.judge import Judge
from defenses.smoothing import RandomizedSmoothing

CASES = {
    ("eot_pgd", "L2"): (1.2, {"restarts": 1, "steps": 20, "relative_step_size": 0.2, "binary_search_steps": 6}),
    ("eot_pgd", "Linf"): (1.2, {"restarts": 1, "steps": 20, "relative_step_size": 0.2, "binary_search_steps": 6}),
    ("apgd_ce", "Linf"): (1.2, {"steps": 20, "binary_search_steps": 6}),
    ("ddn", "L2"): (1.2, {"steps": 40}),
    ("fmn", "Linf"): (1.2, {"steps": 40}),
    ("deepfool", "L2"): (1.2, {}),
    ("boundary", "L2"): (2.0, {"steps": 60}),
}
"""Largest median ratio of the distance found to the optimum of the linear classifier, and parameters."""


@pytest.fixture(scope="module")
def smoothed(linear):
    """The linear classifier under noise so small that three classes are never near each other: a majority of draws is
    its own decision."""
    defense = RandomizedSmoothing(linear.defense, sigma=0.05)
    defense.card = replace(linear.defense.card, name="smoothed", randomized=True)
    return replace(linear, defense=defense)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_what_an_attack_finds_holds_on_fresh_draws_near_the_optimum(linear, smoothed, name, norm):
    factor, parameters = CASES[name, norm]
    outcome = run(smoothed, name, norm, samples=12, budget=10**6, **parameters)
    assert outcome.found.all()
    judge = Judge(
        smoothed.defense,
        seed=0,
        alpha=torch.tensor(ALPHA, dtype=torch.float64),
        estimation_draws=100,
        threshold=0.0,
    )
    candidates = outcome.candidates[None]
    chunk = Chunk(smoothed.x[:12], smoothed.y[:12], range(12), smoothed.classes)
    judged = judge.judge(ThreatModel(norm), chunk, candidates, candidates[:0])
    assert judged.broken.all()
    assert (judged.errors > 50).all()
    ratio = judged.distances[norm] / linear.optimum(norm)[:12]
    assert ratio.min() > 0.95
    assert ratio.median() <= factor


def test_a_bounded_attack_goes_on_after_a_lucky_draw(linear, smoothed):
    """At one and a half times the optimum it breaks every sample; below, lucky draws are not success."""
    for share, broken in ((1.5, 4), (0.9, 0)):
        found = 0
        for i in range(4):
            alone = replace(smoothed, x=smoothed.x[i : i + 1], y=smoothed.y[i : i + 1])
            epsilon = share * float(linear.optimum("L2")[i])
            found += int(run(alone, "eot_pgd", "L2", epsilon=epsilon, restarts=1).found.sum())
        assert found == broken
