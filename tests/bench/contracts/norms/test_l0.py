"""L0: pixels, not values."""

import torch

from bench.contracts.norms.l0 import L0


def test_it_counts_a_pixel_once_however_many_channels_change():
    a = torch.zeros(1, 3, 2, 2)
    b = a.clone()
    b[0, :, 0, 0] = 1
    b[0, 1, 1, 1] = 1e-30
    assert L0().distance(a, b).tolist() == [2.0]


def test_its_diameter_is_the_number_of_pixels():
    assert L0().diameter((3, 4, 5)) == 20
