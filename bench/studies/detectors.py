"""Detection of adversarial examples by a defense's score, and an attack on defense and detector together.

The detector is a logistic regression on the scores of clean images and of their adversarial examples (Maggipinto, Terzi
& Susto 2020, section 6.1). An attacker who knows the detector searches for an image that is misclassified and accepted.
The search is selective projected gradient descent (Bryniarski, Hingun, Pachuca, Wang & Carlini 2022, "Evading
adversarial example detection defenses with orthogonal projected gradient descent", section 3). Each step follows the
gradient of the model that is not fooled yet, classifier or detector. No step is spent on a model already fooled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bench.contracts.ascent import ascend
from bench.contracts.norms import Norm
from bench.engine.oracle import DefenseOracle


@dataclass(frozen=True)
class Detector:
    """A logistic regression in one variable, the defense's detection score.

    Attributes:
        weight: factor of the score.
        bias: offset of the log-odds.
    """

    weight: float
    bias: float

    def suspicion(self, scores: Tensor) -> Tensor:
        """Returns the log-odds (N,) that images with scores (N,) are adversarial. An image above 0 is refused."""
        return self.weight * scores + self.bias


def fit_detector(clean: Tensor, adversarial: Tensor) -> Detector:
    """Fits the logistic regression to the scores of clean images (N,) and of adversarial examples (M,).

    Both classes have the same total weight for every N and M.

    Raises:
        ValueError: without clean images, without adversarial examples, or when a score is not finite.
    """
    if not len(clean) or not len(adversarial):
        raise ValueError("a detector is fitted to clean images and adversarials, and there are none of one kind")
    scores = torch.cat([clean, adversarial]).double().cpu()
    if not bool(scores.isfinite().all()):
        raise ValueError("a detection score is not finite")
    # The regression's penalty on the weight must not depend on the scores' unit.
    center, scale = scores.mean(), scores.std(correction=0).clamp_min(1e-12)
    kinds = [0] * len(clean) + [1] * len(adversarial)
    fitted = LogisticRegression(class_weight="balanced").fit(((scores - center) / scale)[:, None].numpy(), kinds)
    weight = float(fitted.coef_[0, 0]) / float(scale)
    return Detector(weight, float(fitted.intercept_[0]) - weight * float(center))


def mislead(oracle: DefenseOracle, x: Tensor, y: Tensor, ids: Tensor, *, start: Tensor, steps: int) -> Tensor:
    """Maximizes the `margin` by projected gradient ascent, without knowledge of a detector.

    The ascent always takes all steps. The step size shrinks linearly from 2.5 epsilon / steps to a tenth of that value.

    Args:
        oracle: answers the queries, for a bounded threat model in L2 or Linf.
        x: clean images (N, C, H, W), the centers of the balls.
        y: classes (N,) of the images.
        ids: samples (N,) of the images.
        start: first iterates (N, C, H, W).
        steps: number of gradient steps.

    Returns:
        The iterates (N, C, H, W) with the largest margins. The last iterates are not considered.
    """
    best, highest = start.clone(), torch.full((len(x),), -torch.inf, device=x.device)

    def gradient(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        slope, logits = oracle.gradient(z[rows], y[rows], margin, ids[rows])
        reached = margin(logits, y[rows])
        better = reached > highest[rows]
        best[rows[better]], highest[rows[better]] = z[rows[better]], reached[better]
        return rows, slope.nan_to_num(0, 0, 0)

    norm, radius = _ball(oracle)
    ascend(gradient, x, norm, radius, start=start, lengths=_shrinking(2.5 * radius, steps))
    return best


def evade(
    oracle: DefenseOracle, x: Tensor, y: Tensor, ids: Tensor, detector: Detector, *, start: Tensor, steps: int
) -> Tensor:
    """Attacks defense and detector by selective projected gradient descent.

    Images that are misclassified and accepted do not change any more. The steps serve two objectives and are therefore
    twice as long as in `mislead`. `mislead` describes the other arguments.

    Returns:
        The last iterates (N, C, H, W).
    """

    def gradient(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        slope, logits = oracle.gradient(z[rows], y[rows], margin, ids[rows])
        rise, scores = oracle.detection_gradient(z[rows], ids[rows])
        wrong = oracle.reached(logits, ids[rows])
        slope = torch.where(wrong.reshape(-1, 1, 1, 1), -detector.weight * rise, slope)
        unfinished = ~wrong | (detector.suspicion(scores) > 0)
        return rows[unfinished], slope[unfinished].nan_to_num(0, 0, 0)

    norm, radius = _ball(oracle)
    last, _ = ascend(gradient, x, norm, radius, start=start, lengths=_shrinking(5 * radius, steps))
    return last


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Returns the margin (N,) of logits (N, K): the largest logit of another class minus the logit of class ``y``.

    Unlike the cross-entropy, the margin never saturates.
    """
    others = logits.scatter(1, y[:, None], -torch.inf).max(1).values
    return others - logits.gather(1, y[:, None])[:, 0]


def _ball(oracle: DefenseOracle) -> tuple[Norm, float]:
    assert oracle.threat.epsilon is not None
    return oracle.threat.norm, oracle.threat.epsilon


def _shrinking(path: float, steps: int) -> list[float]:
    """Returns step sizes that shrink from path / steps towards a tenth of that value."""
    return [path / steps * (1 - 0.9 * step / steps) for step in range(steps)]
