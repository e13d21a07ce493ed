"""What the gradient attacks share: the oracle they need, their loss, and the steepest direction of a norm."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from bench import ascent
from bench.norms import Norm, check_norm, of_norm
from bench.oracle import Loss
from bench.randomness import Streams
from bench.threat import ThreatModel

SPREAD = 5.0
"""Standard deviation that logits are brought to in losses, that of a well trained net."""


class GradientOracle(Protocol):
    """The part of `bench.oracle.Oracle` that gradient attacks use; see there. Gradients may be estimates."""

    ids: Tensor
    threat: ThreatModel
    random: Streams
    classes: int

    def decision(self, x: Tensor, ids: Tensor) -> Tensor:
        """Predicted classes (N,) of images ``x`` (N, C, H, W)."""

    def scores(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, K) of images ``x`` (N, C, H, W)."""

    def gradient(self, x: Tensor, y: Tensor, loss: Loss, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (N, C, H, W) of ``loss`` and the logits (N, K)."""

    def jacobian(self, x: Tensor, classes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives (N, M, C, H, W) of the logits of ``classes`` (N, M), and all logits (N, K)."""

    def closest(self, fallback: Tensor) -> Tensor:
        """The closest adversarial of each sample so far, else the row of ``fallback``."""

    def affordable(self, ids: Tensor) -> Tensor:
        """True (N,) for rows whose sample still has budget."""

    @property
    def found(self) -> Tensor:
        """True (n,) for samples with an adversarial so far."""

    @property
    def closest_distance(self) -> Tensor:
        """Distance (n,) float64 of the closest adversarial so far, infinity without one."""


def per_image(values: Tensor) -> Tensor:
    """One number per image, (N,), in the shape that multiplies images: (N, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1)


def length(x: Tensor) -> Tensor:
    """Euclidean length (N,) of each image."""
    # ``norm`` goes the same way more slowly.
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths


def diameter(x: Tensor, norm: Norm) -> float:
    """Largest distance in ``norm`` (L2 or Linf) between two images of the shape of ``x`` (N, C, H, W)."""
    return of_norm(norm, L2=math.sqrt(x.shape[1:].numel()), Linf=1.0)


def wrong_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Logarithm (N,) of the odds of any wrong class, where the logits are brought to the standard deviation `SPREAD`.

    The cross-entropy is ``log(1 + odds)``, so that both have gradients of the same direction, which is all that
    normalised steps use; but it underflows where the confidence rounds to 1, and its direction depends on the logits'
    scale: on logits of small scale it averages over all wrong classes instead of following the likeliest ones.
    """
    logits = (logits - logits.mean(1, keepdim=True)) * to_spread(logits)
    true = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).logsumexp(1) - logits[true]


def to_spread(logits: Tensor) -> Tensor:
    """Factors (N, 1) that bring the standard deviation of each row of logits (N, K) to `SPREAD`, whatever their scale;
    constants for autograd. Logits that are all equal stay so."""
    logits = logits.detach()
    offsets = logits - logits.mean(1, keepdim=True)
    # First to a largest offset of one: squares of tiny and of huge logits leave the range of floats.
    size = offsets.abs().amax(1, keepdim=True)
    size = torch.where(size > 0, size, 1)
    deviation = (offsets / size).std(1, keepdim=True)
    factor = SPREAD / torch.where(deviation > 0, deviation, 1) / size
    return factor.clamp_max(torch.finfo(logits.dtype).max)


def wrong_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y (N,) of logits (N, K)."""
    true = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(1) - logits[true]


def steepest(gradient: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """The step of length one in ``norm`` (L2 or Linf) that raises a linear function with this gradient most; see
    `usable` for gradients that vanish."""
    return ascent.steepest(usable(gradient, x, norm), norm)


def usable(gradient: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """The gradient, such that `bench.ascent.steepest` finds a direction in it.

    Where the gradient vanishes every direction is as good; the one taken leads to the far end of each pixel's range
    from its value in the clean image ``x``, so that there is always something to try.
    """
    check_norm(norm, ("L2", "Linf"))
    gradient = torch.nan_to_num(gradient)
    vanished = ~gradient.flatten(1).any(1)
    gradient = torch.where(per_image(vanished), 1 - 2 * (x > 0.5).to(x.dtype), gradient)
    # Squares of tiny gradients underflow.
    return gradient / per_image(gradient.flatten(1).abs().amax(1)) if norm == "L2" else gradient
