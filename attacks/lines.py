"""Searches along lines between a clean image and an adversarial one, for all samples at once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from attacks.gradients import per_image


class DecisionOracle(Protocol):
    """The part of `bench.oracle.Oracle` that line searches use; see there."""

    ids: Tensor

    def decision(self, x: Tensor, ids: Tensor) -> Tensor:
        """Predicted classes (N,) of images ``x`` (N, C, H, W)."""

    def affordable(self, ids: Tensor) -> Tensor:
        """True (N,) for rows whose sample still has budget."""


def bisect(oracle: DecisionOracle, clean: Tensor, adversarial: Tensor, y: Tensor, ids: Tensor, steps: int) -> Tensor:
    """Halves the segments from ``clean`` to ``adversarial`` (N, C, H, W) ``steps`` times, keeping one end of each
    adversarial; returns these ends. Costs ``steps`` decisions per row."""
    low, high = clean.clone(), adversarial.clone()
    rows = torch.arange(len(ids), device=ids.device)
    for _ in range(steps):
        rows = rows[oracle.affordable(ids[rows])]
        if not len(rows):
            break
        middle = (low[rows] + high[rows]) / 2
        hit = per_image(oracle.decision(middle, ids[rows]) != y[rows])
        high[rows] = torch.where(hit, middle, high[rows])
        low[rows] = torch.where(hit, low[rows], middle)
    return high


def climb(
    oracle: DecisionOracle, x: Tensor, y: Tensor, direction: Tensor, largest: float, rungs: int, bisections: int
) -> Tensor:
    """The first adversarial ``clip(x + epsilon direction)`` for each sample (n, C, H, W), or the last one tried.

    Epsilon climbs from ``largest / 1000``, the reference's finest step, to ``largest`` on a geometric ladder: its
    relative resolution is the same everywhere, where the reference's 1000 even steps are too fine at the top and too
    coarse at the bottom. The interval below the first hit is then halved ``bisections`` times.
    """
    ladder = largest * torch.logspace(-3, 0, rungs, dtype=torch.float64).to(x)
    low, high = x.clone(), x.clone()
    climbing, hit = oracle.ids, torch.zeros_like(y, dtype=torch.bool)
    for epsilon in ladder:
        climbing = climbing[oracle.affordable(climbing)]
        if not len(climbing):
            break
        low[climbing] = high[climbing]
        high[climbing] = (x[climbing] + epsilon * direction[climbing]).clamp(0, 1)
        wrong = oracle.decision(high[climbing], climbing) != y[climbing]
        hit[climbing[wrong]] = True
        climbing = climbing[~wrong]
    found = oracle.ids[hit]
    high[found] = bisect(oracle, low[found], high[found], y[found], found, bisections)
    return high
