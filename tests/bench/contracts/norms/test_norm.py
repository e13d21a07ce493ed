"""What every registered norm owes those who ask it, on any images."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.contracts.norms import NORMS, TOLERANCE, Norm, within
from bench.contracts.streams import Streams
from reports.render.latex import escape_latex

SHAPE = (2, 3, 4)
images = arrays(np.float32, (3, *SHAPE), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)
far = arrays(np.float32, (3, *SHAPE), elements=st.floats(-4, 4, width=16)).map(torch.from_numpy)
fast = settings(max_examples=40, deadline=None)
every = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
BALLS = [norm for norm in NORMS.values() if norm.name != "L0"]
with_ball = pytest.mark.parametrize("norm", BALLS, ids=[norm.name for norm in BALLS])


def length(norm, perturbation):
    """Distances of perturbations, of any sign and size, to none."""
    return norm.distance(perturbation, torch.zeros_like(perturbation))


def inner(a, b):
    return (a.double() * b.double()).flatten(1).sum(1)


def test_each_norm_has_a_place_of_its_own_and_words_for_people():
    assert list(NORMS)[:3] == ["L0", "L2", "Linf"]
    assert [norm.position for norm in NORMS.values()] == list(range(len(NORMS)))
    for name, norm in NORMS.items():
        assert norm.name == name
        assert norm.unit in ("pixels", "intensity")
        assert norm.decimals >= 0
        assert escape_latex(norm.label).startswith("$L_")


@every
def test_a_norm_is_compared_with_norms_and_never_with_a_name(norm):
    assert norm == type(norm)()
    assert [other for other in NORMS.values() if other == norm] == [norm]
    assert repr(norm) == norm.name
    for comparison in (lambda: norm == norm.name, lambda: norm in (norm.name,), lambda: norm != "L2"):
        with pytest.raises(TypeError, match=r"compare \.name with"):
            comparison()


def test_reading_a_label_imports_no_torch():
    code = "import sys; from bench.contracts.norms import NORMS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@every
@fast
@given(a=images, b=images, c=images)
def test_a_distance_is_a_metric_in_float64(norm, a, b, c):
    apart = norm.distance(a, b)
    assert apart.dtype == torch.float64
    assert torch.equal(apart > 0, (a != b).flatten(1).any(1))
    assert torch.equal(apart, norm.distance(b, a))
    assert within(apart, norm.distance(a, c) + norm.distance(c, b)).all()


@with_ball
@fast
@given(a=images, b=images, factor=st.floats(0, 1))
def test_a_part_of_the_way_is_that_part_of_the_distance(norm, a, b, factor):
    a, b = a.double(), b.double()
    torch.testing.assert_close(norm.distance(torch.lerp(a, b, factor), a), factor * norm.distance(a, b))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measuring_a_distance_leaves_the_images_as_they_are(norm, dtype):
    a, b = torch.full((2, 1, 2, 2), 0.75, dtype=dtype), torch.full((2, 1, 2, 2), 0.5, dtype=dtype)
    norm.distance(a, b)
    assert (a == 0.75).all()
    assert (b == 0.5).all()


@every
@fast
@given(a=images, b=images)
def test_no_two_images_are_farther_apart_than_the_diameter(norm, a, b):
    assert norm.distance(torch.zeros_like(a), torch.ones_like(a))[0].item() == pytest.approx(norm.diameter(SHAPE))
    assert within(norm.distance(a, b), norm.diameter(SHAPE)).all()


@with_ball
@fast
@given(x=far, center=images, radii=st.lists(st.floats(0, 5), min_size=3, max_size=3))
def test_a_projection_lies_in_the_ball_and_in_the_box_and_is_its_own_projection(norm, x, center, radii):
    radii = torch.tensor(radii, dtype=torch.float64)
    projected = norm.project(x, center, radii)
    assert ((projected >= 0) & (projected <= 1)).all()
    for row, radius in enumerate(radii.tolist()):
        assert within(norm.distance(projected[[row]], center[[row]]), radius).all()
    torch.testing.assert_close(norm.project(projected, center, radii), projected, rtol=0, atol=1e-5)


@with_ball
@fast
@given(x=images, center=images)
def test_a_point_within_the_ball_stays(norm, x, center):
    radii = norm.distance(x, center) + 1e-4
    torch.testing.assert_close(norm.project(x, center, radii), x, rtol=0, atol=1e-6)


@with_ball
@fast
@given(x=far, other=far, radius=st.floats(0, 0.5))
def test_a_projection_is_nearest_where_the_ball_lies_in_the_box(norm, x, other, radius):
    center = torch.full_like(x, 0.5)
    nearest, feasible = (norm.project(each, center, radius) for each in (x, other))
    for share in (0.0, 0.5, 1.0):
        tried = torch.lerp(center, feasible, share)
        assert ((nearest - x).flatten(1).norm(dim=1) <= (tried - x).flatten(1).norm(dim=1) + 1e-5).all()


@with_ball
@fast
@given(gradient=far, other=far)
def test_the_steepest_direction_rises_by_the_dual_norm_and_no_other_of_length_one_rises_more(norm, gradient, other):
    steepest, dual = norm.steepest(gradient), norm.dual(gradient)
    torch.testing.assert_close(inner(steepest, gradient), dual.double(), rtol=1e-5, atol=1e-6)
    size = length(norm, other)
    risen = inner(other, gradient) / torch.where(size > 0, size, 1)
    assert (risen <= dual * (1 + 1e-5) + 1e-6).all()
    vanished = ~gradient.flatten(1).any(1)
    torch.testing.assert_close(length(norm, steepest), torch.where(vanished, 0.0, 1.0).double())


@with_ball
@pytest.mark.parametrize("scale", [1e-36, 1e-12, 1.0, 1e12, 1e36])
def test_a_gradient_of_any_scale_has_a_steepest_direction_once_rescaled(norm, scale):
    gradient = scale * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    steepest = norm.steepest(norm.rescaled(gradient))
    torch.testing.assert_close(length(norm, steepest), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(steepest, norm.steepest(gradient / scale))


@with_ball
def test_uniform_points_fill_the_ball(norm):
    """In four dimensions the share of a ball within half of its radius is 2^-4, and no half-space has more points."""
    points = norm.uniform(Streams(0, range(2000), "test").rows(torch.arange(2000)), (1, 2, 2))
    assert points.shape == (2000, 1, 2, 2)
    sizes = length(norm, points)
    assert within(sizes, 1).all()
    assert ((sizes < 0.5).double().mean() - 0.5**4).abs() < 0.02
    assert ((points > 0).double().mean(0) - 0.5).abs().max() < 0.05


class Unknown(Norm):
    """A norm with nothing but a distance."""

    name = "L3"

    def distance(self, a, b):
        return (a.double() - b).flatten(1).abs().pow(3).sum(1).pow(1 / 3)

    def diameter(self, shape):
        return 1.0


X = torch.rand(2, 1, 2, 2)
NEEDS = {
    "projection": lambda norm: norm.project(X, X, 1),
    "steepest direction": lambda norm: norm.steepest(X),
    "dual norm": lambda norm: norm.dual(X),
    "uniform distribution": lambda norm: norm.uniform(None, (1, 2, 2)),
}


@pytest.mark.parametrize("what", NEEDS)
@pytest.mark.parametrize("norm", [Unknown(), NORMS["L0"]], ids=["L3", "L0"])
def test_what_a_norm_does_not_have_is_never_taken_from_another(norm, what):
    with pytest.raises(ValueError, match=f"norm '{norm.name}' has no {what}"):
        NEEDS[what](norm)


def test_within_has_a_relative_tolerance_of_one_millionth():
    assert TOLERANCE == 1e-6
    assert within(0.3 * (1 + 9e-7), 0.3)
    assert not within(0.3 * (1 + 2e-6), 0.3)
