"""The strongest bounded attack: ascents of APGD, the more of them the nearer a sample comes to the boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.apgd import CITATION, ascend, by_malt, difference_of_logits_ratio, targeted_ratio
from attacks.iterative_gradient import random_start
from attacks.parts.gradients import wrong_odds
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle, Loss
from bench.contracts.parameters import Count, Natural, Positive


@attack(
    "strongest",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["bounded"],
    stochastic=True,
    budget=10_000,
    citation=f"ascents and losses of {CITATION}; targets of Melamed, Yehudai & Shamir 2024, MALT powers up adversarial "
    "attacks",
    short={"steps": 5, "rounds": 1},
)
def strongest(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 25,
    targets: Count = 2,
    rounds: Natural = 2,
    reach: Positive = 0.6,
) -> Tensor:
    """Ascends four losses from one start for all samples, and from many starts for the samples near the boundary.

    The losses are the cross-entropy, the difference of logits ratio, and the targeted one towards the first ``targets``
    classes in the order of MALT. Round 0 takes ``steps`` steps of each from a random start. ``rounds`` further ones
    follow. Each takes twice the steps of the last, from twice the starts. They lie around the point at which the
    sample's ratio was largest so far. Round r takes only the samples whose largest ratio is above
    ``-reach / 2^(r-1)``.

    This is no published attack, but a schedule of published ones. Each sample's ratio alone decides how much is spent
    on it, so that the chunk does not matter. Broken samples leave.
    """
    ranked = by_malt(oracle, x, y)[:, :targets]
    losses: list[tuple[Loss, Tensor]] = [(wrong_odds, y), (difference_of_logits_ratio, y)]
    losses += [(targeted_ratio, torch.stack([y, classes], 1)) for classes in ranked.T]
    nearest = _Nearest(oracle, x, y)
    ids = oracle.ids
    for number in range(1 + rounds):
        if number:
            ids = ids[nearest.ratio[ids] > -reach / 2 ** (number - 1)]
        for loss, labels in losses:
            ids = oracle.working(ids[~oracle.found[ids]])
            if len(ids):
                nearest.approach(ids, loss, labels, steps=steps * 2**number, starts=2**number)
    return oracle.closest(nearest.z)


class _Nearest:
    """The point of each sample that comes nearest to the boundary.

    Args:
        oracle: answers the queries. Its threat model has a ball.
        x: clean images (n, C, H, W).
        y: labels (n,).

    Attributes:
        z: the point (n, C, H, W).
        ratio: its difference of logits ratio (n,).
    """

    def __init__(self, oracle: GradientOracle, x: Tensor, y: Tensor) -> None:
        self._oracle, self._x, self._y = oracle, x, y
        self._radii = torch.full((len(x),), oracle.threat.epsilon or 0.0, dtype=torch.float64, device=x.device)
        self.z, self.ratio = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def approach(self, ids: Tensor, loss: Loss, labels: Tensor, *, steps: int, starts: int) -> None:
        """Ascends ``loss``, which takes ``labels`` (n, ...), for the samples ``ids`` (N,).

        The ``starts`` of a sample are drawn around its point, from balls of 1/starts to all of the threat model's
        radius. All ascend side by side, because small batches are slow.
        """
        rows = ids.repeat(starts)
        share = torch.arange(1, starts + 1, device=ids.device).repeat_interleave(len(ids)) / starts
        x, radii = self._x[rows], self._radii[rows]
        start = random_start(self._oracle, self.z[rows], rows, share * radii)
        start = self._oracle.threat.norm.project(start, x, radii)
        ends, _ = ascend(self._oracle, x, labels[rows], rows, radii, loss, start=start, steps=steps)
        self._oracle.lane += 1
        if len(self._oracle.working(ids)):
            ratio = difference_of_logits_ratio(self._oracle.scores(ends, rows), self._y[rows])
            top, which = ratio.reshape(starts, -1).max(0)
            up = top > self.ratio[ids]
            chosen = which * len(ids) + torch.arange(len(ids), device=ids.device)
            self.z[ids[up]], self.ratio[ids[up]] = ends[chosen[up]], top[up]
