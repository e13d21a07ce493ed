"""Random search on the margin, shared by Square and Sparse-RS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.parts.gradients import logit_margin
from bench.contracts.oracle import Oracle

ROUNDING = 1e-6
"""Smallest change of the margin that counts, as a share of the largest absolute logit. Otherwise the batch's rounding
would decide where pixels have no effect."""

Propose = Callable[[int, Tensor, Tensor], Tensor]
"""Draws candidates (N, C, H, W) for a step from the rows' indices (N,) and their points so far (N, C, H, W)."""


def random_search(oracle: Oracle, y: Tensor, ids: Tensor, start: Tensor, steps: int, propose: Propose) -> Tensor:
    """Queries ``start`` (R, C, H, W) and ``steps - 1`` candidates per row.

    A candidate is kept if it lowers the margin of the true class.

    Args:
        oracle: answers the queries.
        y: labels (R,).
        ids: samples of the rows (R,).
        start: first points.
        steps: largest number of queries per row; rows leave when they are adversarial.
        propose: changes the points at random.

    Returns:
        The point (R, C, H, W) with the lowest margin of the true class in each row.
    """
    z = start.clone()
    lowest = torch.full((len(ids),), torch.inf, device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)
    for step in range(steps):
        if not len(rows := oracle.working(rows, ids)):
            break
        candidate = z[rows] if step == 0 else propose(step, rows, z[rows])
        logits = oracle.scores(candidate, ids[rows])
        reached = -logit_margin(logits, y[rows])
        lower = reached < lowest[rows] - ROUNDING * logits.abs().amax(1)
        z[rows[lower]], lowest[rows[lower]] = candidate[lower], reached[lower]
        rows = rows[~oracle.reached(logits, ids[rows])]
    return z
