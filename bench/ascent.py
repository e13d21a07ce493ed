"""Projected gradient ascent in a ball (Madry et al. 2018), whoever computes the gradient.

Attacks, studies of detection, adversarial training and smoothing climb with the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.norms import Norm, check_norm
from bench.threat import project

Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Is asked about all iterates (N, C, H, W) and the rows (M,) int64 that still climb. Gives those of the rows that go
on, and the gradient there of what they climb. The other rows stay where they are."""


@torch.no_grad()
def ascend(
    gradient: Gradient,
    center: Tensor,
    norm: Norm,
    radius: Tensor | float,
    *,
    start: Tensor,
    lengths: Sequence[Tensor | float],
) -> tuple[Tensor, Tensor]:
    """Takes steps along the steepest direction, each projected into the ball.

    Args:
        gradient: see `Gradient`.
        center: of the balls, images (N, C, H, W) in [0, 1].
        norm: L2 or Linf.
        radius: one number, or one per row (N,).
        start: first iterates (N, C, H, W).
        lengths: of the steps, in pixel intensity; each is one number, or one per row (N,).

    Returns:
        The last iterates (N, C, H, W), and the rows (M,) that still climbed after the last step.
    """
    z = start.clone()
    rows = torch.arange(len(z), device=z.device)
    radii = _per_row(radius, z)
    for length in lengths:
        rows, slope = gradient(z, rows)
        if not len(rows):
            break
        step = _per_row(length, z)[rows].reshape(-1, 1, 1, 1) * steepest(slope, norm)
        z[rows] = project(z[rows] + step, center[rows], norm, radii[rows])
    return z, rows


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction (N, C, H, W) of length one in ``norm`` along which a function with this gradient rises fastest; 0
    where the gradient is 0.

    Raises:
        ValueError: for a norm other than L2 and Linf.
    """
    check_norm(norm, ("L2", "Linf"))
    if norm == "Linf":
        return gradient.sign()
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1e-30)
    direction: Tensor = gradient / length.reshape(-1, 1, 1, 1)
    return direction


def _per_row(value: Tensor | float, z: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=z.dtype, device=z.device).expand(len(z))
