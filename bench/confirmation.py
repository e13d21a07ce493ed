"""Confirmation: what an answer of a randomized defense shows as adversarial is drawn again before it is believed.

Without confirmation, the minimum over thousands of noisy answers would select false positives. It is a heuristic that
steers attacks, with the judge's test and aim: no verdict rests on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.judge import AIM
from bench.verdicts import SequentialTest, decide

CONFIRMATION = SequentialTest(null=0.5, alternative=AIM, beta=0.1, max_draws=60)
"""Confirms half of the images with P = `AIM`, and one of 200 with P of one half."""
CONFIRMATION_ALPHA = 0.01


class Confirmation:
    """Confirms images of one chunk of samples, and remembers the likeliest of those it could not confirm.

    Args:
        predict: one draw of the defense: the classes (N,) of images (N, C, H, W) of the samples ``ids`` (N,).
        x: clean images (n, C, H, W); ``y`` (n,) their labels.
        y: see ``x``.
        bounded: the images lie in a ball, where the surest is worth most; else the nearest.

    Attributes:
        likely: per sample (n, C, H, W) the nearest, or surest, image that at least half of its draws misclassified; the
            clean image where there was none.
    """

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, bounded: bool) -> None:
        self.likely = x.clone()
        self._rank = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self._predict, self._y, self._bounded = predict, y, bounded

    def confirm_nearest(self, x: Tensor, distances: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
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
        """Which images (N,), one per sample, most draws misclassify."""

        def errs(rows: Tensor, numbers: Tensor) -> Tensor:
            return self._predict(x[rows], ids[rows]) != self._y[ids[rows]]

        levels = torch.full((len(ids),), CONFIRMATION_ALPHA, dtype=torch.float64, device=x.device)
        decisions = decide(CONFIRMATION, errs, levels)
        rate = decisions.successes.double() / decisions.draws
        rank = -rate if self._bounded else distances
        likely = (rate >= 0.5) & (rank < self._rank[ids])
        self.likely[ids[likely]] = x[likely]
        self._rank[ids[likely]] = rank[likely]
        return decisions.accepted


def first_of_each(sorted_ids: Tensor) -> Tensor:
    """True (N,) at the first of each run of equal ids."""
    first = torch.ones_like(sorted_ids, dtype=torch.bool)
    first[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return first
