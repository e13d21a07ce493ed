"""The smallest epsilon at which a bounded attack succeeds, for each sample of its own: grow, then bisect.

What turns BIM, PGD and MIM into minimal attacks, as foolbox 1.3 does (Rauber et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.gradients import GradientOracle, diameter

GROWTH = 1.5
PRECISION = 1e-3
"""A sample is finished when its interval is shorter than this share of its closest distance."""

Run = Callable[[Tensor, Tensor], Tensor]
"""Attacks the samples ``ids`` (N,) within balls of ``radii`` (N,) and returns the last images tried (N, C, H, W)."""


def smallest_epsilon(oracle: GradientOracle, x: Tensor, run: Run, *, start: float, bisections: int) -> Tensor:
    """The closest adversarials that ``run`` finds in shrinking balls around ``x`` (n, C, H, W).

    Epsilon starts at ``start`` and grows by `GROWTH` until the attack succeeds or the ball holds every image; then the
    interval between the largest failure and the closest adversarial of all queries is halved ``bisections`` times.
    """
    last = x.clone()
    low = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def attempt(ids: Tensor, radii: Tensor) -> None:
        last[ids] = run(ids, radii)
        failed = oracle.closest_distance[ids] > radii * (1 + PRECISION / 2)
        low[ids[failed]] = radii[failed]

    widest = diameter(x, oracle.threat.norm)
    epsilon, largest = start, 0.0
    while largest < widest:
        ids = oracle.ids[~oracle.found]
        ids = ids[oracle.affordable(ids)]
        if not len(ids):
            break
        attempt(ids, low.new_full((len(ids),), epsilon))
        epsilon, largest = epsilon * GROWTH, epsilon
    for _ in range(bisections):
        high = oracle.closest_distance
        # A lucky query can be closer than an epsilon at which the attack failed.
        low = torch.where(low < high, low, high / GROWTH)
        ids = oracle.ids[oracle.found & (high - low > PRECISION * high)]
        ids = ids[oracle.affordable(ids)]
        if not len(ids):
            break
        attempt(ids, (low[ids] + high[ids]) / 2)
    return oracle.closest(last)
