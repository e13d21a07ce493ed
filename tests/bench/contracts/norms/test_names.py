"""Whoever does not know a norm says so: no norm is taken for another one."""

from types import SimpleNamespace

import pytest
import torch

from attacks.autoattack import farthest, possible
from attacks.deepfool import boundary_step
from attacks.fast_gradient import line_search
from attacks.hopskipjump import random_directions, shrink, to_boundary
from attacks.iterative_gradient import random_start
from attacks.parts.gradients import steepest
from attacks.pointwise import pointwise
from attacks.square import first_point, square, to_surface
from attacks.transfer import transfer
from bench.contracts.cards import DefenseCard
from bench.contracts.norms import Norm, norm_named, of_norm
from bench.contracts.streams import Streams
from bench.contracts.threat import ThreatModel
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
    """An oracle for any norm, with logits that no query changes."""
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


class L3(Norm):
    """A norm that no attack knows, and that has nothing to offer but a distance."""

    name = "L3"

    def distance(self, a, b):
        return (a.double() - b).flatten(1).abs().pow(3).sum(1).pow(1 / 3)

    def diameter(self, shape):
        return 1.0


ATTACKS = {
    "steepest direction": lambda norm: steepest(X, X, norm),
    "random start": lambda norm: random_start(oracle(norm), X, IDS, torch.ones(2)),
    "line search": lambda norm: line_search(oracle(norm), X, Y, 1, 1),
    "DeepFool's step": lambda norm: boundary_step(X[:, None].expand(-1, 2, -1, -1, -1), net(X), X, Y, oracle(norm)),
    "random directions": lambda norm: random_directions(oracle(norm), IDS, 2, X.shape[1:]),
    "binary search": lambda norm: to_boundary(oracle(norm), X, 1 - X, IDS),
    "shrinking": lambda norm: shrink(X, 1 - X, torch.ones(2), norm.name),
    "Square": lambda norm: square(oracle(norm), X, Y),
    "Square's surface": lambda norm: to_surface(X, 1 - X, torch.ones(2), norm),
    "Square's first point": lambda norm: first_point(oracle(norm), X, IDS, torch.ones(2)),
    "Pointwise": lambda norm: pointwise(oracle(norm), X, Y),
    "transfer": lambda norm: transfer(oracle(norm), X, Y),
    "AutoAttack's members": lambda norm: possible("standard", 10, norm.name, 8),
    "AutoAttack's failures": lambda norm: farthest(oracle(norm), X),
}
BY_NAME = {
    "lookup": norm_named,
    "threat model": ThreatModel,
    "adversarial training": lambda name: perturb(net, X, Y, name, 0.1, 1),
    "smoothing's search": linear,
    "smoothing's certificate": lambda name: RandomizedSmoothing(linear("L2").base, sigma=0.1).lower_bound(
        X, Y, name, STREAMS
    ),
    "nearest neighbour's certificate": lambda name: NearestNeighbour(X, Y, 2).lower_bound(X, Y, name, STREAMS),
}


@pytest.mark.parametrize("function", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_takes_no_norm_for_another_one(function):
    with pytest.raises(ValueError, match=r"norm 'L3' (is not known here\. Allowed: L|has no )"):
        function(L3())


@pytest.mark.parametrize("function", BY_NAME.values(), ids=BY_NAME)
def test_an_unknown_name_raises(function):
    with pytest.raises(ValueError, match=r"norm 'L3' is not known here\. Allowed: L"):
        function("L3")


@pytest.mark.parametrize("name", ["abs", "binary_abs"])
def test_a_bound_in_a_norm_that_it_is_not_for_raises(name):
    defense = make_defense(name, load_dataset("digits"), Registry()).defense
    assert isinstance(defense, AnalysisBySynthesis)
    with pytest.raises(ValueError, match="norm 'L3' is not known here"):
        defense.lower_bound(X, Y, "L3", STREAMS)


def test_a_choice_by_norm_is_that_norms():
    assert [of_norm(norm, L0=0, L2=2, Linf=9) for norm in ("L0", "L2", "Linf")] == [0, 2, 9]
    with pytest.raises(ValueError, match=r"norm 'l2' is not known here\. Allowed: L0, Linf"):
        of_norm("l2", L0=0, Linf=9)
