"""The conformance suite fails what it should."""

import pytest
import torch
from torch import nn

from bench import defense
from bench.conformance.checks import ClassMeans, check_defense
from bench.contracts.protocols import as_defense
from bench.contracts.source import Sources
from bench.datasets.dataset import load_dataset
from bench.plugins.registry import Plugin, Registry
from bench.training.loading import LoadedDefense, load_trained


class Faulty(nn.Module):
    """Class means, with a fault."""

    def __init__(self, fault):
        super().__init__()
        self.means, self.fault = ClassMeans(load_dataset("digits")), fault

    def logits(self, x, rng=None):
        return self.fault(self.means, x, rng)


class Unrolled(Faulty):
    """Class means, with so many times the derivative as the one through their optimization."""

    def __init__(self, times):
        super().__init__(lambda means, x, rng: means.logits(x))
        self.times = times

    def unrolled_gradient(self, x):
        logits, product = self.means.unrolled_gradient(x)
        return logits, lambda cotangent: self.times * product(cotangent)


class Doubled(torch.autograd.Function):
    """The identity, with twice its derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        return 2 * cotangent


def drawn(means, x, rng):
    return means.logits(x + 0.1 * rng.normal(x.shape[1:]))


def clamped(x):
    """Writes on its input, the second time nothing new."""
    with torch.no_grad():
        return x.clamp_(0.2, 0.8)


def reused(means, logits):
    """Gives the same tensor each time."""
    if not hasattr(means, "buffer") or means.buffer.shape != logits.shape:
        means.buffer = logits.clone()
    return means.buffer.copy_(logits)


FAULTS = {
    "logits have one column per class": (lambda m, x, rng: m.logits(x)[:, :9], {}),
    "logits are float32": (lambda m, x, rng: m.logits(x).double(), {}),
    "logits are finite, on black and white images too": (lambda m, x, rng: m.logits(x) / x.sum((1, 2, 3))[:, None], {}),
    "logits are not probabilities": (lambda m, x, rng: m.logits(x).softmax(1), {}),
    "leaves its input alone": (lambda m, x, rng: m.logits(clamped(x)), {}),
    "gives a new output each time": (lambda m, x, rng: reused(m, m.logits(x)), {"access": "score"}),
    "a row's logits do not depend on the batch": (lambda m, x, rng: m.logits(x - x.mean(0)), {}),
    "deterministic": (lambda m, x, rng: m.logits(x) + torch.randn(()), {}),
    "randomized: other streams give other logits": (lambda m, x, rng: m.logits(x), {"randomized": True}),
    "randomized: the same streams give the same logits": (
        lambda m, x, rng: m.logits(x) + torch.randn(()),
        {"randomized": True},
    ),
    "logits are differentiable": (lambda m, x, rng: m.logits(x.detach()), {}),
    "gradients agree with finite differences": (lambda m, x, rng: m.logits(Doubled.apply(x)), {}),
}


def checks(fault, **card):
    return checks_of(lambda: Faulty(fault), **card)


def checks_of(make, **card):
    @defense("faulty", datasets=["digits"], **card)
    def factory():
        return make()

    made = as_defense(factory.__assay_card__, factory())
    return check_defense(
        LoadedDefense(Plugin(made.card, factory, "test", "test", Sources()), made), load_dataset("digits")
    )


SHARP = {
    "probabilities": lambda m, x, rng: (m.logits(x) / 0.01).softmax(1),
    "likelihoods": lambda m, x, rng: (5 * (m.logits(x) - x.flatten(1).square().sum(1, keepdim=True))).exp(),
}


@pytest.mark.parametrize("name", SHARP)
def test_outputs_that_are_no_logits_fail_their_check(name):
    failed = {check.name: check.detail for check in checks(SHARP[name]) if not check.passed}
    assert "bench.wrap" in failed["logits are not probabilities"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_its_check(name):
    fault, card = FAULTS[name]
    assert name in [check.name for check in checks(fault, **card) if not check.passed]


@pytest.mark.parametrize("name", ["eabs", "ad_abs"])
def test_a_gradient_at_fixed_latents_is_none_through_the_optimization(name, monkeypatch):
    dataset = load_dataset("digits")
    loaded = load_trained(name, dataset, Registry(), 0, torch.device("cpu"))
    check = "unrolled gradients agree with finite differences"
    assert {one.name: one.passed for one in check_defense(loaded, dataset)}[check]
    monkeypatch.setattr(type(loaded.defense), "unrolled_gradient", type(loaded.defense).input_gradient)
    assert not {one.name: one.passed for one in check_defense(loaded, dataset)}[check]


HINT = "declare surrogate_gradient=True"


def test_a_surrogate_is_offered_where_declaring_one_helps():
    check = "gradients agree with finite differences"
    doubled, flat, moody = (
        {one.name: one.detail for one in checks(fault)}[check]
        for fault in (
            lambda m, x, rng: m.logits(Doubled.apply(x)),
            lambda m, x, rng: m.logits(x.detach()) + 0 * x.sum(),
            lambda m, x, rng: m.logits(x) + torch.randn(()) * torch.arange(10),
        )
    )
    assert HINT in doubled
    assert HINT not in flat
    assert HINT not in moody
    nan = {one.name: one for one in checks(lambda m, x, rng: m.logits((x - x).sqrt() + x))}
    assert not nan[check].passed
    assert HINT not in nan[check].detail
    assert not nan["gradients are finite"].passed


def test_differences_are_taken_inside_the_pixel_range():
    seen = []

    def roots(means, x, rng):
        seen.append(x.detach())
        return means.logits((x + 1e-4).sqrt())

    assert [check for check in checks(roots) if not check.passed] == []
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen)


@pytest.mark.parametrize("times", [1, 2])
def test_a_derivative_through_an_optimization_is_checked_too(times):
    failed = [check.name for check in checks_of(lambda: Unrolled(times)) if not check.passed]
    assert failed == ([] if times == 1 else ["unrolled gradients agree with finite differences"])


@pytest.mark.parametrize(
    ("fault", "card"),
    [
        (lambda m, x, rng: m.logits(x), {}),
        (drawn, {"randomized": True}),
        (lambda m, x, rng: m.logits(x.detach()), {"access": "score"}),
        (lambda m, x, rng: m.logits(Doubled.apply(x)), {"surrogate_gradient": True}),
        (lambda m, x, rng: m.logits(x).relu(), {}),
    ],
)
def test_what_is_declared_is_no_fault(fault, card):
    assert [check for check in checks(fault, **card) if not check.passed] == []
