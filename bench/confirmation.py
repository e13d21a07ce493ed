"""Confirmation: what an answer of a randomised defense shows as adversarial is drawn again before it is believed.

The search for the closest of thousands of averaged answers would otherwise end at the luckiest of them, and an attack
that stops at its first success at a lucky one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.judge import vote, wilson

CONFIRMATIONS = 40
"""Draws at most for an image; it is confirmed where their 99 % Wilson interval lies above one half."""


class Confirmation:
    """Confirms images of one chunk of samples, and remembers the likeliest of those it could not confirm.

    Args:
        predict: one draw of the defense: the classes (N,) of images (N, C, H, W) of the samples ``ids`` (N,).
        x: clean images (n, C, H, W); ``y`` (n,) their labels.
        y: see ``x``.
        classes: number of classes.
        bounded: the images lie in a ball, where the surest is worth most; else the nearest.

    Attributes:
        likely: per sample (n, C, H, W) the nearest, or surest, image that at least half of its draws misclassified; the
            clean image where there was none.
    """

    def __init__(
        self, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, classes: int, *, bounded: bool
    ) -> None:
        self.likely = x.clone()
        self._rank = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self._predict, self._y, self._classes, self._bounded = predict, y, classes, bounded

    def sift(self, x: Tensor, distances: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``rows`` of the images ``x`` (N, C, H, W), sorted by sample and distance, the nearest of each sample that
        is confirmed, and the nearer ones that are not."""
        confirmed, refuted = [], []
        while len(rows):
            first = first_of_each(ids[rows])
            nearest = rows[first]
            holds = self._holds(x[nearest], distances[nearest], ids[nearest])
            confirmed.append(nearest[holds])
            refuted.append(nearest[~holds])
            rows = rows[~first & torch.isin(ids[rows], ids[nearest[~holds]])]
        return torch.cat([rows, *confirmed]), torch.cat([rows, *refuted])

    def _holds(self, x: Tensor, distances: Tensor, ids: Tensor) -> Tensor:
        """Which images (N,), one per sample, significantly most draws misclassify."""
        verdict = vote(lambda rows: self._predict(x[rows], ids[rows]), self._y[ids], self._classes, CONFIRMATIONS)
        rank = -verdict.success_rate if self._bounded else distances
        likely = verdict.misclassified & (rank < self._rank[ids])
        self.likely[ids[likely]] = x[likely]
        self._rank[ids[likely]] = rank[likely]
        low, _ = wilson(verdict.success_rate * verdict.draws, verdict.draws)
        return low > 0.5


def first_of_each(sorted_ids: Tensor) -> Tensor:
    """True (N,) at the first of each run of equal ids."""
    first = torch.ones_like(sorted_ids, dtype=torch.bool)
    first[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return first
