"""Searches along lines between a clean image and an adversarial example, for all samples at once."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.gradients import per_image
from bench.contracts.oracle import DecisionOracle, GradientOracle


def bisect(oracle: DecisionOracle, clean: Tensor, adversarial: Tensor, ids: Tensor, steps: int) -> Tensor:
    """Runs a binary search between ``clean`` and ``adversarial`` (N, C, H, W) and returns the adversarial ends.

    Each of the ``steps`` halvings keeps one end adversarial and costs one decision per row.
    """
    low, high = clean.clone(), adversarial.clone()
    rows = torch.arange(len(ids), device=ids.device)
    for _ in range(steps):
        if not len(rows := oracle.working(rows, ids)):
            break
        middle = (low[rows] + high[rows]) / 2
        hit = per_image(oracle.adversarial(middle, ids[rows]))
        high[rows] = torch.where(hit, middle, high[rows])
        low[rows] = torch.where(hit, low[rows], middle)
    return high


def tightened(oracle: GradientOracle, x: Tensor, fallback: Tensor, steps: int) -> Tensor:
    """Returns the closest adversarial examples after ``steps`` halvings of the segments from ``x`` to them.

    Samples without one get their rows of ``fallback`` (n, C, H, W).
    """
    found = oracle.ids[oracle.found]
    bisect(oracle, x[found], oracle.closest(fallback)[found], found, steps)
    return oracle.closest(fallback)


def climb(
    oracle: DecisionOracle,
    x: Tensor,
    direction: Tensor,
    largest: float,
    num_scales: int,
    binary_search_steps: int,
) -> Tensor:
    """Returns the first adversarial ``clip(x + epsilon direction)`` of each sample (n, C, H, W), or the last one tried.

    Epsilon climbs a geometric ladder from ``largest / 1000``, the reference's finest step, to ``largest``. The relative
    resolution of the ladder is the same everywhere. The reference's 1000 even steps are too fine at the top and too
    coarse at the bottom. The interval below the first hit is then halved ``binary_search_steps`` times.
    """
    ladder = largest * torch.logspace(0, -3, num_scales, dtype=torch.float64).flip(0).to(x)
    low, high = x.clone(), x.clone()
    climbing, hit = oracle.ids, torch.zeros_like(oracle.ids, dtype=torch.bool)
    for epsilon in ladder:
        if not len(climbing := oracle.working(climbing)):
            break
        low[climbing] = high[climbing]
        high[climbing] = (x[climbing] + epsilon * direction[climbing]).clamp(0, 1)
        wrong = oracle.adversarial(high[climbing], climbing)
        hit[climbing[wrong]] = True
        climbing = climbing[~wrong]
    found = oracle.ids[hit]
    high[found] = bisect(oracle, low[found], high[found], found, binary_search_steps)
    return high
