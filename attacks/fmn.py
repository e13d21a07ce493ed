"""FMN (Pintor, Roli, Brendel & Biggio 2021): fast minimum-norm attack, for Linf."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.annealing import cosine
from attacks.parts.gradients import logit_margin, steepest
from attacks.parts.lines import tightened
from attacks.parts.starts import handed_over
from bench.contracts.cards import attack
from bench.contracts.norms.l2 import L2
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count, Natural, Positive


@attack(
    "fmn",
    norms=["Linf"],
    access="gradient",
    refines=True,
    budget=700,
    citation="Pintor, Roli, Brendel & Biggio 2021, Fast minimum-norm adversarial attacks through adaptive norm "
    "constraints",
    short={"steps": 60},
    approximation_ratio={"Linf": (1.02, 1.2)},
)
def fmn(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 300,
    step_size: Positive = 1.0,
    gamma: Positive = 0.05,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs algorithm 1: gradient steps within a ball whose radius follows the boundary.

    A sample may start from an adversarial example of another attack. Until it is first adversarial, its radius is the
    linearized distance to the boundary. Then the radius shrinks or grows by the share ``gamma``. Cosine annealing
    lowers ``gamma`` to 0.001 and ``step_size`` to 0.01 of itself. The segment from the clean image to the closest
    adversarial example is then halved ``binary_search_steps`` times.
    """
    z, found = handed_over(oracle)
    radii = torch.where(found, oracle.threat.distance(z, x).to(x.dtype), torch.inf)
    active = oracle.ids
    for k in range(steps):
        if not len(active := oracle.working(active)):
            break
        annealed = cosine(k, steps)
        change = 0.001 + (gamma - 0.001) * annealed
        clean, radius = x[active], radii[active]
        gradient, logits = oracle.gradient(z[active], y[active], logit_margin, active)
        margin = logit_margin(logits, y[active])
        slope = oracle.threat.norm.dual(torch.nan_to_num(gradient)).clamp_min(torch.finfo(x.dtype).tiny)
        linearized = (z[active] - clean).flatten(1).abs().amax(1) + margin.abs() / slope
        closest = oracle.closest_distance[active].to(x.dtype)
        # On the linearized boundary itself, rounding decides: the first radius is a little larger.
        grown = torch.where(torch.isfinite(closest), radius, linearized) * (1 + change)
        radii[active] = torch.where(margin > 0, torch.minimum(radius * (1 - change), closest), grown)
        moved = z[active] + step_size * (0.01 + 0.99 * annealed) * steepest(gradient, clean, L2())
        z[active] = oracle.threat.norm.project(moved, clean, radii[active])
    return tightened(oracle, x, z, binary_search_steps)
