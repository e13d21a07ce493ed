"""FMN (Pintor, Roli, Brendel & Biggio 2021): fast minimum-norm attack, for Linf."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.gradients import GradientOracle, steepest, wrong_margin
from attacks.lines import bisect
from bench.cards import attack
from bench.parameters import Count, Natural, Positive
from bench.threat import project


@attack(
    "fmn",
    norms=["Linf"],
    access="gradient",
    budget=700,
    citation="Pintor, Roli, Brendel & Biggio 2021, Fast minimum-norm adversarial attacks through adaptive norm "
    "constraints",
)
def fmn(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 300,
    step: Positive = 1.0,
    gamma: Positive = 0.05,
    bisections: Natural = 10,
) -> Tensor:
    """Algorithm 1: gradient steps within a ball whose radius follows the boundary.

    Until a sample is adversarial for the first time its radius is the linearised distance to the boundary; then it
    shrinks or grows by ``gamma``, which falls to 0.001, as ``step`` falls to 0.01 of itself, by cosine annealing. The
    way from the clean image to the closest adversarial is then halved ``bisections`` times.
    """
    z = x.clone()
    radii = torch.full((len(x),), torch.inf, device=x.device)
    active = oracle.ids
    for k in range(steps):
        active = active[oracle.affordable(active)]
        if not len(active):
            break
        annealed = (1 + math.cos(math.pi * k / steps)) / 2
        change = 0.001 + (gamma - 0.001) * annealed
        clean, radius = x[active], radii[active]
        gradient, logits = oracle.gradient(z[active], y[active], wrong_margin, active)
        margin = wrong_margin(logits, y[active])
        slope = torch.nan_to_num(gradient).flatten(1).abs().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
        linearised = (z[active] - clean).flatten(1).abs().amax(1) + margin.abs() / slope
        closest = oracle.closest_distance[active].to(x.dtype)
        grown = torch.where(torch.isfinite(closest), radius * (1 + change), linearised)
        radii[active] = torch.where(margin > 0, torch.minimum(radius * (1 - change), closest), grown)
        moved = z[active] + step * (0.01 + 0.99 * annealed) * steepest(gradient, clean, "L2")
        z[active] = project(moved, clean, "Linf", radii[active])
    hit = oracle.ids[oracle.found]
    bisect(oracle, x[hit], oracle.closest(z)[hit], y[hit], hit, bisections)
    return oracle.closest(z)
