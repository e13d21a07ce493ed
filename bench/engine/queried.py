"""A defense as an oracle asks it: averaged over draws, with an answer for every row."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from bench.contracts.door import (
    decisions,
    decoded_images,
    detection_scores,
    drawn_logits,
    linearize,
    mean_logits,
    reconstructions,
)
from bench.contracts.goals import Goal
from bench.contracts.oracle import DRAWS, AccessDenied
from bench.contracts.protocols import (
    Defense,
    HasDecision,
    HasDecodedImage,
    HasDetectionScore,
    HasReconstruction,
    VectorJacobian,
)
from bench.contracts.streams import Streams


class QueriedDefense:
    """Answers about images (N, C, H, W) of the samples ``ids`` (N,).

    Args:
        defense: the defense.
        noise: the streams that a randomized defense draws from, one per sample.
        goal: what the attack is after. An answer that is missing or not finite does not reach it.
        y: labels (n,) of the samples.
        classes: number of classes.
        unrolled: whether derivatives go through the defense's own optimization, too.

    Attributes:
        draws: over how many draws the answers of a randomized defense are averaged.
    """

    def __init__(
        self, defense: Defense, noise: Streams, goal: Goal, y: Tensor, classes: int, *, unrolled: bool
    ) -> None:
        self.draws = DRAWS
        self.card = defense.card
        self._defense, self._noise, self._goal, self._y = defense, noise, goal, y
        self._classes, self._unrolled = classes, unrolled

    @property
    def passes(self) -> int:
        """Forward passes that an answer takes."""
        return self.draws if self.card.randomized else 1

    def refusal(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns logits (N, K) that do not reach the goal: the answer to rows that are not evaluated."""
        return self._goal.refusal(self._y[ids], self._classes).to(x.dtype)

    def finite(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Returns the logits (N, K), with refusals in rows that are not finite: an error is no adversarial example."""
        good = torch.isfinite(logits).all(1)
        return logits if good.all() else torch.where(good[:, None], logits, self.refusal(logits, ids))

    def predict(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns the classes (N,) that one draw names."""
        return self.finite(drawn_logits(self._defense, x, self._noise.rows(ids)), ids).argmax(1)

    def mean(self, x: Tensor, ids: Tensor, draws: int | None = None) -> Tensor:
        """Returns logits (N, K), averaged over ``draws``, by default the attack's own number."""
        return self.finite(mean_logits(self._defense, x, self._noise.rows(ids), draws or self.draws), ids)

    def majority(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns the class (N,) that most draws decide for."""
        if self.card.randomized:
            drawn = torch.stack([self.predict(x, ids) for _ in range(self.draws)])
            return nn.functional.one_hot(drawn, self._classes).sum(0).argmax(1)
        return decisions(self._defense, x) if isinstance(self._defense, HasDecision) else self.predict(x, ids)

    def linearize(self, x: Tensor, ids: Tensor) -> tuple[Tensor, VectorJacobian]:
        """Returns logits (N, K) as the defense gives them, averaged over draws, and their vector-Jacobian product."""
        return linearize(self._defense, x, self._noise.rows(ids), self.draws, unrolled=self._unrolled)

    def unlabeled(self, x: Tensor) -> Tensor:
        """Returns the mean logits (N, K) of images whose samples nobody knows."""
        return mean_logits(self._defense, x, self._noise.rows(_no_ids(x)), self.draws)

    def linearize_unlabeled(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        """Returns what `linearize` does for images whose samples nobody knows."""
        return self.linearize(x, _no_ids(x))

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns reconstructions (N, C, H, W) under the classes ``y`` (N,), or of the image, if it knows no others."""
        if isinstance(self._defense, HasReconstruction):
            return reconstructions(self._defense, x, y).detach()
        return decoded_images(cast(HasDecodedImage, self._defense), x).detach()

    def detection_score(self, x: Tensor) -> Tensor:
        """Returns how suspicious the defense finds the images (N,); differentiable in ``x``."""
        if not isinstance(self._defense, HasDetectionScore):
            raise AccessDenied("the defense has no detection score")
        return detection_scores(self._defense, x)


def _no_ids(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)
