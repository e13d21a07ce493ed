"""Searches for the smallest epsilon at which a bounded attack succeeds, for each sample separately.

Epsilon first grows, then a binary search narrows the interval. Foolbox 1.3 turns BIM, PGD and MIM into minimal attacks
in the same way (Rauber et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.contracts.oracle import GradientOracle

GROWTH = 1.5
PRECISION = 1e-3
"""A sample is finished when its interval is shorter than this share of its closest distance."""

Run = Callable[[Tensor, Tensor], Tensor]
"""Attacks the samples ``ids`` (N,) within balls of ``radii`` (N,) and returns the last images tried (N, C, H, W)."""


def smallest_epsilon(oracle: GradientOracle, x: Tensor, run: Run, *, start: float, binary_search_steps: int) -> Tensor:
    """Returns the closest adversarial examples (n, C, H, W) that ``run`` finds in balls around ``x`` (n, C, H, W).

    Epsilon starts at ``start`` and grows by the factor `GROWTH` until the attack succeeds or the ball holds every
    image. Then the interval between the largest failed epsilon and the closest adversarial example of all queries is
    halved ``binary_search_steps`` times.
    """
    last = x.clone()
    low = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def attempt(ids: Tensor, radii: Tensor) -> None:
        last[ids] = run(ids, radii)
        failed = oracle.closest_distance[ids] > radii * (1 + PRECISION / 2)
        low[ids[failed]] = radii[failed]

    widest = oracle.threat.norm.diameter(x.shape[1:])
    epsilon, largest = start, 0.0
    while largest < widest:
        ids = oracle.ids[~oracle.found]
        if not len(ids := oracle.working(ids)):
            break
        attempt(ids, low.new_full((len(ids),), epsilon))
        epsilon, largest = epsilon * GROWTH, epsilon
    for _ in range(binary_search_steps):
        high = oracle.closest_distance
        # A lucky query can be closer than an epsilon at which the attack failed.
        low = torch.where(low < high, low, high / GROWTH)
        ids = oracle.ids[oracle.found & (high - low > PRECISION * high)]
        if not len(ids := oracle.working(ids)):
            break
        attempt(ids, (low[ids] + high[ids]) / 2)
    return oracle.closest(last)
