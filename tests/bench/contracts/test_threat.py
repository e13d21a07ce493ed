"""Distances, balls and projections: geometry that every number rests on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.contracts.norms import NORMS, TOLERANCE, within
from bench.contracts.threat import ThreatModel, distance, project, snap_to_threshold

images = arrays(np.float32, (3, 2, 3, 4), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)
fast = settings(max_examples=50, deadline=None)


@fast
@given(images, images)
def test_distances_are_numpys_in_float64(a, b):
    difference = (a.double() - b.double()).numpy().reshape(3, -1)
    assert np.allclose(distance(a, b, "L2"), np.linalg.norm(difference, axis=1), rtol=1e-12)
    assert np.array_equal(distance(a, b, "Linf"), np.abs(difference).max(1))
    assert all(distance(a, b, norm).dtype == torch.float64 for norm in NORMS)


def test_l0_counts_a_pixel_once_however_many_channels_change():
    a = torch.zeros(1, 3, 2, 2)
    b = a.clone()
    b[0, :, 0, 0] = 1
    b[0, 1, 1, 1] = 1e-30
    assert distance(a, b, "L0").tolist() == [2.0]


@fast
@given(images, images, st.floats(1e-3, 2), st.sampled_from(["L2", "Linf"]))
def test_a_projection_lies_in_the_ball_and_the_box_and_leaves_inner_points_alone(x, center, epsilon, norm):
    projected = project(x, center, norm, epsilon)
    assert within(distance(projected, center, norm), epsilon).all()
    assert (projected >= 0).all()
    assert (projected <= 1).all()
    inside = within(distance(x, center, norm), epsilon * 0.999)
    assert torch.allclose(projected[inside], x[inside], atol=1e-6)


def test_there_is_no_projection_on_the_l0_ball():
    with pytest.raises(ValueError, match="L0"):
        project(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "L0", 1)


def test_within_has_a_relative_tolerance_of_one_millionth():
    assert TOLERANCE == 1e-6
    assert within(0.3 * (1 + 9e-7), 0.3)
    assert not within(0.3 * (1 + 2e-6), 0.3)


def test_a_threat_model_without_epsilon_allows_every_finite_distance():
    distances = torch.tensor([0.0, 5.0, torch.inf])
    assert ThreatModel("L2").allows(distances).tolist() == [True, True, False]
    assert ThreatModel("L2", 5.0).allows(distances).tolist() == [True, True, False]
    assert ThreatModel("L2", 4.0).allows(distances).tolist() == [True, False, False]


@fast
@given(images, images)
def test_snapping_keeps_the_binarized_image_and_is_nearest_among_those_that_do(candidate, x):
    snapped = snap_to_threshold(candidate, x, 0.5)
    assert torch.equal(snapped >= 0.5, candidate >= 0.5)
    for norm in NORMS:
        assert (distance(snapped, x, norm) <= distance(candidate, x, norm)).all()


@pytest.mark.parametrize("norm", ["L0", "L2", "Linf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measuring_a_distance_leaves_the_images_as_they_are(norm, dtype):
    a, b = torch.full((2, 1, 2, 2), 0.75, dtype=dtype), torch.full((2, 1, 2, 2), 0.5, dtype=dtype)
    distance(a, b, norm)
    assert (a == 0.75).all()
    assert (b == 0.5).all()
