"""The norms, and the one definition of "within epsilon". Knows no torch, so that reports can share it."""

from __future__ import annotations

from typing import Any, Literal, get_args

Norm = Literal["L0", "L2", "Linf"]
"""L0: pixels changed in any channel; L2: Euclidean length; Linf: largest change of a pixel's intensity."""
NORMS: tuple[Norm, ...] = get_args(Norm)
TOLERANCE = 1e-6
"""Relative tolerance of every comparison of a distance with an epsilon."""


def within(distances: Any, epsilon: float) -> Any:
    """``distances <= epsilon (1 + TOLERANCE)`` for an array, a series, a tensor or a number: "in the ball" for a
    candidate, "broken at epsilon" for a sample."""
    return distances <= epsilon * (1 + TOLERANCE)
