"""DDN (Rony et al. 2019): decoupled direction and norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.gradients import GradientOracle, length, per_image, steepest, wrong_odds
from attacks.lines import bisect
from bench.cards import attack
from bench.parameters import Count, Natural, Positive


@attack(
    "ddn",
    norms=["L2"],
    access="gradient",
    budget=700,
    citation="Rony et al. 2019, Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and "
    "defenses",
)
def ddn(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 300,
    radius: Positive = 1.0,
    gamma: Positive = 0.05,
    bisections: Natural = 10,
) -> Tensor:
    """Algorithm 1, without quantisation: steps along the gradient, on a sphere that shrinks by ``gamma`` where the last
    iterate was adversarial and grows by it where not.

    The step size falls from 1 to 0.01 by cosine annealing. The way from the clean image to the closest adversarial is
    then halved ``bisections`` times: the spheres' radii are ``gamma`` apart.
    """
    z = x.clone()
    radii = torch.full((len(x),), radius, device=x.device)
    active = oracle.ids
    for k in range(steps):
        active = active[oracle.affordable(active)]
        if not len(active):
            break
        step = 0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2
        gradient, logits = oracle.gradient(z[active], y[active], wrong_odds, active)
        wrong = logits.argmax(1) != y[active]
        radii[active] *= torch.where(wrong, 1 - gamma, 1 + gamma)
        delta = z[active] + step * steepest(gradient, x[active], "L2") - x[active]
        delta *= per_image(radii[active] / length(delta).clamp_min(torch.finfo(x.dtype).tiny))
        z[active] = (x[active] + delta).clamp(0, 1)
    hit = oracle.ids[oracle.found]
    bisect(oracle, x[hit], oracle.closest(z)[hit], y[hit], hit, bisections)
    return oracle.closest(z)
