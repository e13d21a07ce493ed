"""Linf, by numpy's formula, and its exact projection."""

import numpy as np
import torch

from bench.contracts.norms.linf import Linf

A, B = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_its_distance_is_numpys_in_float64():
    difference = (A.double() - B.double()).numpy().reshape(5, -1)
    assert np.array_equal(Linf().distance(A, B), np.abs(difference).max(1))


def test_its_projection_clips_each_value():
    projected = Linf().project(A + 2 * (A - B), B, 0.1)
    expected = (A + 2 * (A - B)).clamp(B - 0.1, B + 0.1).clamp(0, 1)
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-6)
