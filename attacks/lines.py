"""Searches along lines between a clean image and an adversarial one, for all samples at once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from attacks.gradients import per_image


class DecisionOracle(Protocol):
    """The part of `bench.oracle.Oracle` that line searches use; see there."""

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
