"""Projected gradient ascent in a ball (Madry et al. 2018), for any source of gradients.

Attacks, detection studies, adversarial training and smoothing share this loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.contracts.norms import NormName, check_norm
from bench.contracts.threat import project

Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes all iterates (N, C, H, W) and the active rows (M,) int64. Returns the rows that stay active, and the
objective's gradient at these rows. The other rows keep their iterates."""


@torch.no_grad()
def ascend(
    gradient: Gradient,
    center: Tensor,
    norm: NormName,
    radius: Tensor | float,
    *,
    start: Tensor,
    lengths: Sequence[Tensor | float],
) -> tuple[Tensor, Tensor]:
    """Takes steps in the steepest direction and projects each iterate into the ball.

    Args:
        gradient: see `Gradient`.
        center: centers of the balls, images (N, C, H, W) in [0, 1].
        norm: L2 or Linf.
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
        step = _per_row(length, z)[rows].reshape(-1, 1, 1, 1) * steepest(slope, norm)
        z[rows] = project(z[rows] + step, center[rows], norm, radii[rows])
    return z, rows


def steepest(gradient: Tensor, norm: NormName) -> Tensor:
    """Returns the direction (N, C, H, W) of steepest ascent, with length one in ``norm``.

    The direction is 0 where the gradient is 0.

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
