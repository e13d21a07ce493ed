"""Random search on the margin: what Square and Sparse-RS share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.gradients import wrong_margin
from bench.oracle import Oracle

ROUNDING = 1e-6
"""Share of the largest logit by which margins must differ: where pixels have no effect, batches would decide else."""

Propose = Callable[[int, Tensor, Tensor], Tensor]
"""Draws candidates (N, C, H, W) for a step from the rows' indices (N,) and their points so far (N, C, H, W)."""


def random_search(oracle: Oracle, y: Tensor, ids: Tensor, start: Tensor, steps: int, propose: Propose) -> Tensor:
    """Asks about ``start`` (R, C, H, W) and ``steps - 1`` candidates per row, and keeps those that lower
    the true class's lead over the others.

    Args:
        oracle: answers the queries.
        y: labels (R,).
        ids: samples of the rows (R,).
        start: first points.
        steps: queries per row at most; rows leave when they are adversarial.
        propose: changes the points at random.

    Returns:
        The point of the least lead of each row.
    """
    z = start.clone()
    lowest = torch.full((len(ids),), torch.inf, device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)
    for step in range(steps):
        rows = rows[oracle.affordable(ids[rows])]
        if not len(rows):
            break
        candidate = z[rows] if step == 0 else propose(step, rows, z[rows])
        logits = oracle.scores(candidate, ids[rows])
        reached = -wrong_margin(logits, y[rows])
        lower = reached < lowest[rows] - ROUNDING * logits.abs().amax(1)
        z[rows[lower]], lowest[rows[lower]] = candidate[lower], reached[lower]
        rows = rows[logits.argmax(1) == y[rows]]
    return z
