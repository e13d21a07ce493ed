"""Names of norms, as cards, cells, matrices and ledgers hold them, and choices by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

NormName = str
"""Name of a norm in `bench.contracts.norms.NORMS`, for example ``L2``."""
Choice = TypeVar("Choice")


def check_norm(norm: NormName, allowed: Collection[NormName]) -> None:
    """Checks that a norm is one of ``allowed``.

    Raises:
        ValueError: when the norm is not allowed.
    """
    if norm not in allowed:
        raise ValueError(f"norm {norm!r} is not known here. Allowed: {', '.join(allowed)}")


def of_norm(norm: NormName, **choices: Choice) -> Choice:
    """Returns the one of ``choices`` that is given for ``norm``.

    >>> of_norm("L2", L2=1.5, Linf=0.3)
    1.5

    Raises:
        ValueError: when no choice is given for ``norm``.
    """
    check_norm(norm, choices)
    return choices[norm]
