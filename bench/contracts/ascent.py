"""Projected gradient ascent in a ball (Madry et al. 2018), for any source of gradients.

Attacks, detection studies, adversarial training and smoothing share this loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.contracts.norms import Norm

Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes all iterates (N, C, H, W) and the active rows (M,) int64. Returns the rows that stay active, and the
objective's gradient at these rows. The other rows keep their iterates."""


def ascend(
    gradient: Gradient,
    center: Tensor,
    norm: Norm,
    radius: Tensor | float,
    *,
    start: Tensor,
    lengths: Sequence[Tensor | float],
) -> tuple[Tensor, Tensor]:
    """Takes steps in the steepest direction and projects each iterate into the ball.

    Autograd can differentiate the last iterates in the centers, the start and the gradients.

    Args:
        gradient: see `Gradient`.
        center: centers of the balls, images (N, C, H, W) in [0, 1].
        norm: norm of the balls; it must have a projection and a steepest direction.
        radius: radius of the balls; one number, or one per row (N,).
        start: first iterates (N, C, H, W).
        lengths: step sizes in pixel intensity; each is one number, or one per row (N,).

    Returns:
        The last iterates (N, C, H, W), and the rows (M,) that are still active after the last step.
    """
    z = start.clone()
    rows = torch.arange(len(z), device=z.device)
    radii = _per_row(radius, z)
    for length in lengths:
        rows, slope = gradient(z, rows)
        if not len(rows):
            break
        step = _per_row(length, z)[rows].reshape(-1, 1, 1, 1) * norm.steepest(slope)
        z[rows] = norm.project(z[rows] + step, center[rows], radii[rows])
    return z, rows


def _per_row(value: Tensor | float, z: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=z.dtype, device=z.device).expand(len(z))
