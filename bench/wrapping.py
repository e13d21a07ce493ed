"""Nets that return probabilities, as classifiers that return logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bench.errors import unknown

Output = Literal["probabilities", "log_probabilities"]
"""What a net returns: anything non-negative that is proportional to a likelihood, or its logarithm."""


def wrap(net: Callable[..., Tensor], *, output: Output) -> nn.Module:
    """A module whose logits (N, K) are the logarithms of what ``net`` makes of images (N, C, H, W).

    Attacks follow the logits' gradients. Those of probabilities and likelihoods vanish where a class is unlikely.

    Args:
        net: a ``torch.nn.Module`` or another differentiable function.
        output: ``probabilities``, not necessarily of sum one, or ``log_probabilities``.

    Raises:
        UserError: for another output.
    """
    if output not in get_args(Output):
        raise unknown("output", output, get_args(Output), "bench.wrap")
    return Wrapped(net, log_likelihood if output == "probabilities" else finite)


class Wrapped(nn.Module):
    """A net behind which a function makes logits of its output."""

    def __init__(self, net: Callable[..., Tensor], to_logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.to_logits = net, to_logits

    def forward(self, *arguments: Any) -> Tensor:
        """Logits (N, K), float32, the largest of each row 0: this is where float32 tells classes apart best."""
        logits = self.to_logits(self.net(*arguments))
        return (logits - logits.amax(1, keepdim=True)).float()


def log_likelihood(values: Tensor) -> Tensor:
    """Logarithms of non-negative numbers (N, K), as float64, in which differences of one float remain.

    Zero counts as half the smallest positive float. Numbers so small that the derivative would overflow have none.
    """
    kind = torch.finfo(values.dtype)
    known = values.double().clamp_min(kind.tiny)
    below = (values.detach().double() / kind.tiny).clamp(kind.eps / 2, 1)
    return known.log() + below.log()


def finite(logarithms: Tensor) -> Tensor:
    """Logarithms (N, K); those of zero lie one below the smallest other one of their row."""
    zero = torch.isneginf(logarithms)
    least = logarithms.detach().masked_fill(zero, torch.inf).amin(1, keepdim=True) - 1
    return torch.where(zero, torch.nan_to_num(least, posinf=0.0), logarithms)
