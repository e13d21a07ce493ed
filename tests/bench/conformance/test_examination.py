"""What a run refuses of a defense, what it remarks on, and what it copes with."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.conformance.examination import (
    CHANGES,
    CONTRADICTED,
    DEPENDS,
    IN_TRAINING,
    LIKELIHOODS,
    OTHER_DRAWS,
    ROUNDING,
    TINY,
    contradictions,
    examined,
    output_remark,
)
from bench.contracts.cards import DefenseCard
from bench.contracts.errors import DefenseFault
from bench.contracts.protocols import as_defense
from bench.datasets.dataset import load_dataset

CPU = torch.device("cpu")
DIGITS = load_dataset("digits")
MEANS = torch.stack([DIGITS.train.images[DIGITS.train.labels == c].mean(0).flatten() for c in range(10)])


def linear(x):
    """Logits of the classifier by class means."""
    return 2 * x.flatten(1) @ MEANS.T - MEANS.square().sum(1)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, rng=None):
        return self.function(x) if rng is None else self.function(x, rng)


class Holder:
    """An object that is no module, and holds one."""

    def __init__(self, *layers):
        self.parts = {"nets": [nn.Sequential(*layers)]}

    def logits(self, x):
        return linear(x) + self.parts["nets"][0](linear(x))


def examine(made, **card):
    card = DefenseCard(name="net", datasets=("digits",), **card)
    bare = callable(made) and not isinstance(made, nn.Module)
    return examined(as_defense(card, Net(made) if bare else made), DIGITS, CPU)


def counting(step):
    calls = iter(range(10**6))
    return lambda x: linear(x) + step * next(calls) * torch.arange(10)


def buffered(function):
    buffer = torch.zeros(64, 10)

    def forward(x):
        buffer[: len(x)] = function(x)
        return buffer[: len(x)]

    return forward


def normalized(x):
    """Batch normalization in training mode."""
    return nn.functional.batch_norm(linear(x)[:, :, None].expand(-1, -1, 2), None, None, training=True)[..., 0]


def standardized(z):
    """Over the batch: an image alone has no variance."""
    return (z - z.mean(0)) / (z - z.mean(0)).square().mean(0)


def gaussian(x, rng):
    return linear(x + 0.1 * rng.normal(x.shape[1:]))


def voting(x, rng):
    """One vote for each draw, which hardly varies on clean images."""
    return nn.functional.one_hot(linear(x + 0.01 * rng.normal(x.shape[1:])).argmax(1), 10).float() - 0.1


REFUSED = {
    "random outputs": (lambda x: linear(x + torch.randn(x.shape)), {}, r"predictions change from pass to pass \(on"),
    "drifting outputs": (counting(1.0), {}, "predictions change from pass to pass"),
    "dropout in an object": (lambda x: linear(nn.functional.dropout(x, 0.7)), {}, "predictions change"),
    "batch normalization": (normalized, {}, r"predictions depend on the rest of the batch \(on \d of 8 images\)"),
    "no variance alone": (lambda x: standardized(linear(x)), {}, r"the rest of the batch \(on 8 of 8 images\)"),
    "finite outputs now and then": (counting(1e39), {}, "predictions change from pass to pass"),
    "centered outputs": (lambda x: (z := linear(x)) - z.mean(0), {}, "predictions depend on the rest of the batch"),
    "declared draws that repeat": (lambda x, rng: linear(x), {"randomized": True}, "its draws repeat"),
    "a generator seeded each time": (
        lambda x, rng: linear(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))),
        {"randomized": True},
        "its draws repeat",
    ),
    "draws that depend on the batch": (
        lambda x, rng: (z := gaussian(x, rng)) - z.mean(0),
        {"randomized": True},
        "predictions depend on the rest of the batch",
    ),
    "nine classes": (lambda x: linear(x)[:, :9], {}, r"its logits have shape \(8, 9\), expected \(8, 10\)"),
    "one row too few": (lambda x: linear(x)[1:], {}, "its logits have shape"),
    "text": (lambda x: "seven", {}, "its logits are a str; a float32 tensor is needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_defense_that_contradicts_itself_is_refused(name):
    function, card, message = REFUSED[name]
    with pytest.raises(DefenseFault, match=message):
        examine(function, **card)


def test_the_refusal_names_a_part_in_training_mode():
    with pytest.raises(DefenseFault, match=r"change from pass to pass, and a part of it is in training mode"):
        examine(Holder(nn.Dropout(0.7)))


DOUBTED = {
    "a slow drift": (counting(1e-5), {}, CHANGES),
    "a little noise": (lambda x: linear(x) + 1e-4 * torch.randn(10), {}, CHANGES),
    "a little of the batch": (lambda x: (z := linear(x)) + 0.01 * z.mean(0), {}, DEPENDS),
    "training mode without effect": (Holder(nn.Dropout(0.0)), {}, IN_TRAINING),
    "draws of its own": (
        lambda x, rng: linear(x + 0.1 * torch.randn(x.shape)),
        {"randomized": True},
        OTHER_DRAWS,
    ),
    "probabilities": (lambda x: linear(x).softmax(1), {}, LIKELIHOODS),
}


@pytest.mark.parametrize("name", DOUBTED)
def test_what_may_move_numbers_is_remarked_on(name):
    made, card, remark = DOUBTED[name]
    assert examine(made, **card) == (remark,)


def test_decisions_that_are_not_those_of_the_logits_are_remarked_on():
    class Liar(Net):
        logits = Net.forward

        def decide(self, x):
            return 9 - linear(x).argmax(1)

    assert examine(Liar(linear)) == (CONTRADICTED,)


def clamped(x):
    with torch.no_grad():
        return linear(x.clamp_(0.2, 0.8))


ACCEPTED = {
    "an honest net": (linear, {}),
    "an honest randomized net": (gaussian, {"randomized": True}),
    "votes": (voting, {"randomized": True}),
    "one row at a time": (linear, {"batch_size": 1}),
    "written inputs": (clamped, {}),
    "a reused buffer": (buffered(linear), {}),
    "nothing finite": (lambda x: linear(x) * torch.nan, {}),
    "an image that is not finite": (lambda x: linear(x).masked_fill(x[:, 0, 2, 2, None] > 0.5, torch.nan), {}),
    "bfloat16": (lambda x: linear(x).bfloat16(), {}),
    "training mode of a module": (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout()).train(), {}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_door_copes_with_is_not_remarked_on(name):
    made, card = ACCEPTED[name]
    assert examine(made, **card) == ()


def test_a_tie_of_rounding_is_no_contradiction():
    logits = torch.tensor([[1.0, 1.0 + 1e-6], [1.0, 1.01], [1.0, torch.nan], [0.0, 0.0]])
    assert contradictions(logits, logits.flip(1), ROUNDING).tolist() == [False, True, False, False]


def test_logits_that_are_finite_once_only_are_a_contradiction():
    once, never = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, torch.nan]])
    for a, b, contradict in [(once, never, True), (never, once, True), (never, never, False), (once, once, False)]:
        assert contradictions(a, b, ROUNDING).tolist() == [contradict]


def test_examining_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()
    examine(lambda x: linear(x) + 1e-4 * torch.randn(10))
    assert torch.equal(before, torch.get_rng_state())


X = DIGITS.test.images[:8]
SQUARES = X.flatten(1).square().sum(1, keepdim=True) - linear(X)
CENTERED = linear(X) - linear(X).mean(1, keepdim=True)
NEIGHBOURS = torch.cdist(X.flatten(1), DIGITS.train.images.flatten(1))
VOTES = nn.functional.one_hot(DIGITS.train.labels[NEIGHBOURS.topk(5, largest=False).indices], 10).sum(1).float()
KERNELS = torch.stack([(-2 * NEIGHBOURS[:, DIGITS.train.labels == c] ** 2).exp().sum(1) for c in range(10)], 1)
NO_LOGITS = {
    "softmax": linear(X).softmax(1),
    "sharp softmax": (100 * linear(X)).softmax(1),
    "softmax of a high temperature": (linear(X) / 10).softmax(1),
    "softmax in half precision": linear(X).softmax(1).half().float(),
    "percentages": 100 * linear(X).softmax(1),
    "likelihoods": (-SQUARES).exp(),
    "sharp likelihoods": (-5 * SQUARES).exp(),
    "likelihoods that underflow": (-50 * SQUARES).exp(),
    "kernels": KERNELS,
    "one-versus-rest scores": ((CENTERED - 1) / 0.3).sigmoid(),
    "saturated scores": ((linear(X) - 7) / 0.3).sigmoid(),
    "steps": (CENTERED > 1).float(),
    "votes": VOTES,
    "shares of votes": VOTES / 5,
}
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = {
    "linear": linear(X),
    "large": 1e6 * linear(X),
    "small": 1e-3 * linear(X),
    "rectified": linear(X).relu(),
    "sparsely rectified": CENTERED.relu(),
    "absolute": CENTERED.abs(),
    "squared distances": SQUARES,
    "distances": SQUARES.sqrt(),
    "distances from the farthest": SQUARES.max() - SQUARES,
    "inverse distances": 1 / SQUARES.sqrt(),
    "log-probabilities": linear(X).log_softmax(1),
    "wide likelihoods": (-0.1 * SQUARES).exp(),
    **{f"rectified, {k} classes": torch.randn(8, k, generator=GENERATOR).relu() for k in (2, 100, 1000)},
    **{f"squared, {k} classes": torch.randn(8, k, generator=GENERATOR).square() for k in (2, 100, 1000)},
    "constant": torch.arange(10.0).expand(8, 10),
    "not finite": torch.full((8, 10), torch.nan),
}


@pytest.mark.parametrize("name", NO_LOGITS)
def test_probabilities_and_likelihoods_are_no_logits(name):
    assert output_remark(NO_LOGITS[name]) == LIKELIHOODS


@pytest.mark.parametrize("name", LOGITS)
def test_logits_may_be_positive(name):
    assert output_remark(LOGITS[name]) is None


def test_tiny_logits_are_remarked_on():
    assert output_remark(1e-12 * linear(X)) == TINY


def test_remarks_hold_no_separator():
    """The ledger joins them."""
    remarks = (CHANGES, CONTRADICTED, DEPENDS, IN_TRAINING, LIKELIHOODS, OTHER_DRAWS, TINY)
    assert not any(";" in remark for remark in remarks)
    assert len(np.unique(remarks)) == len(remarks)
