"""Turns nets that return probabilities into classifiers that return logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bench.contracts.errors import unknown

Output = Literal["probabilities", "log_probabilities"]
"""The output of a net: any non-negative values that are proportional to a likelihood, or their logarithms."""


def wrap(net: Callable[..., Tensor], *, output: Output) -> nn.Module:
    """Returns a module whose logits (N, K) are the logarithms of the output of ``net`` for images (N, C, H, W).

    Attacks follow the gradients of logits. Gradients of probabilities and likelihoods vanish where a class is unlikely.

    Args:
        net: a ``torch.nn.Module`` or another differentiable function.
        output: ``probabilities``, which need not sum to one, or ``log_probabilities``.

    Raises:
        UserError: for any other ``output``.

    Example:
        >>> import torch, bench
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Softmax(1))
        >>> module = bench.wrap(net, output="probabilities")
        >>> tuple(module(torch.rand(3, 1, 8, 8)).shape)
        (3, 10)
    """
    if output not in get_args(Output):
        raise unknown("output", output, get_args(Output), "bench.wrap")
    return Wrapped(net, log_likelihood if output == "probabilities" else finite)


class Wrapped(nn.Module):
    """A net followed by a function that turns its output into logits."""

    def __init__(self, net: Callable[..., Tensor], to_logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.to_logits = net, to_logits

    def forward(self, *arguments: Any) -> Tensor:
        """Returns logits (N, K), float32, with a largest logit of 0 in each row.

        Float32 distinguishes values best near 0.
        """
        logits = self.to_logits(self.net(*arguments))
        return (logits - logits.amax(1, keepdim=True)).float()


def log_likelihood(values: Tensor) -> Tensor:
    """Returns logarithms of non-negative numbers (N, K), as float64. They keep differences of one float.

    Zero counts as half the smallest positive float. Numbers so small that the derivative would overflow have no
    derivative.
    """
    kind = torch.finfo(values.dtype)
    known = values.double().clamp_min(kind.tiny)
    below = (values.detach().double() / kind.tiny).clamp(kind.eps / 2, 1)
    return known.log() + below.log()


def finite(logarithms: Tensor) -> Tensor:
    """Returns the logarithms (N, K) with finite values for those of zero.

    A logarithm of zero becomes the smallest other one of its row, minus one.
    """
    zero = torch.isneginf(logarithms)
    least = logarithms.detach().masked_fill(zero, torch.inf).amin(1, keepdim=True) - 1
    return torch.where(zero, torch.nan_to_num(least, posinf=0.0), logarithms)
