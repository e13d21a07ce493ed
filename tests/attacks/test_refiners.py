"""An attack that refines starts from what others found: it ends no farther, and from far starts it is as strong."""

import pytest
import torch
from attack_problems import ATTACKS, linear_problem, prototype_problem, run, short
from exact_optimum import optimum

from bench.contracts.cards import card_of

REFINERS = [
    (name, norm) for name, attack in ATTACKS.items() if card_of(attack).refines for norm in card_of(attack).norms
]
PROBLEMS = {"linear": linear_problem, "prototypes": prototype_problem}


def of_other_classes(problem):
    """A training image of another class for each sample, but for the first one."""
    images, labels = problem.pool
    start = torch.stack([images[labels != y][0] for y in problem.y])
    found = torch.arange(len(start)) > 0
    return torch.where(found[:, None, None, None], start, problem.x), found


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("name", "norm"), REFINERS)
def test_no_sample_ends_farther_than_it_started(problem, name, norm):
    problem = PROBLEMS[problem]()
    near = run(problem, name, norm)
    start = (near.candidates, near.found)
    again = run(problem, name, norm, starts=start, **{**short(name), "steps": 1})
    assert (again.distance <= near.distance).all()


def of_the_starts(problem, start, found, norm):
    """The smallest distance (M,) of an adversarial example in the regions that the starts lie in, where there are."""
    regions = [problem.defense.adversarial_regions(label) for label in problem.y[found].tolist()]
    points = start[found].flatten(1).double().numpy()
    own = [[(a, b) for a, b in around if (a @ z >= b).all()] for around, z in zip(regions, points, strict=True)]
    return optimum(own, problem.x[found], norm)


@pytest.mark.parametrize(("name", "norm"), REFINERS)
def test_from_far_starts_the_attack_is_as_strong_as_its_card_says(name, norm):
    """The nearest point of another region may stay unknown: the attack follows the boundary that it starts beyond. A
    linear classifier's regions are convex, so each has one nearest point."""
    problem = linear_problem()
    start, found = of_other_classes(problem)
    outcome = run(problem, name, norm, starts=(start, found))
    ratio = outcome.distance[found] / of_the_starts(problem, start, found, norm)
    median, worst = card_of(ATTACKS[name]).approximation_ratio[norm]
    assert outcome.found.all(), "a sample that no other attack has broken starts as ever"
    assert ratio.median() <= median
    assert ratio.max() <= worst


@pytest.mark.parametrize(("name", "norm"), REFINERS)
def test_the_starts_are_what_the_attack_begins_with(name, norm):
    """With a budget for little more than the start, the start is what it has found."""
    problem = linear_problem()
    near = run(problem, name, norm)
    outcome = run(problem, name, norm, starts=(near.candidates, near.found), budget=1)
    assert torch.equal(outcome.distance, near.distance)
