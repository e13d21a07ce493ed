"""Parts that the gradient attacks share: losses, lengths, and the steepest direction of a norm."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.norms import Norm

SPREAD = 5.0
"""Standard deviation to which losses scale the logits, as in a well-trained network."""


def per_image(values: Tensor) -> Tensor:
    """Reshapes one number per image (N,) to (N, 1, 1, 1), the shape that multiplies images."""
    return values.reshape(-1, 1, 1, 1)


def length(x: Tensor) -> Tensor:
    """Euclidean length (N,) of each image."""
    # ``norm`` computes the same, but more slowly.
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths


def wrong_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Returns the log-odds (N,) of any wrong class, with logits (N, K) scaled to the standard deviation `SPREAD`.

    The cross-entropy is ``log(1 + odds)``. Both have gradients of the same direction, and normalized steps use only the
    direction. However, the cross-entropy underflows where the confidence rounds to 1. The direction of its gradient
    also depends on the scale of the logits. At a small scale, the gradient averages over all wrong classes instead of
    following the likeliest ones.
    """
    logits = (logits - logits.mean(1, keepdim=True)) * to_spread(logits)
    true = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).logsumexp(1) - logits[true]


def to_spread(logits: Tensor) -> Tensor:
    """Returns factors (N, 1) that scale each row of logits (N, K) to the standard deviation `SPREAD`.

    The logits may have any scale. The factors are constants for autograd. Logits that are all equal stay equal.
    """
    logits = logits.detach()
    offsets = logits - logits.mean(1, keepdim=True)
    # The largest offset becomes one first, because squares of tiny or huge logits leave the range of floats.
    size = offsets.abs().amax(1, keepdim=True)
    size = torch.where(size > 0, size, 1)
    deviation = (offsets / size).std(1, keepdim=True)
    factor = SPREAD / torch.where(deviation > 0, deviation, 1) / size
    return factor.clamp_max(torch.finfo(logits.dtype).max)


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Returns the margin (N,) of the likeliest wrong class, max_{i != y} z_i - z_y, from logits (N, K)."""
    true = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(1) - logits[true]


def steepest(gradient: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Returns the step of length one in ``norm`` that raises a linear function with this gradient most.

    See `usable` for gradients that vanish.
    """
    return norm.steepest(usable(gradient, x, norm))


def usable(gradient: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Returns the gradient in a form in which ``norm.steepest`` finds a direction.

    Where the gradient vanishes, every direction is equally good. The direction chosen leads from each pixel's value in
    the clean image ``x`` to the far end of the pixel range, so that there is always a candidate to try.
    """
    gradient = torch.nan_to_num(gradient)
    vanished = ~gradient.flatten(1).any(1)
    gradient = torch.where(per_image(vanished), 1 - 2 * (x > 0.5).to(x.dtype), gradient)
    return norm.rescaled(gradient)
