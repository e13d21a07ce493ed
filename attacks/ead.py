"""EAD (Chen, Sharma, Zhang, Yi & Hsieh 2018): elastic-net attacks, for L1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.parts.gradients import logit_margin, per_image, to_spread
from attacks.parts.lines import tightened
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count, Natural, Positive

GROWTH = 10.0


@attack(
    "ead",
    norms=["L1"],
    access="gradient",
    budget=1500,
    citation="Chen, Sharma, Zhang, Yi & Hsieh 2018, EAD: elastic-net attacks to deep neural networks via adversarial "
    "examples",
    short={"searches": 5, "steps": 40},
    approximation_ratio={"L1": (1.04, 1.6)},
)
def ead(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    searches: Count = 6,
    steps: Count = 100,
    step_size: Positive = 0.02,
    beta: Positive = 0.1,
    constant: Positive = 1.0,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Minimizes c max(f(z), 0) + ||z - x||_2^2 + beta ||z - x||_1 by ``steps`` of FISTA (algorithm 1).

    f(z) is the margin of the true class, with the clean image's logits scaled to the standard deviation
    `attacks.parts.gradients.SPREAD`. c starts at ``constant`` and grows tenfold until a run succeeds. A binary search
    then refines c, over ``searches`` runs in all. The step size falls from ``step_size`` to 0 with the square root of
    the remaining steps.

    Of all adversarial examples, the nearest in L1 counts (the paper's L1 decision rule). They are looked for at the
    extrapolated points, where the gradient is taken, so that a step needs no further pass. The segment from the clean
    image to the nearest is then halved ``binary_search_steps`` times.
    """
    constants = torch.full((len(x),), constant, device=x.device)
    low, high = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
    step_sizes = [step_size * math.sqrt(1 - k / steps) for k in range(steps)]
    for _ in range(searches):
        hit = descend(oracle, x, y, constants, step_sizes, beta)
        low, high = torch.where(hit, low, constants), torch.where(hit, constants, high)
        constants = torch.where(torch.isfinite(high), (low + high) / 2, constants * GROWTH)
    # A run may end where it began, at the clean image. Failures hand in the far end of the pixel range.
    return tightened(oracle, x, (x <= 0.5).to(x.dtype), binary_search_steps)


def descend(
    oracle: GradientOracle, x: Tensor, y: Tensor, constants: Tensor, step_sizes: Sequence[float], beta: float
) -> Tensor:
    """Runs FISTA from the clean images (n, C, H, W) with ``constants`` (n,), one step per step size.

    A sample that does not move leaves, because its further steps are smaller. Returns True (n,) for samples with an
    adversarial extrapolated point.
    """
    z, ahead = x.clone(), x.clone()
    hit = torch.zeros_like(y, dtype=torch.bool)
    scale = torch.ones_like(constants)
    active = oracle.ids
    for k, step_size in enumerate(step_sizes):
        if not len(active := oracle.working(active)):
            break
        gradient, logits = oracle.gradient(ahead[active], y[active], logit_margin, active)
        if k == 0:
            scale[active] = to_spread(logits)[:, 0]
        wrong = oracle.reached(logits, active)
        hit[active] |= wrong
        pull = per_image(constants[active] * ~wrong) * torch.nan_to_num(per_image(scale[active]) * gradient)
        slope = 2 * (ahead[active] - x[active]) - pull
        before = z[active]
        z[active] = shrink(ahead[active] - step_size * slope, x[active], beta)
        ahead[active] = (z[active] + k / (k + 3) * (z[active] - before)).clamp(0, 1)
        active = active[(ahead[active] != x[active]).flatten(1).any(1)]
    return hit


def shrink(z: Tensor, x: Tensor, beta: float) -> Tensor:
    """Moves each value of ``z`` (N, C, H, W) by ``beta`` towards the clean ``x``, and clips it to [0, 1].

    Values within ``beta`` become the clean ones. This is the shrinkage-thresholding operator S_beta (equation 5).
    """
    delta = z - x
    return (x + (delta.abs() - beta).clamp_min(0).copysign(delta)).clamp(0, 1)
