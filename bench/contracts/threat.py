"""Threat models: the allowed perturbations. Images are float32 tensors of shape (N, C, H, W) in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.goals import MISCLASSIFIED, Goal
from bench.contracts.norms import NORMS, Norm, NormName, check_norm, within


@dataclass(frozen=True)
class ThreatModel:
    """A threat model: a norm, a goal and, for bounded attacks, the radius of a ball. Pixels stay in [0, 1].

    ``epsilon`` is in the norm's unit: changed pixels for L0, pixel intensity for the others. ``None`` stands for the
    smallest perturbation. Images that reach the ``goal`` are called adversarial.

    Raises:
        ValueError: for an unknown norm.
    """

    norm_name: NormName
    epsilon: float | None = None
    goal: Goal = MISCLASSIFIED

    def __post_init__(self) -> None:
        check_norm(self.norm_name, NORMS)

    @property
    def norm(self) -> Norm:
        """Returns the norm."""
        return NORMS[self.norm_name]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the distances (N,) float64 between the rows of ``a`` and ``b`` (N, C, H, W) in the norm."""
        return self.norm.distance(a, b)

    def allows(self, distances: Tensor) -> Tensor:
        """Returns whether each distance lies in the ball. Without an epsilon, every finite distance does."""
        if self.epsilon is None:
            return torch.isfinite(distances)
        inside: Tensor = within(distances, self.epsilon)
        return inside


def snap_to_threshold(candidate: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Returns the image nearest to ``x`` among those that binarize to the same image as ``candidate``.

    A pixel whose bit is the clean one takes the clean value. A raised bit takes the threshold, and a lowered bit takes
    the next float below. The binarized image does not change, so the decision does not change (Schott et al. 2019,
    section 5, post-processing).
    """
    level = torch.tensor(threshold, dtype=x.dtype, device=x.device)
    bit, clean_bit = candidate >= level, x >= level
    return torch.where(bit == clean_bit, x, torch.where(bit, level, torch.nextafter(level, torch.zeros_like(level))))
