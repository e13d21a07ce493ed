"""L2, by numpy's formula."""

import numpy as np
import torch

from bench.contracts.norms.l2 import L2


def test_its_distance_is_numpys_in_float64():
    a, b = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    difference = (a.double() - b.double()).numpy().reshape(5, -1)
    assert np.allclose(L2().distance(a, b), np.linalg.norm(difference, axis=1), rtol=1e-14)
