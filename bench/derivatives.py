"""Logits of a defense and their derivative, whoever computes it: the defense itself or autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.protocols import Defense, HasInputGradient, HasUnrolledGradient, VectorJacobian
from bench.randomness import RowStreams, Streams

NO_DRAWS = Streams(0, (), "deterministic").rows(torch.arange(0))
"""What a deterministic defense does not look at."""


def drawn_logits(defense: Defense, x: Tensor, rng: RowStreams) -> Tensor:
    """Logits (N, K) of images (N, C, H, W): one draw, where the defense is randomised."""
    logits: Tensor = defense.logits(x, rng) if defense.card.randomized else defense.logits(x)
    return logits


def mean_logits(defense: Defense, x: Tensor, rng: RowStreams, draws: int) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), averaged over ``draws`` where the defense is randomised."""
    passes = draws if defense.card.randomized else 1
    return torch.stack([drawn_logits(defense, x, rng) for _ in range(passes)]).mean(0)


def linearize(
    defense: Defense, x: Tensor, rng: RowStreams, draws: int, *, unrolled: bool = False
) -> tuple[Tensor, VectorJacobian]:
    """The logits (N, K) at ``x`` (N, C, H, W), averaged as in `mean_logits`, and their vector-Jacobian product; through
    the defense's own optimisation too, if ``unrolled``."""
    if unrolled:
        assert isinstance(defense, HasUnrolledGradient)
        at_draw = defense.unrolled_gradient
    elif isinstance(defense, HasInputGradient):
        at_draw = defense.input_gradient
    else:
        return _differentiated(defense, x, rng, draws)
    if not defense.card.randomized:
        return at_draw(x)
    drawn = [at_draw(x, rng) for _ in range(draws)]
    mean = torch.stack([logits for logits, _ in drawn]).mean(0)
    return mean, lambda cotangent: torch.stack([product(cotangent) for _, product in drawn]).mean(0)


def _differentiated(defense: Defense, x: Tensor, rng: RowStreams, draws: int) -> tuple[Tensor, VectorJacobian]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = mean_logits(defense, leaf, rng, draws)

    def vector_jacobian(cotangent: Tensor) -> Tensor:
        gradient = torch.autograd.grad(logits, leaf, cotangent, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(x) if gradient is None else gradient

    return logits.detach(), vector_jacobian
