"""Derivatives that lead nowhere are counted where an attack asked for one."""

import math

import torch

from bench.engine.audit import GradientAudit

CPU = torch.device("cpu")
RIGHT, WRONG = torch.tensor([True]), torch.tensor([False])


def observed(cotangent, product, correct):
    audit = GradientAudit(1, CPU)
    audit.observe(torch.tensor([cotangent]), torch.full((1, 1, 1, 1), product), correct, torch.tensor([0]))
    return audit.useless.item()


def test_a_derivative_is_useless_if_it_is_zero_or_not_finite():
    assert observed([1.0, -1.0], 0.5, RIGHT) == 0
    assert observed([1.0, -1.0], 0.0, RIGHT) == 1
    assert observed([1.0, -1.0], math.nan, WRONG) == 1


def test_a_flat_loss_counts_before_the_boundary_only():
    assert observed([0.0, 0.0], 0.0, RIGHT) == 1
    assert math.isnan(observed([0.0, 0.0], 0.0, WRONG))


def test_a_librarys_rows_are_shared_among_the_samples():
    audit = GradientAudit(2, CPU)
    audit.observe_together(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 1, 1, 1))
    audit.observe(torch.tensor([[1.0, 0.0]]), torch.ones(1, 1, 1, 1), RIGHT, torch.tensor([0]))
    # Half of a useless derivative each; the first sample has one more, which is useful.
    assert audit.useless.tolist() == [1 / 3, 1]
