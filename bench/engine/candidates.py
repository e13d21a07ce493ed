"""Candidates: which are valid, how they are moved, and in which order they are tested."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.contracts.threat import ThreatModel


def by_distance(x: Tensor, images: Sequence[Tensor], threat: ThreatModel) -> Tensor:
    """Returns images (K, n, C, H, W), the nearest of each sample first.

    Copies of the preceding image are replaced by ``x``. Images that already equal ``x`` come last.
    """
    stacked = torch.stack(list(images))
    distances = torch.stack([threat.distance(each, x) for each in stacked])
    order = distances.masked_fill(distances == 0, torch.inf).argsort(dim=0, stable=True)
    ranked = stacked[order, torch.arange(len(x), device=x.device)]
    copies = ~differ(ranked[1:], ranked[:-1])
    ranked[1:][copies] = x.expand_as(ranked[1:])[copies]
    return ranked


def moved_outward(x: Tensor, candidate: Tensor, factor: float | Tensor) -> Tensor:
    """Returns candidates (N, C, H, W) moved on lines from ``x`` to ``factor`` (N,) times their distance, in [0, 1]."""
    scale = torch.as_tensor(factor, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
    return torch.where(scale == 1, candidate, (x + scale * (candidate - x)).clamp(0, 1))


def differ(a: Tensor, b: Tensor) -> Tensor:
    """Returns which images of (..., C, H, W) differ."""
    return (a != b).flatten(-3).any(-1)


def without_invalid(x: Tensor, candidate: Tensor, threat: ThreatModel) -> Tensor:
    """Returns ``candidate`` with its invalid rows replaced by those of ``x``, since ``x`` is never adversarial.

    A row is valid if it is finite, in [0, 1] and in the ball. A pixel of -0.0 becomes 0.0, so that equal images have
    equal bytes.
    """
    pixels = candidate.flatten(1)
    in_range = torch.isfinite(pixels).all(1) & (pixels >= 0).all(1) & (pixels <= 1).all(1)
    lawful = in_range & threat.allows(threat.distance(torch.nan_to_num(candidate), x))
    return torch.where(lawful.reshape(-1, 1, 1, 1), candidate + 0.0, x)


def violation_of(candidates: Tensor, x: Tensor, threat: ThreatModel) -> str:
    """Returns why an attack's candidates (M, C, H, W) for the image ``x`` (C, H, W) break the rules, or ""."""
    if not len(candidates):
        return ""
    if not torch.isfinite(candidates).all():
        return "non_finite"
    if (candidates < 0).any() or (candidates > 1).any():
        return "out_of_range"
    # A ball of radius 0 contains only the clean image.
    if (candidates == x).all():
        return "" if threat.epsilon == 0 else "unperturbed"
    if threat.epsilon is not None:
        distances = threat.distance(candidates, x.expand_as(candidates))
        if not threat.allows(distances).all():
            return "out_of_ball"
    return ""
