"""Distal adversarials: images that a classifier is sure of and that look like nothing (Schott et al. 2019, section 7).

From random noise, gradient ascent in the confidence in a fixed class, until the goal `bench.goals.Confident` is
reached. Whether the images found look like their class is for the eye to judge; `bench.confidence` makes the
confidences of classifiers comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.confidence import Calibration
from bench.goals import Confident
from bench.oracle import DRAWS, Loss, Oracle
from bench.protocols import Defense
from bench.randomness import Streams
from bench.study_queries import study_oracle
from bench.threat import ThreatModel

STEPS = 200
STEP_SIZE = 0.01
"""Root mean square of the changes that a step makes to an image's values, so that it suits every image size; an L2
distance of 0.28 on MNIST."""


@dataclass(frozen=True)
class Distal:
    """What gradient ascent made of M noise images.

    Attributes:
        images: (M, C, H, W) float32 in [0, 1]: the first that reached the confidence, otherwise the surest.
        targets: the classes (M,) int64 they ascended to.
        confidences: in the targets (M,) float64.
        steps: taken (M,) int64, up to the first image that reached the confidence or all.
        oracle: answered, and knows what that cost per image.
    """

    images: Tensor
    targets: Tensor
    confidences: Tensor
    steps: Tensor
    oracle: Oracle

    @property
    def reached(self) -> Tensor:
        """True (M,) where the oracle saw an image that reaches the confidence."""
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
    """Ascends from uniform noise to confidences of 0.9 in each class, by steps of fixed length along the gradient of
    `cotangent`'s objective, projected into [0, 1].

    Image i has class i modulo ``classes`` and random streams of its own, so that neither the other images nor their
    number make a difference to it (but for the rounding of forward passes, which depends on the rows they have). Images
    that have arrived leave the working set.

    Of a randomised defense, logits are averaged. The confidence of an image that reaches 0.9 is measured again on as
    many fresh draws as the engine's verdicts take, and the ascent goes on where these refute it.

    Args:
        defense: one that gives gradients, on ``device``; asked in batches of its card's size.
        classes: number of classes K.
        shape: of an image, (C, H, W).
        calibration: of the defense's confidence, on clean images.
        per_class: images of each class; M is K times as many.
        steps: after which an image is given up.
        step_size: see `STEP_SIZE`.
        draws: over which the logits of a randomised defense are averaged in each step.
        seed: of all streams.
        device: of the defense and of what is returned.
    """
    targets = torch.arange(classes * per_class, device=device) % classes
    keys = range(len(targets))
    x = Streams(seed, keys, "distal start", device).uniform(torch.arange(len(targets)), shape)
    goal = Confident(calibration)
    oracle = study_oracle(
        defense,
        "gradient",
        ThreatModel("L2"),
        x,
        targets,
        classes,
        seed=seed,
        keys=keys,
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
    """What the ascent increases, of logits l (N, K) and targets y (N,): log q over alpha, where
    q = exp(alpha l_y) / sum of (exp(alpha l_c) + eta) over classes c is the part of the confidence
    p = q + eta / (the same sum) that the image itself gives reason for.

    p itself misleads the ascent far from the data, where it is 1 / K but for what the likeliest classes take away:
    noise that resembles another class more than the target moves away from both, until p is 1 / K exactly. The
    logarithm keeps a direction where another class is certain and q vanishes. Where p reaches 0.9, it exceeds q by at
    most 1 / (10 (K - 1)).
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        own = logits.double().gather(1, targets[:, None])[:, 0]
        return own - calibration.log_evidence(logits).logsumexp(1) / calibration.alpha

    return loss


def _keep_better(best: Distal, rows: Tensor, x: Tensor, confidence: Tensor) -> None:
    """Enters into ``rows`` (N,) of the best images those of ``x`` (N, C, H, W) that are surer; never one of unknown
    confidence."""
    better = confidence > best.confidences[rows]
    rows = rows[better]
    best.images[rows], best.confidences[rows] = x[better], confidence[better]


def _moved(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Images (N, C, H, W) a step along the gradient, within [0, 1]; where they are if it is zero or not finite."""
    # Values that cannot move take no share of the step's length: noise soon lies at the bounds in many of them.
    stuck = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    gradient = gradient.masked_fill(stuck, 0)
    size = gradient.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1)
    usable = (size > 0) & size.isfinite()
    return torch.where(usable, x + step_size * gradient / size, x).clamp(0, 1)
