"""The step along a linearized boundary, beside scipy's optimum of the same problem."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from attacks.parts.trust_region import Boundary, trust_region_step
from bench.contracts.norms import NORMS

PIXELS = 12


@pytest.fixture(scope="module")
def boundary():
    """Random boundaries near images with some pixels at the ends of their range, and trust regions of all sizes."""
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.rand(16, 1, PIXELS, generator=generator) for _ in range(2))
    x, z = (torch.where(torch.rand(x.shape, generator=generator) < 0.3, image.round(), image) for image in (x, z))
    normal = torch.randn(x.shape, generator=generator)
    gap = 0.05 * torch.randn(16, 1, 1, generator=generator)
    return Boundary(x, z, normal / normal.norm(dim=2, keepdim=True), gap, torch.linspace(0.2, 1, 16).reshape(16, 1, 1))


def step(boundary, norm):
    """A step whose t was found by the steps before it, as in the attack."""
    guess = torch.ones(len(boundary.x), 1, 1)
    for _ in range(3):
        v, guess = trust_region_step(boundary, norm, guess)
    return v


def least(boundary, norm, row):
    """The smallest distance that scipy finds."""
    x, z, b = (image[row].flatten().double().numpy() for image in (boundary.x, boundary.z, boundary.normal))
    c, r = boundary.gap[row].item(), boundary.radius[row].item()
    extra = {"L1": PIXELS, "L2": 0, "Linf": 1}[norm]
    constraints = [
        {"type": "eq", "fun": lambda q: b @ (q[:PIXELS] - z) - c},
        {"type": "ineq", "fun": lambda q: r**2 - ((q[:PIXELS] - z) ** 2).sum()},
    ]
    if extra:
        constraints += [{"type": "ineq", "fun": lambda q, s=s: q[PIXELS:] - s * (q[:PIXELS] - x)} for s in (-1, 1)]
    start = np.concatenate([z, [np.abs(z - x).max()] if extra == 1 else np.abs(z - x)[:extra]])
    found = minimize(
        (lambda q: q[PIXELS:].sum()) if extra else (lambda q: ((q - x) ** 2).sum()),
        start,
        bounds=[(0, 1)] * PIXELS + [(0, None)] * extra,
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-10},
    )
    assert found.success
    return found.fun if extra else found.fun**0.5


@pytest.mark.parametrize("wider", [1, 40])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_ends_on_the_boundary_in_the_box_and_in_the_trust_region(boundary, norm, wider):
    """Also in a trust region much larger than the distance to the boundary."""
    at = replace(boundary, gap=boundary.gap / wider, radius=boundary.radius * wider)
    v = step(at, norm)
    assert ((v >= 0) & (v <= 1)).all()
    assert (at.missing(v).abs() <= 0.011 * at.gap.abs() + 1e-5).all()
    assert ((v - at.z).flatten(1).norm(dim=1) <= 1.0001 * at.radius.flatten()).all()


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
def test_a_step_goes_nearly_as_near_as_the_optimum(boundary, norm):
    """The search for t ends before the end of the trust region. The step gains three quarters of what it can."""
    image = boundary.z.shape[0], 1, 1, PIXELS
    x, z, v = (t.reshape(image) for t in (boundary.x, boundary.z, step(boundary, norm)))
    before, after = NORMS[norm].distance(z, x), NORMS[norm].distance(v, x)
    optimum = torch.tensor([least(boundary, norm, row) for row in range(len(x))], dtype=torch.float64)
    assert (after >= optimum - 1e-3).all()
    assert (after <= optimum + 0.25 * (before - optimum).abs() + 1e-3).all()


def test_a_step_for_l0_leaves_other_pixels_clean(boundary):
    """As many pixels are reset as the trust region allows: each has moved by less than its radius."""
    v = step(boundary, "L0")
    reset = (v == boundary.x) & (boundary.z != boundary.x)
    assert reset.any(2).float().mean() > 0.5
    assert ((boundary.z - boundary.x).abs() * reset <= boundary.radius).all()


def test_towards_a_boundary_beyond_the_trust_region_the_step_is_as_long_as_the_radius():
    x, z = torch.zeros(1, 1, 4), torch.full((1, 1, 4), 0.5)
    normal = torch.full((1, 1, 4), 0.5)
    far = Boundary(x, z, normal, torch.full((1, 1, 1), 0.9), torch.full((1, 1, 1), 0.2))
    v, _ = trust_region_step(far, "L2", torch.ones(1, 1, 1))
    assert torch.allclose(v, z + 0.1)
