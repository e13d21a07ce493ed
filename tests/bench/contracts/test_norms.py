"""A norm that a function does not know raises: it is never taken for another one."""

from types import SimpleNamespace

import pytest
import torch

from attacks.autoattack import farthest, possible
from attacks.deepfool import boundary_step
from attacks.fast_gradient import line_search
from attacks.hopskipjump import random_directions, shrink, to_boundary
from attacks.iterative_gradient import random_start
from attacks.parts.epsilon_search import smallest_epsilon
from attacks.parts.gradients import diameter, steepest
from attacks.pointwise import pointwise
from attacks.square import first_point, square, to_surface
from attacks.transfer import transfer
from bench.contracts.cards import DefenseCard
from bench.contracts.norms import NORMS, check_norm, of_norm
from bench.contracts.streams import Streams
from bench.contracts.threat import ThreatModel, distance, project
from bench.datasets.dataset import load_dataset
from bench.plugins.registry import Registry
from bench.training.loading import make_defense
from defenses.abs import AnalysisBySynthesis
from defenses.adversarial_training import perturb
from defenses.nearest_neighbour import NearestNeighbour
from defenses.smoothing import RandomizedSmoothing, VariationalSmoothing

X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1])
IDS = torch.arange(2)
STREAMS = Streams(0, range(2), "test")


def net(x):
    return x.flatten(1)[:, :2]


def oracle(norm):
    """One whose norm nobody has checked, with logits that no query changes."""
    return SimpleNamespace(
        threat=SimpleNamespace(norm=norm, epsilon=None),
        ids=IDS,
        random=STREAMS,
        classes=2,
        found=torch.zeros(2, dtype=torch.bool),
        working=lambda rows, ids=None: rows,
        reached=lambda logits, ids: torch.zeros(len(ids), dtype=torch.bool),
        gradient=lambda x, y, loss, ids: (torch.ones_like(x), net(x)),
        transferred=lambda source: 1 - X,
    )


def linear(norm):
    base = SimpleNamespace(card=DefenseCard(name="net", datasets=("digits",)), logits=net)
    return VariationalSmoothing(base, 2, radius=0.1, norm=norm)


FUNCTIONS = {
    "threat model": ThreatModel,
    "distance": lambda norm: distance(X, 1 - X, norm),
    "projection": lambda norm: project(X, 1 - X, norm, 0.1),
    "diameter": lambda norm: diameter(X, norm),
    "steepest direction": lambda norm: steepest(X, X, norm),
    "random start": lambda norm: random_start(oracle(norm), X, IDS, torch.ones(2)),
    "search for epsilon": lambda norm: smallest_epsilon(
        oracle(norm), X, lambda ids, radii: X, start=1, binary_search_steps=1
    ),
    "line search": lambda norm: line_search(oracle(norm), X, Y, 1, 1),
    "DeepFool's step": lambda norm: boundary_step(X[:, None].expand(-1, 2, -1, -1, -1), net(X), X, Y, oracle(norm)),
    "random directions": lambda norm: random_directions(oracle(norm), IDS, 2, X.shape[1:]),
    "binary search": lambda norm: to_boundary(oracle(norm), X, 1 - X, IDS),
    "shrinking": lambda norm: shrink(X, 1 - X, torch.ones(2), norm),
    "Square": lambda norm: square(oracle(norm), X, Y),
    "Square's surface": lambda norm: to_surface(X, 1 - X, torch.ones(2), norm),
    "Square's first point": lambda norm: first_point(oracle(norm), X, IDS, torch.ones(2)),
    "Pointwise": lambda norm: pointwise(oracle(norm), X, Y),
    "transfer": lambda norm: transfer(oracle(norm), X, Y),
    "AutoAttack's members": lambda norm: possible("standard", 10, norm, 8),
    "AutoAttack's failures": lambda norm: farthest(oracle(norm), X),
    "adversarial training": lambda norm: perturb(net, X, Y, norm, 0.1, 1),
    "smoothing's search": linear,
    "smoothing's certificate": lambda norm: RandomizedSmoothing(linear("L2").base, sigma=0.1).lower_bound(
        X, Y, norm, STREAMS
    ),
    "nearest neighbour's certificate": lambda norm: NearestNeighbour(X, Y, 2).lower_bound(X, Y, norm, STREAMS),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_unknown_norm_raises(function):
    with pytest.raises(ValueError, match=r"norm 'L3' is not known here\. Allowed: L"):
        function("L3")


@pytest.mark.parametrize("name", ["abs", "binary_abs"])
def test_a_bound_in_a_norm_that_it_is_not_for_raises(name):
    defense = make_defense(name, load_dataset("digits"), Registry()).defense
    assert isinstance(defense, AnalysisBySynthesis)
    with pytest.raises(ValueError, match="norm 'L3' is not known here"):
        defense.lower_bound(X, Y, "L3", STREAMS)


@pytest.mark.parametrize("norm", NORMS)
def test_a_choice_by_norm_is_that_norms(norm):
    check_norm(norm)
    assert of_norm(norm, L0=0, L2=2, Linf=9) == {"L0": 0, "L2": 2, "Linf": 9}[norm]
    with pytest.raises(ValueError, match="Allowed: L0, L2, Linf"):
        check_norm("l2")
