"""Confidence by the graded softmax, and its calibration (Schott et al. 2019, section 3, equation 4).

A softmax is confident in some class even when no class explains the image. The graded softmax adds the evidence eta to
every class. Its confidence is therefore uniform far from the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENT = 0.9
"""Median confidence in the predicted class on clean images after calibration (section 3). It is also the confidence
that a distal adversarial example must reach (section 7)."""
SCALES = (1e-3, 1e3)
"""Bounds of alpha times the mean absolute margin between the label's logit and the highest other logit."""
_NEGLIGIBLE = 50.0
"""Evidence that is exp(50) times smaller than other evidence is lost in float64's rounding."""


@dataclass(frozen=True)
class Calibration:
    """The two parameters of the graded softmax.

    Attributes:
        alpha: scale of the logits, > 0.
        log_eta: logarithm of the offset eta; minus infinity for a plain softmax. It is kept as a logarithm because eta
            is relative to exp(alpha l). Float64 cannot hold that for every classifier (log densities of -1000, say).
    """

    alpha: float
    log_eta: float

    @property
    def eta(self) -> float:
        """The offset of equation 4, >= 0; 0 or infinity where float64 cannot hold it."""
        return math.exp(self.log_eta) if self.log_eta < 709 else math.inf

    def log_evidence(self, logits: Tensor) -> Tensor:
        """Returns log(exp(alpha l) + eta), (N, K) float64, for logits l (N, K). It is finite where the logits are."""
        log_eta = torch.tensor(self.log_eta, dtype=torch.float64, device=logits.device)
        return torch.logaddexp(self.alpha * logits.double(), log_eta)

    def confidence(self, logits: Tensor) -> Tensor:
        """Returns the confidence (N, K) float64 in [0, 1] for logits l (N, K).

        The confidence is exp(alpha l) + eta, divided by its sum over classes.
        """
        return self.log_evidence(logits).softmax(1)


def graded_softmax(logits: Tensor, alpha: float, eta: float) -> Tensor:
    """Returns the graded softmax (N, K) of logits l (N, K), in their dtype (equation 4).

    It is exp(alpha l) + eta, divided by its sum over classes. It is uniform where no class explains the image. ``eta``
    is the evidence that every class has anyway.
    """
    log_eta = math.log(eta) if eta > 0 else -math.inf
    return Calibration(alpha, log_eta).confidence(logits).to(logits.dtype)


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Returns the graded softmax's parameters for a classifier (section 3 and appendix A.7).

    First, alpha minimizes the cross-entropy of softmax(alpha l). Then eta sets the median confidence in the predicted
    class, right or wrong, to 0.9. Three cases have no such solution:

    - If logits separate the classes perfectly, their cross-entropy falls without end. Then alpha is at the upper bound
      of `SCALES`.
    - If logits are no better than chance at any scale, alpha is at the lower bound.
    - If the median is below 0.9 without any offset, eta is 0.

    Args:
        logits: logits of clean images (N, K), averaged over draws for a randomized defense. Images with non-finite
            logits are left out.
        labels: classes of the images (N,) int64.

    Raises:
        ValueError: when no image has finite logits.
    """
    finite = logits.isfinite().all(1)
    if not finite.any():
        raise ValueError("calibration needs an image with finite logits")
    logits, labels = logits[finite].detach().cpu().double(), labels[finite].cpu()
    alpha = _scale(logits, labels)
    return Calibration(alpha, _offset(alpha, logits))


def _scale(logits: Tensor, labels: Tensor) -> float:
    """Returns alpha for logits (N, K) float64 and labels (N,): the root of the cross-entropy's derivative.

    The derivative grows with alpha because the cross-entropy is convex in alpha.
    """
    own = logits.gather(1, labels[:, None])
    # Differences from the label's logit avoid cancellation. No entry is positive if the classes are separated.
    relative = logits - own
    rivals = relative.scatter(1, labels[:, None], -torch.inf).amax(1)
    unit = float(rivals.abs().mean()) or 1.0

    def slope(log_scale: float) -> float:
        return float(((math.exp(log_scale) / unit * relative).softmax(1) * relative).sum(1).mean())

    low, high = (math.log(scale) for scale in SCALES)
    return math.exp(_root(slope, low, high)) / unit


def _offset(alpha: float, logits: Tensor) -> float:
    """Returns log eta for logits (N, K) float64.

    As eta grows, every image's confidence in its predicted class falls from the plain softmax's to 1 / K. So does the
    median.
    """

    def excess(log_eta: float) -> float:
        return float(Calibration(alpha, log_eta).confidence(logits).amax(1).quantile(0.5)) - CONFIDENT

    if excess(-math.inf) <= 0:
        return -math.inf
    highest = alpha * logits.amax(1)
    return _root(excess, float(highest.min()) - _NEGLIGIBLE, float(highest.max()) + _NEGLIGIBLE)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns the zero of a monotone function between two bounds.

    If the function keeps its sign, the result is the bound where its absolute value is smaller.
    """
    # Imported late: otherwise every worker with an ABS would pay 40 MB and a third of a second.
    from scipy.optimize import brentq

    at_low, at_high = function(low), function(high)
    if min(at_low, at_high) < 0 < max(at_low, at_high):
        return float(brentq(function, low, high))
    return low if abs(at_low) <= abs(at_high) else high
