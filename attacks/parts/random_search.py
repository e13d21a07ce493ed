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


class Walks:
    """Random walks, one for each row. A walk moves where the margin of the true class is lower.

    Args:
        oracle: answers the queries.
        y: labels (R,).
        ids: samples of the rows (R,).
        start: first points (R, C, H, W).

    Attributes:
        z: the point (R, C, H, W) with the lowest margin of the true class since each walk began.
    """

    def __init__(self, oracle: Oracle, y: Tensor, ids: Tensor, start: Tensor) -> None:
        self._oracle, self._y, self._ids = oracle, y, ids
        self.z = start.clone()
        self._lowest = torch.full((len(ids),), torch.inf, device=ids.device)

    def begin(self, rows: Tensor, start: Tensor) -> None:
        """Begins the walks of ``rows`` (N,) anew, at ``start`` (N, C, H, W)."""
        self.z[rows], self._lowest[rows] = start, torch.inf

    def query(self, rows: Tensor, candidate: Tensor) -> Tensor:
        """Moves the walks of ``rows`` (N,) to the candidates (N, C, H, W) that lower the margin.

        Returns which candidates (N,) are adversarial.
        """
        logits = self._oracle.scores(candidate, self._ids[rows])
        reached = -logit_margin(logits, self._y[rows])
        lower = reached < self._lowest[rows] - ROUNDING * logits.abs().amax(1)
        self.z[rows[lower]], self._lowest[rows[lower]] = candidate[lower], reached[lower]
        return self._oracle.reached(logits, self._ids[rows])


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
    walks = Walks(oracle, y, ids, start)
    rows = torch.arange(len(ids), device=ids.device)
    for step in range(steps):
        if not len(rows := oracle.working(rows, ids)):
            break
        candidate = walks.z[rows] if step == 0 else propose(step, rows, walks.z[rows])
        rows = rows[~walks.query(rows, candidate)]
    return walks.z
