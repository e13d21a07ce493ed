"""Claims: the queries whose answers are adversarial, of which the closest one of each sample is remembered.

Before that, a claim about a randomized defense is confirmed by further draws, and one that rests on a warm answer by an
exact decision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.chunk import Chunk
from bench.contracts.goals import Misclassified
from bench.contracts.threat import ThreatModel, snap_to_threshold
from bench.engine.closest import ClosestFound, nearest_first
from bench.engine.confirmation import Confirmation, ExactCheck, first_of_each
from bench.engine.meter import Meter
from bench.engine.queried import QueriedDefense

FRESH_DRAWS = 100
"""Draws over which an answer of a randomized defense is averaged anew that reaches a goal other than misclassification.
"""


class Claims:
    """Watches the answers about one chunk of samples.

    Args:
        chunk: the clean images, with their labels.
        threat: the threat model under attack.
        queried: answers about the samples.
        meter: counts what further questions cost.

    Attributes:
        closest: the closest adversarial example of each sample so far.
    """

    def __init__(self, chunk: Chunk, threat: ThreatModel, queried: QueriedDefense, meter: Meter) -> None:
        self.closest = ClosestFound(chunk.images)
        self._x, self._y, self._threat, self._goal = chunk.images, chunk.labels, threat, threat.goal
        self._queried, self._meter = queried, meter
        self._refuted: list[Tensor] = []
        self._confirmation: Confirmation | ExactCheck | None = None
        if queried.card.randomized and isinstance(self._goal, Misclassified):
            bounded = threat.epsilon is not None
            self._confirmation = Confirmation(self._draw, chunk.images, chunk.labels, bounded=bounded)
        elif queried.warm is not None:
            self._confirmation = ExactCheck(self._exactly_adversarial)

    def seen(self) -> list[Tensor]:
        """Returns images (n, C, H, W) for the judge; see `bench.engine.oracle.DefenseOracle.seen`."""
        likely = [self._confirmation.likely] if isinstance(self._confirmation, Confirmation) else []
        return [self.closest.images, *likely]

    @torch.no_grad()
    def observed(self, x: Tensor, answers: Tensor, ids: Tensor) -> Tensor:
        """Remembers the rows that are adversarial, in bounds and closer than what their sample had.

        Returns the answers, classes (N,) or logits (N, K). They name the true class where a confirmation refutes them,
        and for a clean image, which is classified correctly in the judge's batches whatever happens in others, unless
        the goal may be reached from the start.
        """
        rows = self._goal.reached(answers, self._y[ids]).nonzero()[:, 0]
        if len(rows) and self._queried.card.randomized and self._confirmation is None:
            answers = answers.index_copy(0, rows, self._fresh(x[rows], ids[rows]))
            rows = rows[self._goal.reached(answers[rows], self._y[ids[rows]])]
        if not len(rows):
            return answers
        x, all_ids, ids = x[rows].detach(), ids, ids[rows]
        if (threshold := self._queried.card.binarization_threshold) is not None:
            x = snap_to_threshold(x, self._x[ids], threshold)
        distances = self._threat.distance(x, self._x[ids])
        clean = (distances == 0) & (not self._goal.from_start)
        if clean.any():
            answers = self._unbroken(answers, rows[clean], all_ids)
        closer = ~clean & self._threat.allows(distances) & (distances < self.closest.distance[ids])
        pixels = x.flatten(1)
        # ``aminmax`` is slower along rows.
        closer_rows = (closer & (pixels.amin(1) >= 0) & (pixels.amax(1) <= 1)).nonzero()[:, 0]
        if not len(closer_rows):
            return answers
        by_sample = nearest_first(closer_rows, distances, ids)
        if self._confirmation is None:
            winners = by_sample[first_of_each(ids[by_sample])]
        else:
            winners, refuted = self._confirmation.confirm_nearest(x, distances, ids, by_sample)
            answers = self._unbroken(answers, rows[refuted], all_ids)
            if isinstance(self._confirmation, ExactCheck):
                self._refuted.append(ids[refuted])
        self.closest.keep(x[winners], distances[winners], ids[winners], self._meter)
        return answers

    def settle(self) -> None:
        """Ends a query: what the defense remembers of the samples changes, and where it was wrong, it is dropped."""
        warm = self._queried.warm
        if warm is not None:
            warm.settle()
            for ids in self._refuted:
                warm.forget(ids)
        self._refuted.clear()

    def _unbroken(self, answers: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """The answers, changed in ``rows`` as little as makes them name the true class."""
        changed, y = answers.clone(), self._y[ids[rows]]
        if answers.dim() == 1:
            changed[rows] = y
        else:
            highest = answers[rows].amax(1)
            changed[rows, y] = torch.nextafter(highest, torch.full_like(highest, torch.inf))
        return changed

    def _exactly_adversarial(self, x: Tensor, ids: Tensor) -> Tensor:
        """Whether images (N, C, H, W), one for each sample, are adversarial by exact decisions; counted."""
        self._meter.pay(ids, forwards=1)
        batches = zip(torch.split(x, self._meter.batch_size), torch.split(ids, self._meter.batch_size), strict=True)
        return torch.cat([self._goal.reached(self._queried.decide(*batch), self._y[batch[1]]) for batch in batches])

    def _fresh(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, K) averaged over further draws of a randomized defense; counted."""
        self._meter.pay(ids, forwards=FRESH_DRAWS)
        return self._queried.mean(x, ids, FRESH_DRAWS)

    def _draw(self, x: Tensor, ids: Tensor) -> Tensor:
        """The classes (N,) that one further draw each of a randomized defense names; counted."""
        self._meter.pay(ids, forwards=1)
        batches = zip(torch.split(x, self._meter.batch_size), torch.split(ids, self._meter.batch_size), strict=True)
        return torch.cat([self._queried.predict(*batch) for batch in batches])
