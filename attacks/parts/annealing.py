"""Step sizes that fall over the course of an attack."""

from __future__ import annotations

import math


def cosine(step: int, steps: int) -> float:
    """Returns the share of cosine annealing at one of ``steps`` steps, from 1 at step 0 towards 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2
