"""What reaches a goal, and what an oracle with a goal remembers and answers."""

import math

import pytest
import torch
from torch import nn

from bench.contracts.cards import DefenseCard
from bench.contracts.chunk import Chunk
from bench.contracts.confidence import Calibration
from bench.contracts.goals import MISCLASSIFIED, Confident
from bench.contracts.protocols import as_defense
from bench.contracts.threat import ThreatModel
from bench.engine.claims import FRESH_DRAWS
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Terms

SURE = Confident(Calibration(alpha=1, log_eta=-math.inf))
"""Of two classes, a confidence of .9 is a logit that is log 9 = 2.2 larger."""


class Brightness(nn.Module):
    """Logits 0 and 4 times the brightness."""

    def logits(self, x):
        return torch.stack([torch.zeros(len(x)), 4 * x.mean((1, 2, 3))], 1)


def images(*levels):
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def asked(x, y, goal, model=None, budget=100, **card):
    card = DefenseCard(name="model", datasets=("none",), **card)
    chunk = Chunk(x, torch.tensor(y), range(len(x)), 2)
    return DefenseOracle(
        as_defense(card, model or Brightness()),
        chunk,
        Terms("gradient", ThreatModel("L2", goal=goal), budget, batch_size=64),
        random=chunk.streams(0, "attack"),
        noise=chunk.streams(0, "queries"),
    )


@pytest.mark.parametrize(("level", "reached"), [(0.5, False), (0.54, False), (0.56, True), (1.0, True)])
def test_confidence_in_the_samples_own_class_is_reached_at_nine_tenths(level, reached):
    oracle = asked(images(0.1), [1], SURE)
    oracle.scores(images(level), oracle.ids)
    assert bool(oracle.found) is reached


def test_it_may_be_reached_from_the_start_and_only_in_that_class():
    x = images(1.0, 1.0)
    oracle = asked(x, [1, 0], SURE)
    oracle.scores(x, oracle.ids)
    assert oracle.found.tolist() == [True, False]
    assert oracle.closest_distance.tolist() == [0, math.inf]


def test_the_surest_images_count_only_within_the_pixel_box():
    oracle = asked(images(0.1), [1], SURE)
    oracle.scores(images(3.0), oracle.ids)
    assert not oracle.found


def test_a_class_says_nothing_of_confidence():
    oracle = asked(images(0.1), [1], SURE)
    assert oracle.decision(images(1.0), oracle.ids) == 1
    assert not oracle.found


@pytest.mark.parametrize("goal", [MISCLASSIFIED, SURE])
def test_what_a_spent_sample_is_told_does_not_reach_the_goal(goal):
    """After its one pass the first sample is refused."""
    oracle = asked(images(0.3, 0.3), [1, 1], goal, budget=1)
    oracle.scores(images(0.3), oracle.ids[:1])
    answers = oracle.scores(images(1.0, 1.0), oracle.ids)
    assert oracle.refused.tolist() == [True, False]
    assert not goal.reached(answers[:1], torch.tensor([1])).any()


def test_confidence_reached_by_luck_is_answered_anew():
    """On one draw a third of the rows are sure; on the mean of a hundred none is."""

    class Noisy(Brightness):
        def logits(self, x, rng):
            return super().logits(x) + 4 * rng.normal((2,))

    x = images(*[0.0] * 40)
    oracle = asked(x, [1] * 40, SURE, Noisy(), budget=10_000, randomized=True)
    oracle.draws = 1
    answers = oracle.scores(x, oracle.ids)
    assert not oracle.found.any()
    assert not SURE.reached(answers, torch.ones(40, dtype=torch.int64)).any()
    # Those that seemed sure took the further draws.
    assert set(oracle.forwards.tolist()) == {1.0, 1.0 + FRESH_DRAWS}
