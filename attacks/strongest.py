"""The strongest bounded attack: ascents of APGD, the more of them the nearer a sample comes to the boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.apgd import CITATION, ascend, by_malt, targeted_ratio
from attacks.iterative_gradient import random_start
from attacks.parts.gradients import wrong_odds
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle, Loss
from bench.contracts.parameters import Count, Natural, Positive

NEAREST = 3
"""Targets of each sample whose losses came nearest to zero, towards which further rounds ascend."""


@attack(
    "strongest",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["bounded"],
    stochastic=True,
    budget=10_000,
    citation=f"ascents and losses of {CITATION}; targets of Melamed, Yehudai & Shamir 2024, MALT powers up adversarial "
    "attacks",
    short={"steps": 5, "rounds": 1, "targets": 2},
)
def strongest(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 25,
    targets: Count = 9,
    rounds: Natural = 3,
    reach: Positive = 0.5,
) -> Tensor:
    """Tries all targets of all samples in ``steps`` steps, and then spends on the samples nearest to the boundary.

    Round 0 ascends the cross-entropy, and the targeted difference of logits ratio towards each of the ``targets`` wrong
    classes, in the order of MALT. ``rounds`` further ones follow, each with twice the steps of the last. Round r takes
    the samples whose largest ratio so far is above ``-reach / 2^((r-1)/2)``. It ascends both losses again, the ratio
    towards the `NEAREST` targets only, from random starts and from where the last ascents towards these targets ended.

    This is no published attack, but a schedule of published ones. Each sample's ratio alone decides how much is spent
    on it, so that the chunk does not matter. Broken samples leave.
    """
    best = _Best(oracle, x, y, by_malt(oracle, x, y)[:, :targets])
    ids = oracle.ids
    for number in range(1 + rounds):
        length = steps * 2**number
        if number:
            nearest = best.ratios.topk(min(NEAREST, best.ratios.shape[1]), dim=1)
            ids = ids[nearest.values[ids, 0] > -reach / 2 ** ((number - 1) / 2)]
            places, starts = nearest.indices.T, [best.ends_towards, best.random_starts]
        else:
            places = torch.arange(best.ratios.shape[1], device=x.device)[:, None].expand(-1, len(x))
            starts = [best.random_starts]
        for start in starts:
            if len(ids := best.left(ids)):
                best.ascend(ids, wrong_odds, y[ids], start(ids, places[0, ids]), length)
            for place in places:
                if len(ids := best.left(ids)):
                    best.approach(ids, place[ids], start(ids, place[ids]), length)
    return oracle.closest(best.last)


class _Best:
    """The ascents of one chunk: how near each sample came towards each target, and where.

    Args:
        oracle: answers the queries. Its threat model has a ball.
        x: clean images (n, C, H, W).
        y: labels (n,).
        ranked: target classes (n, M) of each sample.

    Attributes:
        ratios: the largest targeted ratio (n, M) of the ascents towards each target.
        last: where each sample's last ascent ended (n, C, H, W).
    """

    def __init__(self, oracle: GradientOracle, x: Tensor, y: Tensor, ranked: Tensor) -> None:
        self._oracle, self._x, self._y, self._ranked = oracle, x, y, ranked
        self._radii = torch.full((len(x),), oracle.threat.epsilon or 0.0, dtype=torch.float64, device=x.device)
        self._ends = x[:, None].repeat(1, ranked.shape[1], 1, 1, 1)
        self.ratios = torch.full(ranked.shape, -torch.inf, device=x.device)
        self.last = x.clone()

    def left(self, ids: Tensor) -> Tensor:
        """Returns the samples (M,) of ``ids`` (N,) that are not broken and have budget left."""
        return self._oracle.working(ids[~self._oracle.found[ids]])

    def random_starts(self, ids: Tensor, place: Tensor) -> Tensor:
        """Draws points (N, C, H, W) in the balls of the samples ``ids`` (N,)."""
        return random_start(self._oracle, self._x[ids], ids, self._radii[ids])

    def ends_towards(self, ids: Tensor, place: Tensor) -> Tensor:
        """Returns where the best ascents of the samples ``ids`` (N,) towards their targets at ``place`` (N,) ended."""
        return self._ends[ids, place]

    def ascend(self, ids: Tensor, loss: Loss, labels: Tensor, start: Tensor, steps: int) -> Tensor:
        """Ascends a loss from ``start`` (N, C, H, W) and returns the largest values (N,)."""
        x, radii = self._x[ids], self._radii[ids]
        self.last[ids], top = ascend(self._oracle, x, labels, ids, radii, loss, start=start, steps=steps)
        self._oracle.lane += 1
        return top

    def approach(self, ids: Tensor, place: Tensor, start: Tensor, steps: int) -> None:
        """Ascends the ratio towards each sample's target at ``place`` (N,), and remembers where it was largest."""
        labels = torch.stack([self._y[ids], self._ranked[ids, place]], 1)
        ratio = self.ascend(ids, targeted_ratio, labels, start, steps)
        better = ratio > self.ratios[ids, place]
        up, where = ids[better], place[better]
        self._ends[up, where], self.ratios[up, where] = self.last[up], ratio[better]
