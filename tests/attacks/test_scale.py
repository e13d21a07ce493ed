"""Attacks do not depend on the scale of the logits: nets are trained to any."""

from dataclasses import replace

import pytest
import torch
from attack_problems import ATTACKS, OneGradient, Problem, run, short

import bench
from attacks.parts.gradients import SPREAD, to_spread, wrong_odds
from bench.contracts.cards import DefenseCard, card_of
from bench.datasets.dataset import load_dataset

WITH_SCORES = [name for name in ATTACKS if card_of(ATTACKS[name]).access in ("gradient", "unrolled", "score", "latent")]
SCALES = [1e-12, 1e6]
EXACT_SCALES = {"brendel_bethge": [2.0**-40, 2.0**20]}
"""Powers of two round nothing otherwise. Rounding leads this attack's long first steps to another local optimum."""
BALLS = {"L2": 0.5, "Linf": 0.105}
FEW = {"steps": 5, "binary_search_steps": 2}
SHORTER = {
    **dict.fromkeys(
        ("apgd_ce", "apgd_dlr", "apgd_t", "bim_ge", "eot_pgd", "mim_ge", "pgd_ge", "pma", "unrolled_pgd"), FEW
    ),
    "autoattack": {"queries": 10},
    "square": {"search_steps": 20, "binary_search_steps": 2},
}
"""What takes too many queries else."""


class ClassMeans(OneGradient):
    """README's linear classifier of ``digits``, whose logits are half of what the squared distances to the classes'
    means differ in; what it returns is made of these distances."""

    def __init__(self, returned):
        data = load_dataset("digits").train
        self.card = DefenseCard(name="class_means", datasets=("digits",))
        self.means = torch.stack([data.images[data.labels == c].mean(0) for c in range(10)])
        self.returned = returned

    def squared(self, x):
        """||x - m||^2 - ||x||^2, linear in x."""
        means = self.means.flatten(1)
        return means.square().sum(1) - 2 * x.flatten(1) @ means.T

    def logits(self, x):
        return self.returned(self, x)

    def reconstruct(self, x, y):
        return self.means[y]

    def to(self, device):
        return self


def logits(scale):
    return lambda net, x: -scale / 2 * net.squared(x)


@pytest.fixture(scope="module")
def digits():
    data, plain = load_dataset("digits"), ClassMeans(logits(1.0))
    x, y = data.test.images[:12], data.test.labels[:12]
    correct = plain.logits(x).argmax(1) == y
    assert correct.sum() == 11
    return Problem(plain, x[correct], y[correct], 10, (data.train.images[:500], data.train.labels[:500]))


def accuracy(outcome):
    """Of all 12 images, one of which is misclassified without an attack."""
    return float((~outcome.found).sum()) / 12


@pytest.mark.parametrize("name", WITH_SCORES)
def test_the_scale_of_the_logits_does_not_matter(digits, name):
    card = card_of(ATTACKS[name])
    parameters = {**short(name), **SHORTER.get(name, {})}
    for norm in card.norms:
        epsilon = None if "minimal" in card.kinds else 3 * BALLS[norm]
        plain = run(digits, name, norm, epsilon=epsilon, samples=4, **parameters)
        for scale in EXACT_SCALES.get(name, SCALES):
            problem = replace(digits, defense=ClassMeans(logits(scale)))
            scaled = run(problem, name, norm, epsilon=epsilon, samples=4, **parameters)
            assert torch.equal(scaled.found, plain.found), scale
            assert scaled.remarks == plain.remarks
            assert torch.allclose(scaled.distance, plain.distance, rtol=1e-3), scale


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_dlr", "bim", "pgd", "pma"])
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_bounded_attacks_break_what_can_be_broken_at_any_scale(digits, name, scale):
    """Exact values inside the pixel box."""
    problem = replace(digits, defense=ClassMeans(logits(scale)))
    assert accuracy(run(problem, name, "L2", epsilon=0.5)) == pytest.approx(7 / 12)
    assert accuracy(run(problem, name, "Linf", epsilon=0.105)) == pytest.approx(6 / 12)


def kernel(net, x):
    return (-net.squared(x) - x.flatten(1).square().sum(1, keepdim=True)).exp()


@pytest.mark.parametrize(("output", "returned"), [
    ("probabilities", lambda net, x: kernel(net, x) ** 5),
    ("probabilities", lambda net, x: kernel(net, x) ** 10),
    ("probabilities", lambda net, x: (-30 * net.squared(x)).softmax(1)),
    ("log_probabilities", lambda net, x: (-30 * net.squared(x)).log_softmax(1)),
])  # fmt: skip
def test_a_wrapped_likelihood_is_attacked_as_its_logits_are(digits, output, returned):
    net = ClassMeans(lambda net, x: wrapped(x))
    wrapped = bench.wrap(lambda x: returned(net, x), output=output)
    problem = replace(digits, defense=net)
    assert accuracy(run(problem, "pgd", "L2", epsilon=0.5)) == pytest.approx(7 / 12)
    assert accuracy(run(problem, "pgd", "Linf", epsilon=0.105)) == pytest.approx(6 / 12)


def test_carlini_and_wagners_constant_is_for_logits_of_any_scale(digits):
    """A search of a single run, so that nothing makes up for a wrong constant."""
    plain, small, large = (
        run(replace(digits, defense=ClassMeans(logits(scale))), "cw", "L2", searches=1, constant=1.0)
        for scale in (1, 1e-6, 1e6)
    )
    assert plain.found.all()
    assert torch.allclose(small.distance, plain.distance, rtol=1e-3)
    assert torch.allclose(large.distance, plain.distance, rtol=1e-3)


def test_rows_have_a_scale_each():
    """Whatever else is in the batch."""
    rows = torch.tensor([[1.0, 2, 4], [-3e-30, 0, 1e-30], [5e20, 1e20, -7e20], [2, 2, 2], [0, 0, 0]])
    factors = to_spread(rows)
    assert torch.allclose((rows * factors)[:3].std(1), torch.tensor(SPREAD))
    assert torch.isfinite(rows * factors).all()
    y = torch.tensor([2, 1, 0, 0, 0])
    alone = torch.cat([wrong_odds(row[None], label[None]) for row, label in zip(rows, y, strict=True)])
    assert torch.equal(wrong_odds(rows, y), alone)
