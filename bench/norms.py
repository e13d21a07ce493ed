"""The norms, and the one definition of "within epsilon". Knows no torch, so that reports can share it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, TypeVar, get_args

Norm = Literal["L0", "L2", "Linf"]
"""L0: pixels changed in any channel; L2: Euclidean length; Linf: largest change of a pixel's intensity."""
NORMS: tuple[Norm, ...] = get_args(Norm)
TOLERANCE = 1e-6
"""Relative tolerance of every comparison of a distance with an epsilon."""
Choice = TypeVar("Choice")


def check_norm(norm: str, allowed: Collection[str] = NORMS) -> None:
    """Refuses a norm that is not one of ``allowed``.

    Raises:
        ValueError: when it is not.
    """
    if norm not in allowed:
        raise ValueError(f"norm {norm!r} is not known here. Allowed: {', '.join(allowed)}")


def of_norm(norm: str, **choices: Choice) -> Choice:
    """The one of ``choices``, by norm, that belongs to ``norm``.

    >>> of_norm("L2", L2=1.5, Linf=0.3)
    1.5

    Raises:
        ValueError: when there is none.
    """
    check_norm(norm, choices)
    return choices[norm]


def within(distances: Any, epsilon: float) -> Any:
    """``distances <= epsilon (1 + TOLERANCE)`` for an array, a series, a tensor or a number: "in the ball" for a
    candidate, "broken at epsilon" for a sample."""
    return distances <= epsilon * (1 + TOLERANCE)
