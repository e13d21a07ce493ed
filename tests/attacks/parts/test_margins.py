"""The pieces of the APGD family: losses, and the order of the target classes."""

from dataclasses import replace

import pytest
import torch
from attack_problems import LinearDefense, Problem, run

from attacks.apgd import by_logits, by_malt, probability_margin
from bench.contracts.chunk import Chunk
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Terms


def oracle_of(problem, norm):
    chunk = Chunk(problem.x, problem.y, list(range(len(problem.x))), problem.classes)
    terms = Terms("gradient", ThreatModel(norm), 1000, batch_size=64)
    return DefenseOracle(problem.defense, chunk, terms, chunk.streams(0, "attack"), chunk.streams(0, "queries"))


def test_the_probability_margin_is_that_of_the_softmax():
    """Of logits with standard deviation 5, which are not scaled. The probabilities are 2/3, 1/3 and about zero."""
    logits = torch.tensor([[2.0, 1.0, 1e-12]]).log()
    logits = logits * 5 / logits.std(1)
    probabilities = logits.double().softmax(1)[0]
    for label, wrong in ((0, 1), (1, 0), (2, 0)):
        expected = float(probabilities[wrong] - probabilities[label])
        assert probability_margin(logits, torch.tensor([label])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", [1e-12, 1e6])
def test_the_probability_margin_has_a_gradient_at_any_scale(factor):
    logits = (factor * torch.tensor([[30.0, 1.0, 0.0]])).requires_grad_(True)
    (gradient,) = torch.autograd.grad(probability_margin(logits, torch.tensor([0])).sum(), logits)
    assert gradient[0, 1] > 0 > gradient[0, 0]


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_malt_ranks_the_classes_of_a_linear_classifier_by_the_distance_of_their_boundaries(linear, norm):
    """The distance to a hyperplane, outside the pixel box, is known."""
    weight, bias = linear.defense.weight.double(), linear.defense.bias.double()
    logits = linear.x.double().flatten(1) @ weight.T + bias
    for ranked, row, label in zip(by_malt(oracle_of(linear, norm), linear.x, linear.y), logits, linear.y, strict=True):
        normals = weight[label] - weight
        lengths = normals.norm(dim=1) if norm == "L2" else normals.abs().sum(1)
        distances = ((row[label] - row) / lengths)[ranked]
        assert sorted(ranked.tolist()) == [c for c in range(linear.classes) if c != label]
        assert (distances.diff() >= -1e-5).all()


def test_malt_and_the_logits_rank_differently(linear):
    malt, logits = (rank(oracle_of(linear, "Linf"), linear.x, linear.y) for rank in (by_malt, by_logits))
    assert not torch.equal(malt, logits)


def test_a_class_that_no_perturbation_brings_nearer_comes_last():
    """The second class is the likeliest wrong one, but its logit moves with that of the true class."""
    defense = LinearDefense(size=4, classes=3)
    defense.weight = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0.0, 1, 0, 0]])
    defense.bias = torch.tensor([1.0, 0.9, 0.0])
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    problem = Problem(defense, x, y, 3, (x, y))
    assert by_logits(oracle_of(problem, "L2"), x, y).tolist() == [[1, 2]]
    assert by_malt(oracle_of(problem, "L2"), x, y).tolist() == [[2, 1]]


@pytest.mark.parametrize("targeting", ["logits", "malt"])
def test_a_chunk_may_be_larger_than_the_batch(linear, targeting):
    """Each row of each batch keeps its own target."""
    samples = [i % len(linear.x) for i in range(100)]
    many = replace(linear, x=linear.x[samples], y=linear.y[samples])
    whole, parts = (run(many, "apgd_t", "L2", chunk=chunk, targeting=targeting, steps=5) for chunk in (100, 50))
    assert torch.allclose(whole.distance, parts.distance, rtol=0.01)
