"""Lower bounds on the distance to the nearest adversarial example, for classifiers by latent energies.

For each class c, E_c(x) = min_z ||x - G_c(z)||^2 + penalty_c(z), with a penalty of at least 0. The latent z_y is where
class y has its minimum. Further, r_y = ||x - G_y(z_y)|| and d_c = min_z ||x - G_c(z)||. The bounds are estimates,
because they assume that the minima found numerically are global.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BISECTIONS = 10
"""Steps of binary search on [0, 1] for the Linf bound."""


def published_l2(own_energy: Tensor, own_error: Tensor, distances: Tensor) -> Tensor:
    """The published L2 bound min_c (d_c^2 - E_y) / (2 d_c + 2 r_y), (N,).

    This is eq. 8 of Schott et al. 2019 and eq. 7 of Ju & Wagner 2020. The latter prints a square on the second term of
    the denominator. This function omits the square.

    Args:
        own_energy: E_y, (N,).
        own_error: r_y, (N,).
        distances: d_c of the other classes, (N, K), infinite for y.
    """
    numerator = distances.square() - own_energy[:, None]
    ratio = numerator / (2 * (distances + own_error[:, None]))
    return ratio.masked_fill(distances.isinf(), torch.inf).amin(1)


def tighter_l2(own_energy: Tensor, own_error: Tensor, energies: Tensor) -> Tensor:
    """A tighter L2 bound min_c (E_c - E_y) / (2 (sqrt(E_c) + r_y)), (N,), at least as large as `published_l2`.

    Proof. For ||delta|| = epsilon, keeping z_y gives E_y(x + delta) <= (r_y + epsilon)^2 + penalty_y(z_y)
    = E_y + 2 epsilon r_y + epsilon^2. E_c is the squared distance of (x, 0) to the set of all
    (G_c(z), sqrt(penalty_c(z))). Hence its root is 1-Lipschitz in x, and E_c(x + delta) >= (sqrt(E_c) - epsilon)^2 for
    epsilon <= sqrt(E_c). Class y keeps the least energy as long as the upper bound on E_y(x + delta) is below the lower
    bound on E_c(x + delta). This is the case for E_c - E_y > 2 epsilon (sqrt(E_c) + r_y). The bound is at least
    `published_l2` because d_c <= sqrt(E_c), and (u^2 - E_y) / (u + r_y) grows with u where r_y^2 <= E_y.

    Args:
        own_energy: E_y, (N,).
        own_error: r_y, (N,).
        energies: E_c of the other classes, (N, K), infinite for y.
    """
    ratio = (energies - own_energy[:, None]) / (2 * (energies.sqrt() + own_error[:, None]))
    return ratio.masked_fill(energies.isinf(), torch.inf).amin(1)


def scaled_l2(energies: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """L2 bound min_c (sqrt(gamma_c E_c) - sqrt(gamma_y E_y)) / (sqrt(gamma_c) + sqrt(gamma_y)), (N,).

    The bound holds for decisions by the least gamma_c E_c. The root of gamma_c E_c is Lipschitz in x with constant
    sqrt(gamma_c).

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
    """Linf bound (N,): the largest epsilon in [0, 1] up to which class y keeps the least energy.

    Class y keeps the least energy while sum_i (|x - G_y(z_y)|_i + epsilon)^2 + penalty_y(z_y) <= min_c V_c(epsilon),
    where V_c(epsilon) = min_z sum_i max(|x - G_c(z)|_i - epsilon, 0)^2 + penalty_c(z) (Schott et al. 2019, appendix
    A.6). The paper misprints eq. 13 and 14. A binary search of `BISECTIONS` steps finds epsilon from below.

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
    """Number of values (N,), int64, that must flip to move a binary image by an L2 distance (N,): ceil(distance^2)."""
    return distance.clamp_min(0).square().ceil().long()


def flipping(x: Tensor, k: Tensor, threshold: float) -> Tensor:
    """The smallest change (N, D) that flips ``k`` (N,) binarized values of each image, sorted by size.

    A row holds |x_i - threshold| of the ``k`` values nearest to the threshold, and 0 for the others.
    """
    gaps = (x.flatten(1) - threshold).abs().sort(1)[0]
    return gaps * (torch.arange(gaps.shape[1], device=x.device) < k[:, None])
