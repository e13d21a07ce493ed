"""Threat models: the allowed perturbations, distances between images, and projections into the allowed set.

Images are float32 tensors of shape (N, C, H, W) in [0, 1]. Distances are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.goals import MISCLASSIFIED, Goal
from bench.contracts.norms import NormName, check_norm, of_norm, within

_ROUNDING = 2.0**-24
"""The most by which rounding to float32 moves a number below 1."""


@dataclass(frozen=True)
class ThreatModel:
    """A threat model: a norm, a goal and, for bounded attacks, the radius of a ball. Pixels stay in [0, 1].

    ``epsilon`` is in the norm's unit: changed pixels for L0, pixel intensity for L2 and Linf. ``None`` stands for the
    smallest perturbation. Images that reach the ``goal`` are called adversarial.

    Raises:
        ValueError: for an unknown norm.
    """

    norm: NormName
    epsilon: float | None = None
    goal: Goal = MISCLASSIFIED

    def __post_init__(self) -> None:
        check_norm(self.norm)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the distances between the rows of ``a`` and ``b`` in this threat model's norm; see `distance`."""
        return distance(a, b, self.norm)

    def allows(self, distances: Tensor) -> Tensor:
        """Returns whether each distance lies in the ball. Without an epsilon, every finite distance does."""
        if self.epsilon is None:
            return torch.isfinite(distances)
        inside: Tensor = within(distances, self.epsilon)
        return inside


def distance(a: Tensor, b: Tensor, norm: NormName) -> Tensor:
    """Returns the distance of each row of ``a`` (N, C, H, W) to the same row of ``b``, as float64 (N,).

    L0 counts the pixels that differ in any channel (Schott et al. 2019, section 6).

    Raises:
        ValueError: for an unknown norm.
    """
    check_norm(norm)
    if norm == "L0":
        return (a != b).any(dim=1).flatten(1).sum(1).double()
    difference = (a.double() - b).flatten(1)
    if norm == "L2":
        return difference.square_().sum(1).sqrt_()
    return difference.abs_().amax(1)


def project(x: Tensor, center: Tensor, norm: NormName, epsilon: Tensor | float) -> Tensor:
    """Projects ``x`` to the nearest point in the L2 or Linf ball around ``center``, and clips it to [0, 1].

    ``epsilon`` is one radius or one per row (N,). With ``center`` in [0, 1], clipping cannot leave the ball. The radius
    is reduced by the amount that rounding to float32 can add to the distance.

    Raises:
        ValueError: for L0, which has no unique projection, and for an unknown norm.
    """
    check_norm(norm, ("L2", "Linf"))
    radius = torch.as_tensor(epsilon, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
    pixels = x[0].numel() if len(x) else 1
    radius = (radius - _ROUNDING * of_norm(norm, L2=pixels**0.5, Linf=1)).clamp_min(0)
    delta = x - center
    if norm == "Linf":
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        length = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        delta = delta * (radius / length.clamp_min(1e-30)).clamp_max(1)
    return (center + delta).clamp(0, 1)


def snap_to_threshold(candidate: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Returns the image nearest to ``x`` among those that binarize to the same image as ``candidate``.

    A pixel whose bit is the clean one takes the clean value. A raised bit takes the threshold, and a lowered bit takes
    the next float below. The binarized image does not change, so the decision does not change (Schott et al. 2019,
    section 5, post-processing).
    """
    level = torch.tensor(threshold, dtype=x.dtype, device=x.device)
    bit, clean_bit = candidate >= level, x >= level
    return torch.where(bit == clean_bit, x, torch.where(bit, level, torch.nextafter(level, torch.zeros_like(level))))
