"""Distal adversarials: meaningless images with high confidence (Schott et al. 2019, section 7).

Gradient ascent starts from random noise and increases the confidence in a fixed class. The ascent ends when the goal
`bench.contracts.goals.Confident` is reached. The reader must judge by eye whether the images look like their class.
`bench.contracts.confidence` makes the confidences of classifiers comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.chunk import Chunk
from bench.contracts.confidence import Calibration
from bench.contracts.goals import Confident
from bench.contracts.oracle import DRAWS, Loss
from bench.contracts.protocols import Defense
from bench.contracts.streams import Streams
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.studies.queries import study_oracle

STEPS = 200
STEP_SIZE = 0.01
"""Step size: the root mean square of the change in pixel values per step. A root mean square suits every image size. On
MNIST, this step size is an L2 distance of 0.28."""


@dataclass(frozen=True)
class Distal:
    """The result of gradient ascent from M noise images.

    Attributes:
        images: (M, C, H, W) float32 in [0, 1]. The first iterate that reached the confidence, otherwise the most
            confident one.
        targets: classes (M,) int64 of the ascent.
        confidences: confidences in the targets (M,) float64.
        steps: steps (M,) int64 to the first image that reached the confidence, otherwise all steps.
        oracle: answered the queries and holds their costs per image.
    """

    images: Tensor
    targets: Tensor
    confidences: Tensor
    steps: Tensor
    oracle: DefenseOracle

    @property
    def reached(self) -> Tensor:
        """Returns True (M,) where the oracle saw an image that reaches the confidence."""
        return self.oracle.found


@torch.no_grad()
def distal_adversarials(
    defense: Defense,
    classes: int,
    shape: Sequence[int],
    calibration: Calibration,
    *,
    per_class: int,
    steps: int = STEPS,
    step_size: float = STEP_SIZE,
    draws: int = DRAWS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Distal:
    """Ascends from uniform noise to a confidence of 0.9 in each class.

    The steps have a fixed size and follow the gradient of `evidence`. Each step is projected into [0, 1]. Image i has
    class i modulo ``classes`` and its own random streams. Therefore an image does not depend on the other images or on
    their number. Only the rounding of forward passes depends on the number of rows. Images that reach the confidence
    leave the working set.

    For a randomized defense, the logits are averaged. The confidence of an image that reaches 0.9 is measured again on
    fresh draws, as many as the engine's verdicts take. The ascent continues where these draws refute the confidence.

    Args:
        defense: a defense with gradients on ``device``, queried in batches of its card's size.
        classes: number of classes K.
        shape: shape of an image, (C, H, W).
        calibration: calibration of the defense's confidence on clean images.
        per_class: number of images per class. M is K times this number.
        steps: maximum number of steps per image.
        step_size: see `STEP_SIZE`.
        draws: number of draws over which the logits of a randomized defense are averaged in each step.
        seed: seed of all streams.
        device: device of the defense and of the result.
    """
    targets = torch.arange(classes * per_class, device=device) % classes
    x = Streams(seed, range(len(targets)), "distal start", device).uniform(torch.arange(len(targets)), shape)
    goal = Confident(calibration)
    oracle = study_oracle(
        defense,
        "gradient",
        ThreatModel("L2"),
        Chunk(x, targets, range(len(targets)), classes),
        seed=seed,
        purpose="distal",
        goal=goal,
    )
    oracle.draws = draws
    best = Distal(
        x.clone(), targets, torch.zeros_like(targets, dtype=torch.float64), torch.full_like(targets, steps), oracle
    )
    for step in range(steps + 1):
        rows = oracle.ids[~oracle.found]
        if not len(rows):
            break
        gradient, logits = oracle.gradient(x[rows], targets[rows], evidence(calibration), rows)
        _keep_better(best, rows, x[rows], goal.confidence(logits, targets[rows]))
        best.steps[rows[oracle.found[rows]]] = step
        x[rows] = _moved(x[rows], gradient, step_size)
    return best


def evidence(calibration: Calibration) -> Loss:
    """Returns the objective of the ascent, (log q) / alpha, as a function of logits l (N, K) and targets y (N,).

    The confidence is p = q + eta / S, where q = exp(alpha l_y) / S and S = sum of (exp(alpha l_c) + eta) over classes
    c. The term q is the part of the confidence that the image itself supports.

    The confidence p is a misleading objective far from the data. There p falls short of 1 / K only by what the
    likeliest classes take away. Noise that resembles another class more than the target moves away from both classes,
    until p is exactly 1 / K. The logarithm preserves a gradient where another class is certain and q vanishes. Where p
    reaches 0.9, p exceeds q by at most 1 / (10 (K - 1)).
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        own = logits.double().gather(1, targets[:, None])[:, 0]
        return own - calibration.log_evidence(logits).logsumexp(1) / calibration.alpha

    return loss


def _keep_better(best: Distal, rows: Tensor, x: Tensor, confidence: Tensor) -> None:
    """Replaces ``rows`` (N,) of the best images by images of ``x`` (N, C, H, W) with higher confidence.

    An image with NaN confidence is never used.
    """
    better = confidence > best.confidences[rows]
    rows = rows[better]
    best.images[rows], best.confidences[rows] = x[better], confidence[better]


def _moved(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Returns images (N, C, H, W) after one step along the gradient, clamped to [0, 1].

    An image does not move if its gradient is zero or not finite.
    """
    # Many noise pixels soon lie at the bounds. Pixels that cannot move must not use up the step size.
    stuck = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    gradient = gradient.masked_fill(stuck, 0)
    size = gradient.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1)
    usable = (size > 0) & size.isfinite()
    return torch.where(usable, x + step_size * gradient / size, x).clamp(0, 1)
