"""Sequential tests of a probability, valid at every look.

Draws of a randomized defense come one after the other. A test decides as early as they allow: its error holds however
often it looks, because it follows an e-process (Ville's inequality; Grünwald, de Heide & Koolen 2024, "Safe testing").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaln
from scipy.stats import beta as beta_distribution
from torch import Tensor

FloatArray = NDArray[np.float64]
Draw = Callable[[Tensor, Tensor], Tensor]
"""Draws for rows (R,) int64, which may name a row several times, each with the number of its draw (R,) int64, counted
from 0 in each row; True (R,) where the draw is a success."""


@dataclass(frozen=True)
class SequentialTest:
    """Tests whether a probability P exceeds ``null``, on at most ``max_draws`` draws.

    P is accepted where the draws refute ``P <= null`` at level alpha, and given up where they refute
    ``P >= alternative`` at level ``beta``. Each side is a mixture of likelihood ratios, uniform over the probabilities
    beyond its bound: a nonnegative supermartingale under every P that it may refute.

    Attributes:
        null: in (0, 1).
        alternative: in (null, 1).
        beta: probability at most of giving up a P that reaches the alternative.
        max_draws: after which neither is said.
    """

    null: float
    alternative: float
    beta: float
    max_draws: int

    def bounds(self, alpha: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each number of draws 0 ... max_draws, the fewest successes that are accepted and the most that are given
        up; beyond reach where no number is."""
        return _bounds(self, alpha)


@dataclass(frozen=True)
class Decisions:
    """What a sequential test says of N probabilities.

    Attributes:
        accepted: (N,) bool; so are the others.
        given_up: the alternative is refuted.
        successes: (N,) int64, among the draws taken.
        draws: (N,) int64.
    """

    accepted: Tensor
    given_up: Tensor
    successes: Tensor
    draws: Tensor

    @property
    def undecided(self) -> Tensor:
        """Neither accepted nor given up (N,)."""
        return ~self.accepted & ~self.given_up


def decide(test: SequentialTest, draw: Draw, alpha: Tensor) -> Decisions:
    """Runs a test on N rows of their own levels ``alpha`` (N,) float64.

    No row draws beyond the nearest point at which it could be decided, so that none of its draws is wasted.
    """
    levels, level_of = alpha.cpu().unique(return_inverse=True)
    bounds = [test.bounds(level) for level in levels.tolist()]
    accept, give_up = (
        torch.from_numpy(np.stack([pair[side] for pair in bounds]) if bounds else np.zeros((0, 1), np.int64))
        for side in (0, 1)
    )
    successes = torch.zeros(len(alpha), dtype=torch.int64)
    draws = torch.zeros_like(successes)
    accepted, given_up = torch.zeros(len(alpha), dtype=torch.bool), torch.zeros(len(alpha), dtype=torch.bool)
    open_rows = torch.arange(len(alpha))
    while len(open_rows):
        level = level_of[open_rows]
        amount = _needed(accept[level], give_up[level], successes[open_rows], draws[open_rows])
        rows, numbers = each_draw(amount)
        hits = draw(open_rows[rows].to(alpha.device), (draws[open_rows][rows] + numbers).to(alpha.device)).cpu()
        successes[open_rows] += torch.bincount(rows[hits], minlength=len(open_rows))
        draws[open_rows] += amount
        taken = draws[open_rows]
        accepted[open_rows] = successes[open_rows] >= accept[level, taken]
        given_up[open_rows] = successes[open_rows] <= give_up[level, taken]
        open_rows = open_rows[~accepted[open_rows] & ~given_up[open_rows] & (taken < test.max_draws)]
    return Decisions(*(value.to(alpha.device) for value in (accepted, given_up, successes, draws)))


def each_draw(amounts: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (R,) and numbers (R,) of so many draws (N,) of each row, from 0 in each."""
    rows = torch.arange(len(amounts), device=amounts.device).repeat_interleave(amounts)
    first = amounts.cumsum(0) - amounts
    return rows, torch.arange(len(rows), device=amounts.device) - first[rows]


def _needed(accept: Tensor, give_up: Tensor, successes: Tensor, draws: Tensor) -> Tensor:
    """The fewest further draws (N,) after which a row can be decided; all that are left where it cannot be.

    The bounds (N, max_draws + 1) rise by less than one a draw, so that a row cannot pass one in between.
    """
    last = accept.shape[1] - 1
    ahead = torch.arange(last + 1)[None] - draws[:, None]
    possible = (ahead > 0) & ((successes[:, None] + ahead >= accept) | (successes[:, None] <= give_up))
    first = torch.where(possible, ahead, last + 1).amin(1)
    return torch.minimum(first, last - draws)


@cache
def _bounds(test: SequentialTest, alpha: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    above, below = _evidence(test.null, test.max_draws), _evidence(1 - test.alternative, test.max_draws)
    draws = np.arange(test.max_draws + 1)
    enough, too_few = above >= -np.log(alpha), below >= -np.log(test.beta)
    accept = np.where(enough.any(1), enough.argmax(1), test.max_draws + 1)
    # ``below`` counts failures: at least so many of them are at most this many successes.
    failures = np.where(too_few.any(1), too_few.argmax(1), test.max_draws + 1)
    return accept, draws - failures


@cache
def _evidence(null: float, max_draws: int) -> FloatArray:
    """The logarithm of the e-process against ``P <= null`` after n draws with k successes, [n, k]; minus infinity where
    k exceeds n: log of the integral over p in (null, 1) of (p / null)^k ((1 - p) / (1 - null))^(n - k) / (1 - null)."""
    n, k = np.arange(max_draws + 1)[:, None], np.arange(max_draws + 1)[None]
    possible = k <= n
    failures = np.where(possible, n - k, 0)
    tail = beta_distribution.logsf(null, k + 1, failures + 1) + betaln(k + 1, failures + 1)
    log_e = tail - k * np.log(null) - (failures + 1) * np.log1p(-null)
    return np.where(possible, log_e, -np.inf)
