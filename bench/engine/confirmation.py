"""Confirmation: asks again before an answer counts as adversarial, of a randomized defense or if it is approximate.

Without confirmation, the minimum over thousands of noisy answers would select false positives. Confirmation is a
heuristic that steers attacks, with the judge's test and aim. No verdict rests on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.engine.judge import AIM
from bench.engine.verdicts import SequentialTest, decide

CONFIRMATION = SequentialTest(null=0.5, alternative=AIM, beta=0.1, max_draws=60)
"""Confirms half of the images with P = `AIM`, and one of 200 with P = 1/2."""
CONFIRMATION_ALPHA = 0.01


class Confirmation:
    """Confirms images of one chunk of samples, and remembers the likeliest image of each sample.

    Args:
        predict: one draw of the defense: maps images (N, C, H, W) of the samples ``ids`` (N,) to classes (N,).
        x: clean images (n, C, H, W).
        y: labels (n,) of the clean images.
        bounded: whether the images lie in a ball. The surest image is then worth most, otherwise the nearest.

    Attributes:
        likely: (n, C, H, W) per sample, the nearest or surest image that at least half of its draws misclassified; the
            clean image if there is none.
    """

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, bounded: bool) -> None:
        self.likely = x.clone()
        self._rank = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self._predict, self._y, self._bounded = predict, y, bounded

    def confirm_nearest(self, x: Tensor, distances: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the nearest confirmed row of each sample, and the nearer rows that were not confirmed.

        The ``rows`` name images of ``x`` (N, C, H, W), sorted by sample and distance.
        """
        return _first_that_hold(lambda nearest: self._holds(x[nearest], distances[nearest], ids[nearest]), ids, rows)

    def _holds(self, x: Tensor, distances: Tensor, ids: Tensor) -> Tensor:
        """Returns which images (N,), one per sample, are confirmed as misclassified by most draws."""

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


class ExactCheck:
    """Checks approximate answers of a deterministic defense by exact ones, as `Confirmation` does by draws.

    Args:
        adversarial: maps images (N, C, H, W) of the samples ``ids`` (N,) to whether they are adversarial (N,).
    """

    def __init__(self, adversarial: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._adversarial = adversarial

    def confirm_nearest(self, x: Tensor, distances: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Confirmation.confirm_nearest`."""
        return _first_that_hold(lambda nearest: self._adversarial(x[nearest], ids[nearest]), ids, rows)


def _first_that_hold(holds: Callable[[Tensor], Tensor], ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first of each sample's rows that holds, and the rows before it, which do not."""
    confirmed, refuted = [], []
    while len(rows):
        first = first_of_each(ids[rows])
        nearest = rows[first]
        held = holds(nearest)
        confirmed.append(nearest[held])
        refuted.append(nearest[~held])
        rows = rows[~first & torch.isin(ids[rows], ids[nearest[~held]])]
    return torch.cat([rows, *confirmed]), torch.cat([rows, *refuted])


def first_of_each(sorted_ids: Tensor) -> Tensor:
    """Returns True (N,) at the first of each run of equal ids."""
    first = torch.ones_like(sorted_ids, dtype=torch.bool)
    first[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return first
