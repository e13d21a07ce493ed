"""Lower bounds on the distance to the nearest adversarial of classifiers by latent energies.

For each class c, E_c(x) = min_z ||x - G_c(z)||^2 + penalty_c(z) with a penalty that is not negative; z_y is where class
y has its minimum, r_y = ||x - G_y(z_y)||, d_c = min_z ||x - G_c(z)||. All of them trust that minima found numerically
are global, so they are estimates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BISECTIONS = 10
"""Halvings of [0, 1] in the search for a bound in Linf."""


def published_l2(own_energy: Tensor, own_error: Tensor, distances: Tensor) -> Tensor:
    """min_c (d_c^2 - E_y) / (2 d_c + 2 r_y), (N,): eq. 8 of Schott et al. 2019 and eq. 7 of Ju & Wagner 2020 (where the
    second term of the denominator is not squared, unlike in print).

    Args:
        own_energy: E_y, (N,).
        own_error: r_y, (N,).
        distances: d_c of the other classes, (N, K), infinite for y.
    """
    numerator = distances.square() - own_energy[:, None]
    ratio = numerator / (2 * (distances + own_error[:, None]))
    return ratio.masked_fill(distances.isinf(), torch.inf).amin(1)


def tighter_l2(own_energy: Tensor, own_error: Tensor, energies: Tensor) -> Tensor:
    """min_c (E_c - E_y) / (2 (sqrt(E_c) + r_y)), (N,); never below `published_l2`.

    Proof. For ||delta|| = epsilon, keeping z_y gives E_y(x + delta) <= (r_y + epsilon)^2 + penalty_y(z_y)
    = E_y + 2 epsilon r_y + epsilon^2. E_c is the squared distance of (x, 0) to the set of all
    (G_c(z), sqrt(penalty_c(z))), so its root is 1-Lipschitz in x, and E_c(x + delta) >= (sqrt(E_c) - epsilon)^2 for
    epsilon <= sqrt(E_c). Class y keeps the least energy as long as the first is below the second, that is
    E_c - E_y > 2 epsilon (sqrt(E_c) + r_y). The bound exceeds `published_l2` because d_c <= sqrt(E_c), and
    (u^2 - E_y) / (u + r_y) grows with u where r_y^2 <= E_y.

    Args:
        own_energy: E_y, (N,).
        own_error: r_y, (N,).
        energies: E_c of the other classes, (N, K), infinite for y.
    """
    ratio = (energies - own_energy[:, None]) / (2 * (energies.sqrt() + own_error[:, None]))
    return ratio.masked_fill(energies.isinf(), torch.inf).amin(1)


def scaled_l2(energies: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """min_c (sqrt(gamma_c E_c) - sqrt(gamma_y E_y)) / (sqrt(gamma_c) + sqrt(gamma_y)), (N,), for decisions by the least
    gamma_c E_c, scales gamma (K,): both roots are Lipschitz, by the roots of their scales.

    Args:
        energies: E_c of all classes, (N, K).
        y: classes, (N,).
        scales: gamma_c, (K,).
    """
    roots = (scales * energies).sqrt()
    own = roots.gather(1, y[:, None])
    ratio = (roots - own) / (scales.sqrt() + scales.sqrt()[y][:, None])
    return ratio.scatter(1, y[:, None], torch.inf).amin(1)


def linf(own_error: Tensor, own_penalty: Tensor, least_energy: Callable[[Tensor], Tensor]) -> Tensor:
    """The largest epsilon in [0, 1], (N,), but for `BISECTIONS` halvings, up to which class y keeps the least energy:
    sum_i (|x - G_y(z_y)|_i + epsilon)^2 + penalty_y(z_y) <= min_c V_c(epsilon), where
    V_c(epsilon) = min_z sum_i max(|x - G_c(z)|_i - epsilon, 0)^2 + penalty_c(z)
    (Schott et al. 2019, appendix A.6, whose eq. 13 and 14 are misprinted).

    Args:
        own_error: |x - G_y(z_y)|, (N, D).
        own_penalty: penalty_y(z_y), (N,).
        least_energy: maps epsilon (N,) to the least V_c over the other classes, (N,).
    """
    lower, upper = torch.zeros_like(own_penalty), torch.ones_like(own_penalty)
    safe = own_error.square().sum(1) + own_penalty <= least_energy(lower)
    for _ in range(BISECTIONS):
        middle = (lower + upper) / 2
        most = (own_error + middle[:, None]).square().sum(1) + own_penalty
        holds = safe & (most <= least_energy(middle))
        lower, upper = torch.where(holds, middle, lower), torch.where(holds, upper, middle)
    return lower


def flips(distance: Tensor) -> Tensor:
    """How many values of a binary image must flip to move it by an L2 distance (N,): ceil(distance^2), (N,) int64."""
    return distance.clamp_min(0).square().ceil().long()


def flipping(x: Tensor, k: Tensor, threshold: float) -> Tensor:
    """|x_i - threshold| of the ``k`` (N,) values that are nearest to the threshold, as rows (N, D), 0 for the others:
    the least that flips so many of an image's binarised values."""
    gaps = (x.flatten(1) - threshold).abs().sort(1)[0]
    return gaps * (torch.arange(gaps.shape[1], device=x.device) < k[:, None])
