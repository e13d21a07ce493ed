"""DDN (Rony et al. 2019): decoupled direction and norm."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.annealing import cosine
from attacks.parts.gradients import length, per_image, steepest, wrong_odds
from attacks.parts.lines import tightened
from attacks.parts.starts import handed_over
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count, Natural, Positive


@attack(
    "ddn",
    norms=["L2"],
    access="gradient",
    refines=True,
    budget=700,
    citation="Rony et al. 2019, Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and "
    "defenses",
    short={"steps": 60},
    approximation_ratio={"L2": (1.01, 1.15)},
)
def ddn(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 300,
    radius: Positive = 1.0,
    gamma: Positive = 0.05,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs algorithm 1, without quantization: steps along the gradient, on a sphere around the clean image.

    The first radius is ``radius``, or the distance of an adversarial example that another attack found. It shrinks by
    the share ``gamma`` where the last iterate was adversarial, and grows by it elsewhere. The step size falls from 1 to
    0.01 by cosine annealing. The segment from the clean image to the closest adversarial example is then halved
    ``binary_search_steps`` times, because the radii are ``gamma`` apart.
    """
    z, found = handed_over(oracle)
    radii = torch.where(found, length(z - x), radius)
    active = oracle.ids
    for k in range(steps):
        if not len(active := oracle.working(active)):
            break
        step = 0.01 + 0.99 * cosine(k, steps)
        gradient, logits = oracle.gradient(z[active], y[active], wrong_odds, active)
        wrong = oracle.reached(logits, active)
        radii[active] *= torch.where(wrong, 1 - gamma, 1 + gamma)
        delta = z[active] + step * steepest(gradient, x[active], oracle.threat.norm) - x[active]
        delta *= per_image(radii[active] / length(delta).clamp_min(torch.finfo(x.dtype).tiny))
        z[active] = (x[active] + delta).clamp(0, 1)
    return tightened(oracle, x, z, binary_search_steps)
