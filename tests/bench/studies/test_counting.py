"""Passes that a defense makes by itself are counted, each once, and the defense is left as it was."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench.studies.counting import counted


class Classifier(nn.Module):
    inner_steps = 7

    def logits(self, x):
        if x.isnan().any():
            raise ValueError("not a number")
        return x.flatten(1)

    def decide(self, x):
        return self.logits(x).argmax(1)

    def input_gradient(self, x):
        return self.logits(x), lambda cotangent: cotangent.reshape(x.shape)


X = torch.rand(3, 1, 2, 2)


def test_each_image_of_each_pass_counts():
    defense = Classifier()
    with counted(defense) as passes:
        defense.logits(X)
        defense.logits(X[:1])
    assert (passes.forwards, passes.backwards, passes.inner_steps) == (4, 0, 28)


def test_a_pass_inside_another_is_a_part_of_it():
    defense = Classifier()
    with counted(defense) as passes:
        assert torch.equal(defense.decide(X), Classifier().decide(X))
    assert passes.forwards == 3


def test_products_with_the_derivative_are_backward_passes():
    defense = Classifier()
    with counted(defense) as passes:
        logits, product = defense.input_gradient(X)
        product(logits)
        assert torch.equal(product(logits), X)
    assert (passes.forwards, passes.backwards) == (3, 6)


@pytest.mark.parametrize("defense", [Classifier(), SimpleNamespace(logits=Classifier().logits)])
def test_nothing_is_counted_afterwards_even_if_it_failed(defense):
    before = dict(vars(defense))
    with pytest.raises(ValueError, match="not a number"), counted(defense) as passes:
        defense.logits(X * math.nan)
    defense.logits(X)
    assert passes.forwards == 3
    assert vars(defense) == before
