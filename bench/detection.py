"""Detection of adversarials by a defense's score, and an attack on defense and detector together.

The detector is a logistic regression on the scores of clean images and of their adversarials (Maggipinto, Terzi & Susto
2020, section 6.1). An attacker who knows it looks for an image that is misclassified and accepted, by selective
projected gradient descent (Bryniarski, Hingun, Pachuca, Wang & Carlini 2022, "Evading adversarial example detection
defenses with orthogonal projected gradient descent", section 3): each step follows the gradient of the one of the two
that is not fooled yet, so that neither is paid for twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bench.ascent import ascend
from bench.norms import Norm
from bench.oracle import Oracle


@dataclass(frozen=True)
class Detector:
    """A logistic regression in one variable, a defense's detection score.

    Attributes:
        weight: of the score.
        bias: added to it.
    """

    weight: float
    bias: float

    def suspicion(self, scores: Tensor) -> Tensor:
        """The log-odds (N,) that images with these scores (N,) are adversarial; above 0 they are refused."""
        return self.weight * scores + self.bias


def fit_detector(clean: Tensor, adversarial: Tensor) -> Detector:
    """Fits the logistic regression to scores (N,) of clean images and (M,) of adversarials, both kinds weighing the
    same however many they are.

    Raises:
        ValueError: without clean images or without adversarials, or when a score is not finite.
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


def mislead(oracle: Oracle, x: Tensor, y: Tensor, ids: Tensor, *, start: Tensor, steps: int) -> Tensor:
    """Projected gradient ascent of the `margin` by an attacker who knows no detector.

    It takes all its steps, of lengths that shrink from 2.5 epsilon / steps to a tenth of it.

    Args:
        oracle: of a bounded threat model in L2 or Linf; answers the queries.
        x: clean images (N, C, H, W), the balls' centers.
        y: their classes (N,).
        ids: their samples (N,).
        start: first iterates (N, C, H, W).
        steps: gradient steps.

    Returns:
        The iterates (N, C, H, W) with the largest margins, of those before the last.
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
    oracle: Oracle, x: Tensor, y: Tensor, ids: Tensor, detector: Detector, *, start: Tensor, steps: int
) -> Tensor:
    """Selective projected gradient descent by an attacker who knows the detector.

    Images that are misclassified and accepted stay as they are. As the steps serve two purposes, they are twice as long
    as those of `mislead`, which see for the arguments.

    Returns:
        The last iterates (N, C, H, W).
    """

    def gradient(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        slope, logits = oracle.gradient(z[rows], y[rows], margin, ids[rows])
        rise, scores = oracle.detection_gradient(z[rows], ids[rows])
        wrong = logits.argmax(1) != y[rows]
        slope = torch.where(wrong.reshape(-1, 1, 1, 1), -detector.weight * rise, slope)
        unfinished = ~wrong | (detector.suspicion(scores) > 0)
        return rows[unfinished], slope[unfinished].nan_to_num(0, 0, 0)

    norm, radius = _ball(oracle)
    last, _ = ascend(gradient, x, norm, radius, start=start, lengths=_shrinking(5 * radius, steps))
    return last


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of another class minus that of ``y``, (N,) of logits (N, K): unlike the cross-entropy it never
    saturates."""
    others = logits.scatter(1, y[:, None], -torch.inf).max(1).values
    return others - logits.gather(1, y[:, None])[:, 0]


def _ball(oracle: Oracle) -> tuple[Norm, float]:
    assert oracle.threat.epsilon is not None
    return oracle.threat.norm, oracle.threat.epsilon


def _shrinking(path: float, steps: int) -> list[float]:
    """Lengths of steps, from path / steps to a tenth of it."""
    return [path / steps * (1 - 0.9 * step / steps) for step in range(steps)]
