"""L1, by numpy's formula, and its projection into ball and box, which is exact."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from bench.contracts.norms.l1 import L1


def test_its_distance_is_numpys_in_float64():
    a, b = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    difference = (a.double() - b.double()).numpy().reshape(5, -1)
    assert np.allclose(L1().distance(a, b), np.abs(difference).sum(1), rtol=1e-14)


def test_its_steepest_direction_changes_one_value():
    gradient = torch.tensor([0.5, -3.0, 3.0, 0.0]).reshape(1, 1, 2, 2)
    assert L1().steepest(gradient).flatten().tolist() == [0, -1, 0, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("radius", [0.0, 0.1, 1.0, 3.0])
def test_its_projection_is_the_nearest_point_of_ball_and_box_together(seed, radius):
    """It is, if no image of both lies farther along the way from the projection back to the point projected."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(1, 1, 2, 3, generator=generator)
    center = torch.where(torch.rand(center.shape, generator=generator) < 0.3, center.round(), center)
    x = center + torch.randn(center.shape, generator=generator)
    clean, projected = (each.double().flatten().numpy() for each in (center, L1().project(x, center, radius)))
    back = x.double().flatten().numpy() - projected
    # Each change is a difference of two parts, each at least 0: then its length is linear.
    program = linprog(
        np.concatenate([-back, back]),
        np.ones((1, 2 * len(clean))),
        [radius],
        bounds=[(0, each) for each in (*(1 - clean), *clean)],
    )
    assert program.success
    assert -program.fun + back @ (clean - projected) <= 1e-5


def test_equal_and_exhausted_values_are_no_problem():
    center = torch.tensor([0.0, 1.0, 0.5, 0.5]).reshape(1, 1, 2, 2)
    outwards = torch.tensor([-1.0, 2.0, 1.5, 1.5]).reshape(1, 1, 2, 2)
    projected = L1().project(outwards, center, 0.5).flatten()
    torch.testing.assert_close(projected, torch.tensor([0.0, 1.0, 0.75, 0.75]), rtol=0, atol=1e-6)
    assert torch.equal(L1().project(outwards, center, 0.0), center)
