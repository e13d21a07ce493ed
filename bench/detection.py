"""Detection of adversarials by a defense's score, and an attack on defense and detector together.

The detector is a logistic regression on the scores of clean images and of their adversarials (Maggipinto, Terzi & Susto
2020, section 6.1). An attacker who knows it looks for an image that is misclassified and accepted, by selective
projected gradient descent (Bryniarski, Hingun, Pachuca, Wang & Carlini 2022, "Evading adversarial example detection
defenses with orthogonal projected gradient descent", section 3): each step follows the gradient of the one of the two
that is not fooled yet, so that neither is paid for twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bench.door import NO_DRAWS, drawn_logits, linearize
from bench.norms import Norm
from bench.protocols import Defense, HasDetectionScore
from bench.threat import project


@dataclass(frozen=True)
class Detector:
    """A logistic regression in one variable.

    Attributes:
        defense: gives the scores.
        weight: of the score.
        bias: added to it.
    """

    defense: HasDetectionScore
    weight: float
    bias: float

    def suspicion(self, x: Tensor) -> Tensor:
        """The log-odds (N,) that images (N, C, H, W) are adversarial; above 0 they are refused."""
        return self.weight * self.defense.detection_score(x) + self.bias

    def linearize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Suspicion (N,) and its gradient (N, C, H, W)."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            suspicion = self.suspicion(leaf)
            (gradient,) = torch.autograd.grad(suspicion.sum(), leaf)
        return suspicion.detach(), gradient


def fit_detector(defense: HasDetectionScore, clean: Tensor, adversarial: Tensor) -> Detector:
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
    return Detector(defense, weight, float(fitted.intercept_[0]) - weight * float(center))


@torch.no_grad()
def pgd(
    defense: Defense,
    x: Tensor,
    y: Tensor,
    norm: Norm,
    epsilon: float,
    *,
    start: Tensor,
    steps: int,
    detector: Detector | None = None,
) -> Tensor:
    """Images (N, C, H, W) after projected gradient descent from ``start`` (N, C, H, W) in the ball of radius
    ``epsilon`` around ``x`` (N, C, H, W), of classes ``y`` (N,).

    Without a detector it knows nothing of one, takes all its steps, along the gradient of the margin (the largest logit
    of another class minus that of ``y``, which unlike the cross-entropy never saturates), and gives the image with the
    largest that it met before the last. With a detector it is
    selective, and images that are misclassified and accepted stay as they are. Steps shrink from 2.5 epsilon / steps,
    or twice that with a detector, as they serve two purposes, to a tenth of it.

    Args:
        defense: deterministic, gives gradients.
        norm: L2 or Linf.
        steps: gradient steps.
    """
    current, working = start.clone(), torch.arange(len(x), device=x.device)
    best, best_margin = start.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    first = (2.5 if detector is None else 5.0) * epsilon / steps
    for step in range(steps):
        images, labels = current[working], y[working]
        logits, vector_jacobian = linearize(defense, images, NO_DRAWS, draws=1)
        others, rival = logits.scatter(1, labels[:, None], -torch.inf).max(1)
        sides = torch.nn.functional.one_hot(torch.stack([rival, labels]), logits.shape[1]).to(logits.dtype)
        gradient = vector_jacobian(sides[0] - sides[1])
        if detector is not None:
            suspicion, rise = detector.linearize(images)
            wrong = logits.argmax(1) != labels
            gradient = torch.where(wrong.reshape(-1, 1, 1, 1), -rise, gradient)
            unfinished = ~wrong | (suspicion > 0)
            working, images, gradient = working[unfinished], images[unfinished], gradient[unfinished]
            if not len(working):
                break
        else:
            margin = others - logits.gather(1, labels[:, None])[:, 0]
            better = margin > best_margin
            best[better], best_margin[better] = images[better], margin[better]
        moved = images + first * (1 - 0.9 * step / steps) * _steepest(gradient, norm)
        current[working] = project(moved, x[working], norm, epsilon)
    return current if detector is not None else best


@torch.no_grad()
def predictions(defense: Defense, x: Tensor) -> Tensor:
    """Classes (N,) that a deterministic defense gives to images (N, C, H, W)."""
    return drawn_logits(defense, x, NO_DRAWS).argmax(1)


def _steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of length 1 in ``norm`` along which a function of this gradient rises fastest; 0 where that is 0 or
    not finite."""
    gradient = gradient.nan_to_num(0, 0, 0)
    if norm == "Linf":
        return gradient.sign()
    length = gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return cast(Tensor, gradient / length.clamp_min(1e-30))
