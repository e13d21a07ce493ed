"""The judge of randomized defenses keeps its stated error against attacks that try often, and has the power it states.

A coin stands in for a defense: it errs on an image with the probability that is the image's first pixel.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.contracts.cards import DefenseCard
from bench.contracts.chunk import Chunk
from bench.contracts.threat import ThreatModel
from bench.contracts.work import ALPHA
from bench.engine.ballot import Ballot
from bench.engine.judge import Judge

CARD = DefenseCard(name="coin", datasets=("coins",), randomized=True, batch_size=256)
RADIUS = 10.0
"""Of a ball that holds every candidate: nothing is moved outward."""
HOSTILE = [(p, candidates) for p in (0.30, 0.40, 0.45, 0.49) for candidates in (1, 20, 200)]


class Coin:
    """Tosses for all rows at once, from the global generator."""

    card = replace(CARD, batch_size=4096)

    def tosses(self, x, rng):
        return torch.rand(len(x))

    def logits(self, x, rng):
        wrong = (self.tosses(x, rng) < x[:, 0, 0, 0]).float()
        return torch.stack([1 - wrong, wrong], 1)

    def to(self, device):
        return self


class StreamCoin(Coin):
    """Tosses as a defense should, from the row's own stream."""

    card = CARD

    def tosses(self, x, rng):
        return rng.uniform(())


class Line(Coin):
    """Errs with a probability that rises along the line from the clean image, by 0.5 over the distance `reach`."""

    reach = 0.2

    def logits(self, x, rng):
        p = (0.5 + (x[:, 0, 0, 0] - 0.5) / (2 * self.reach)).clamp(0, 1)
        return super().logits(p[:, None, None, None], rng)


def judge_of(defense, alpha=ALPHA, seed=0, estimation_draws=0):
    levels = torch.as_tensor(alpha, dtype=torch.float64)
    return Judge(defense, seed, alpha=levels, estimation_draws=estimation_draws, threshold=RADIUS)


def judged(probabilities, samples, defense=None, **options):
    """The verdicts on ``samples`` samples with candidates of these probabilities, the nearest first."""
    candidates = torch.zeros(len(probabilities), samples, 1, 1, 2)
    candidates[:, :, 0, 0, 0] = torch.tensor(probabilities)[:, None]
    candidates[:, :, 0, 0, 1] = torch.linspace(0.7, 0.9, len(probabilities))[:, None]  # tells them apart, in order
    x, y = torch.zeros(samples, 1, 1, 2), torch.zeros(samples, dtype=torch.int64)
    judge = judge_of(defense or Coin(), **options)
    return judge.judge(ThreatModel("Linf", RADIUS), Chunk(x, y, range(samples), 2), candidates, candidates[:0])


def imports_in_turn(samples, p, imports):
    """Which samples are broken by one of several imports, each judged with a key and a share of its own."""
    broken = torch.zeros(samples, dtype=torch.bool)
    for k in range(1, imports + 1):
        result = judged([p], samples, alpha=ALPHA * 6 / (np.pi * k) ** 2, seed=1000 + k)
        broken |= result.broken
    return broken


@pytest.mark.parametrize(("p", "candidates"), HOSTILE)
def test_an_image_that_most_draws_classify_correctly_is_not_accepted_however_many_are_tried(p, candidates):
    torch.manual_seed(0)
    assert int(judged([p] * candidates, 500).broken.sum()) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("p", "candidates"), HOSTILE)
def test_at_most_one_in_a_thousand_is_accepted_in_error(p, candidates):
    torch.manual_seed(1)
    accepted = sum(int(judged([p] * candidates, 1000).broken.sum()) for _ in range(10))
    assert accepted <= 20


@pytest.mark.parametrize("p", [0.40, 0.49])
def test_candidates_that_share_their_draws_gain_nothing(p, monkeypatch):
    monkeypatch.setattr("bench.engine.ballot._keys", lambda images, samples: list(samples))
    assert int(judged([p] * 5, 200, StreamCoin()).broken.sum()) <= 3


@pytest.mark.parametrize("samples", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_imports_in_turn_share_one_error(samples):
    torch.manual_seed(2)
    assert int(imports_in_turn(samples, 0.49, 20).sum()) <= max(3, samples // 500)


@pytest.mark.parametrize("samples", [500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("others", [[], [0.49] * 19], ids=["alone", "before 19 others"])
def test_an_image_at_the_alternative_is_accepted_where_it_is_put_to_the_test_first(samples, others):
    torch.manual_seed(3)
    accepted = int(judged([0.65, *others], samples).broken.sum())
    assert accepted >= 0.95 * samples - (10 if samples < 1000 else 0)


@pytest.mark.parametrize(("others", "expected"), [(4, 0.877), (19, 0.736)])
def test_the_power_after_other_candidates_is_the_one_stated(others, expected):
    torch.manual_seed(4)
    accepted = judged([0.3] * others + [0.65], 2000).broken.double().mean().item()
    assert accepted == pytest.approx(expected, abs=0.03)


def test_what_is_given_up_and_what_is_undecided():
    torch.manual_seed(5)
    below, near = judged([0.3], 300), judged([0.6], 300)
    assert not below.broken.any()
    assert not below.undecided.any()
    assert near.undecided.double().mean().item() == pytest.approx(0.43, abs=0.1)
    assert not (near.undecided & near.broken).any()


def test_what_is_printed_is_unbiased():
    """Whatever was accepted, further draws say how often it errs."""
    torch.manual_seed(6)
    result = judged([0.6], 2000, estimation_draws=20)
    rate = result.errors[result.broken].double().mean().item() / 20
    assert int(result.broken.sum()) > 300
    assert rate == pytest.approx(0.6, abs=0.02)


def test_the_likeliest_image_is_one_within_the_threshold_and_counts_fresh_draws():
    torch.manual_seed(7)
    result = judged([0.2, 0.55, 0.3], 400, estimation_draws=20)
    chosen = result.likeliest[:, 0, 0, 0]
    assert (chosen.isclose(torch.tensor(0.55))).double().mean() > 0.9
    assert result.likely_errors.double().mean().item() / 20 == pytest.approx(0.55, abs=0.03)


def test_a_minimal_image_is_moved_outward_until_it_can_be_decided_and_no_farther():
    """Candidates lie where P is one half; P of 0.7 is reached at 1.16 times their distance."""
    torch.manual_seed(8)
    n = 500
    x, y = torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64)
    candidates = torch.full((1, n, 1, 1, 1), 0.5)
    judge = judge_of(Line())
    result = judge.judge(ThreatModel("Linf"), Chunk(x, y, range(n), 2), candidates, candidates[:0])
    stretch = result.distances["Linf"] / 0.5
    assert result.broken.double().mean() > 0.97
    assert result.undecided.double().mean() < 0.02
    assert stretch[result.broken].median().item() == pytest.approx(1.16, abs=0.06)
    as_it_is = judge.judge(ThreatModel("Linf"), Chunk(x, y, range(n), 2), candidates, candidates[:0], as_it_is=True)
    assert as_it_is.broken.double().mean() < 0.02


def test_where_moving_outward_changes_nothing_a_candidate_is_put_to_the_test_all_the_same():
    """In L0, and where pixels are saturated: what choosing draws see once, they see at every factor."""
    torch.manual_seed(9)
    n = 300
    x, y = torch.zeros(n, 1, 1, 2), torch.zeros(n, dtype=torch.int64)
    candidates = torch.zeros(1, n, 1, 1, 2)
    candidates[..., 0], candidates[..., 1] = 0.8, 1.0

    class Saturated(Coin):
        """Errs in 8 of 10 draws wherever the second pixel is white."""

        def logits(self, x, rng):
            return super().logits(0.8 * (x[..., 1:] == 1), rng)

    result = judge_of(Saturated()).judge(ThreatModel("L0"), Chunk(x, y, range(n), 2), candidates, candidates[:0])
    assert result.broken.double().mean() > 0.97


def test_a_draw_depends_on_seed_purpose_sample_image_and_number_alone():
    images = torch.tensor([0.2, 0.5, 0.5]).reshape(3, 1, 1, 1)
    y, numbers = torch.zeros(3, dtype=torch.int64), torch.arange(200)

    def draws(row, *, seed=0, purpose="judge deciding", samples=(7, 8, 9), beside=()):
        ballot = Ballot(StreamCoin(), Chunk(images, y, samples, 2), seed=seed, purpose=purpose)
        rows = torch.cat([torch.full_like(numbers, other) for other in (*beside, row)])
        return ballot(rows, numbers.repeat(len(beside) + 1))[-200:]

    same = draws(1)
    assert torch.equal(draws(1, beside=(0, 1, 2)), same)
    assert torch.equal(draws(2, samples=(7, 8, 8)), same)
    for other in (draws(2), draws(1, seed=1), draws(1, purpose="judge estimating")):
        assert not torch.equal(other, same)


def test_equal_images_have_equal_bytes():
    """A pixel of -0.0 is one of 0.0: the image that is stored, and the draws on it, do not tell them apart."""
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    chunk = Chunk(x, y, range(1), 2)
    verdicts = []
    for zero in (0.0, -0.0):
        candidates = torch.tensor([[[[[0.9, zero]]]]])
        verdicts.append(judge_of(StreamCoin()).judge(ThreatModel("Linf", RADIUS), chunk, candidates, candidates[:0]))
    assert not torch.signbit(verdicts[1].images).any()
    assert torch.equal(verdicts[0].deciding, verdicts[1].deciding)
    assert torch.equal(verdicts[0].errors, verdicts[1].errors)
