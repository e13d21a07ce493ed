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
from bench.engine.lanes import Lanes


class QueriedDefense:
    """Answers about images (N, C, H, W) of the samples ``ids`` (N,).

    Args:
        defense: the defense.
        noise: the streams that a randomized defense draws from, one per sample.
        goal: what the attack is after. An answer that is missing or not finite does not reach it.
        y: labels (n,) of the samples.
        classes: number of classes.
        unrolled: whether derivatives go through the defense's own optimization, too.
        warm: what is remembered of the samples for faster answers; None for exact ones. Derivatives through the
            optimization are exact.

    Attributes:
        draws: over how many draws the answers of a randomized defense are averaged.
    """

    def __init__(
        self,
        defense: Defense,
        noise: Streams,
        goal: Goal,
        y: Tensor,
        classes: int,
        *,
        unrolled: bool,
        warm: Lanes | None = None,
    ) -> None:
        self.draws = DRAWS
        self.card, self.warm = defense.card, None if unrolled else warm
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

    def _asked(self, ids: Tensor, passes: int, wanted: Tensor | None = None) -> Defense:
        """Returns what answers about samples in some passes: warm, if it can.

        The attack needs the classes ``wanted`` (N, M), besides the samples' own.
        """
        if self.warm is None:
            return self._defense
        own = self._y[ids, None]
        return self.warm.at(ids, own if wanted is None else torch.cat([own, wanted], 1), passes)

    def predict(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns the classes (N,) that one draw names, exactly."""
        return self._drawn(self._defense, x, ids)

    def decide(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns the classes (N,) that a deterministic defense names, exactly."""
        return self._decided(self._defense, x, ids)

    def mean(self, x: Tensor, ids: Tensor, draws: int | None = None) -> Tensor:
        """Returns logits (N, K), averaged over ``draws``, by default the attack's own number.

        A stated number of draws is exact.
        """
        return self.finite(self.logits(x, ids, draws), ids)

    def logits(self, x: Tensor, ids: Tensor, draws: int | None = None) -> Tensor:
        """Returns the logits (N, K) of `mean` as the defense gives them."""
        asked = self._asked(ids, self.passes) if draws is None else self._defense
        return mean_logits(asked, x, self._noise.rows(ids), draws or self.draws)

    def majority(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns the class (N,) that most draws decide for."""
        asked = self._asked(ids, self.passes)
        if self.card.randomized:
            drawn = torch.stack([self._drawn(asked, x, ids) for _ in range(self.draws)])
            return nn.functional.one_hot(drawn, self._classes).sum(0).argmax(1)
        return self._decided(asked, x, ids)

    def linearize(self, x: Tensor, ids: Tensor, wanted: Tensor | None = None) -> tuple[Tensor, VectorJacobian]:
        """Returns logits (N, K) as the defense gives them, averaged over draws, and their vector-Jacobian product.

        The attack needs the classes ``wanted`` (N, M) besides the samples' own.
        """
        asked = self._asked(ids, self.passes, wanted)
        return linearize(asked, x, self._noise.rows(ids), self.draws, unrolled=self._unrolled)

    def _drawn(self, asked: Defense, x: Tensor, ids: Tensor) -> Tensor:
        return self.finite(drawn_logits(asked, x, self._noise.rows(ids)), ids).argmax(1)

    def _decided(self, asked: Defense, x: Tensor, ids: Tensor) -> Tensor:
        if isinstance(self._defense, HasDecision) and isinstance(asked, HasDecision):
            return decisions(asked, x)
        return self._drawn(asked, x, ids)

    def reconstruct(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """Returns reconstructions (N, C, H, W) under the classes ``y`` (N,), or of the image, if it knows no others."""
        asked = self._asked(ids, 1, y[:, None])
        if isinstance(asked, HasReconstruction):
            return reconstructions(asked, x, y).detach()
        return decoded_images(cast(HasDecodedImage, self._defense), x).detach()

    def detection_score(self, x: Tensor) -> Tensor:
        """Returns how suspicious the defense finds the images (N,); differentiable in ``x``."""
        if not isinstance(self._defense, HasDetectionScore):
            raise AccessDenied("the defense has no detection score")
        return detection_scores(self._defense, x)
