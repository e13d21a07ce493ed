"""The norms, and the one definition of "within epsilon". Imports no torch, so that reports can share it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, TypeVar, get_args

NormName = Literal["L0", "L2", "Linf"]
"""L0: number of pixels changed in any channel. L2: Euclidean length. Linf: largest change of a pixel's intensity."""
NORMS: tuple[NormName, ...] = get_args(NormName)
TOLERANCE = 1e-6
"""Relative tolerance of every comparison of a distance with an epsilon."""
Choice = TypeVar("Choice")


def check_norm(norm: str, allowed: Collection[str] = NORMS) -> None:
    """Checks that a norm is one of ``allowed``.

    Raises:
        ValueError: when the norm is not allowed.
    """
    if norm not in allowed:
        raise ValueError(f"norm {norm!r} is not known here. Allowed: {', '.join(allowed)}")


def of_norm(norm: str, **choices: Choice) -> Choice:
    """Returns the one of ``choices`` that is given for ``norm``.

    >>> of_norm("L2", L2=1.5, Linf=0.3)
    1.5

    Raises:
        ValueError: when no choice is given for ``norm``.
    """
    check_norm(norm, choices)
    return choices[norm]


def within(distances: Any, epsilon: float) -> Any:
    """Returns ``distances <= epsilon (1 + TOLERANCE)`` for an array, a series, a tensor or a number.

    A candidate within epsilon is "in the ball". A sample within epsilon is "broken at epsilon".
    """
    return distances <= epsilon * (1 + TOLERANCE)
