"""Confidence by the graded softmax, and its calibration (Schott et al. 2019, section 3, equation 4).

A softmax is sure of some class however little any class explains an image. The graded softmax gives every class the
evidence eta on top, so that its confidence is uniform far from the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENT = 0.9
"""Median confidence of the predicted class on clean images after calibration (section 3), and the confidence at which a
distal adversarial is reached (section 7)."""
SCALES = (1e-3, 1e3)
"""Bounds of alpha times the mean absolute margin between the label's logit and the highest other one."""
_NEGLIGIBLE = 50.0
"""Evidence that is exp(50) times smaller than other evidence is lost in float64's rounding."""


@dataclass(frozen=True)
class Calibration:
    """The two parameters of the graded softmax.

    Attributes:
        alpha: scale of the logits, > 0.
        log_eta: logarithm of the offset; minus infinity for a plain softmax. Kept as a logarithm because eta is
            relative to exp(alpha l), which float64 does not hold for every classifier (log densities of -1000, say).
    """

    alpha: float
    log_eta: float

    @property
    def eta(self) -> float:
        """The offset, >= 0, as equation 4 has it; 0 or infinity where float64 does not hold it."""
        return math.exp(self.log_eta) if self.log_eta < 709 else math.inf

    def log_evidence(self, logits: Tensor) -> Tensor:
        """log(exp(alpha l) + eta), (N, K) float64, of logits l (N, K); finite wherever they are."""
        log_eta = torch.tensor(self.log_eta, dtype=torch.float64, device=logits.device)
        return torch.logaddexp(self.alpha * logits.double(), log_eta)

    def confidence(self, logits: Tensor) -> Tensor:
        """(exp(alpha l) + eta) / sum of the same over classes, (N, K) float64 in [0, 1], of logits l (N, K)."""
        return self.log_evidence(logits).softmax(1)


def graded_softmax(logits: Tensor, alpha: float, eta: float) -> Tensor:
    """(exp(alpha l) + eta) / sum of the same over classes, (N, K) in the type of the logits l (N, K): uniform where no
    class explains the image (equation 4).

    ``eta`` is the evidence that every class has anyway.
    """
    log_eta = math.log(eta) if eta > 0 else -math.inf
    return Calibration(alpha, log_eta).confidence(logits).to(logits.dtype)


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """The graded softmax's parameters for a classifier, as section 3 and appendix A.7 set them.

    alpha minimises the cross-entropy of softmax(alpha l); then eta is such that the median confidence in the predicted
    class, right or wrong, is 0.9. Where that has no answer:

    - logits that separate the classes perfectly, whose cross-entropy falls without end: alpha is the upper bound of
      `SCALES`; logits no better than chance at any scale: the lower one;
    - a median that is below 0.9 without any offset: eta is 0.

    Args:
        logits: of clean images (N, K), averaged over draws for a randomised defense. Images with logits that are not
            finite are left out.
        labels: their classes (N,) int64.

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
    """alpha for logits (N, K) float64 and labels (N,): the root of the cross-entropy's derivative, which grows with
    alpha since the cross-entropy is convex in it."""
    own = logits.gather(1, labels[:, None])
    # Relative to the label's logit, nothing cancels: a classifier that separates the classes has no positive entry.
    relative = logits - own
    rivals = relative.scatter(1, labels[:, None], -torch.inf).amax(1)
    unit = float(rivals.abs().mean()) or 1.0

    def slope(log_scale: float) -> float:
        return float(((math.exp(log_scale) / unit * relative).softmax(1) * relative).sum(1).mean())

    low, high = (math.log(scale) for scale in SCALES)
    return math.exp(_root(slope, low, high)) / unit


def _offset(alpha: float, logits: Tensor) -> float:
    """log eta for logits (N, K) float64: every image's confidence in its predicted class, and so their median, falls
    from the plain softmax's to 1 / K as eta grows."""

    def excess(log_eta: float) -> float:
        return float(Calibration(alpha, log_eta).confidence(logits).amax(1).quantile(0.5)) - CONFIDENT

    if excess(-math.inf) <= 0:
        return -math.inf
    highest = alpha * logits.amax(1)
    return _root(excess, float(highest.min()) - _NEGLIGIBLE, float(highest.max()) + _NEGLIGIBLE)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a monotone function is zero between two bounds; the bound nearer to it where it keeps its sign."""
    # Imported here: 40 MB and a third of a second that every worker with an ABS would pay.
    from scipy.optimize import brentq

    at_low, at_high = function(low), function(high)
    if min(at_low, at_high) < 0 < max(at_low, at_high):
        return float(brentq(function, low, high))
    return low if abs(at_low) <= abs(at_high) else high
