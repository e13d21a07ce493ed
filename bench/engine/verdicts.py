"""Sequential tests of a probability, valid at every look.

Draws of a randomized defense come one after the other. A test decides as early as the draws allow. Its error bound
holds at every look, because the test follows an e-process (Ville's inequality; Grünwald, de Heide & Koolen 2024, "Safe
testing").
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
"""Draws for rows (R,) int64 and draw numbers (R,) int64, counted from 0 in each row. A row may occur several times.
Returns True (R,) where the draw is a success."""


@dataclass(frozen=True)
class SequentialTest:
    """Tests whether a probability P exceeds ``null``, on at most ``max_draws`` draws.

    P is accepted if the draws refute ``P <= null`` at level alpha. P is given up if the draws refute
    ``P >= alternative`` at level ``beta``. Each side is a mixture of likelihood ratios, uniform over the probabilities
    beyond its bound. The mixture is a nonnegative supermartingale under every P that it may refute.

    Attributes:
        null: in (0, 1).
        alternative: in (null, 1).
        beta: largest probability of giving up a P that reaches the alternative.
        max_draws: number of draws after which the test ends undecided.
    """

    null: float
    alternative: float
    beta: float
    max_draws: int

    def ends(self, alpha: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the numbers of draws at which a row is accepted and at which it is given up.

        The first array is indexed by the row's failures so far, the second by its successes so far, both in
        [0 ... max_draws]. A number beyond max_draws means never.
        """
        return _ends(self, alpha)


@dataclass(frozen=True)
class Decisions:
    """The decisions of a sequential test on N probabilities.

    Attributes:
        accepted: (N,) bool, whether ``P <= null`` is refuted.
        given_up: (N,) bool, whether ``P >= alternative`` is refuted.
        successes: (N,) int64 number of successes among the draws taken.
        draws: (N,) int64 number of draws taken.
    """

    accepted: Tensor
    given_up: Tensor
    successes: Tensor
    draws: Tensor

    @property
    def undecided(self) -> Tensor:
        """Whether (N,) a row is still open: it is not accepted and not given up."""
        return ~self.accepted & ~self.given_up


def decide(test: SequentialTest, draw: Draw, alpha: Tensor) -> Decisions:
    """Runs a test on N rows, each at its own level ``alpha`` (N,) float64.

    A row draws only up to the nearest point at which it could be decided, so that none of its draws is wasted.
    """
    levels, inverse = np.unique(alpha.cpu().numpy(), return_inverse=True)
    level_of = torch.from_numpy(inverse)
    accepted_at, given_up_at = _tables(test, tuple(levels.tolist()))
    successes = torch.zeros(len(alpha), dtype=torch.int64)
    draws = torch.zeros_like(successes)
    open_rows = torch.arange(len(alpha))
    while len(open_rows):
        level, hit, done = level_of[open_rows], successes[open_rows], draws[open_rows]
        end = torch.minimum(accepted_at[level, done - hit], given_up_at[level, hit]).clamp(max=test.max_draws)
        rows, numbers = each_draw(end - done)
        hits = draw(open_rows[rows].to(alpha.device), (done[rows] + numbers).to(alpha.device)).cpu()
        successes[open_rows] += torch.bincount(rows[hits], minlength=len(open_rows))
        draws[open_rows] = end
        failures = end - successes[open_rows]
        decided = (end >= accepted_at[level, failures]) | (end >= given_up_at[level, successes[open_rows]])
        open_rows = open_rows[~decided & (end < test.max_draws)]
    accepted = draws >= accepted_at[level_of, draws - successes] if len(alpha) else draws.bool()
    given_up = draws >= given_up_at[level_of, successes] if len(alpha) else draws.bool()
    return Decisions(*(value.to(alpha.device) for value in (accepted, given_up, successes, draws)))


@cache
def _tables(test: SequentialTest, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Returns `SequentialTest.ends` of several levels, one level per row."""
    ends = np.array([test.ends(level) for level in levels]).reshape(len(levels), 2, test.max_draws + 1)
    return torch.from_numpy(ends[:, 0]), torch.from_numpy(ends[:, 1])


def each_draw(amounts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the row (R,) of each draw and its number (R,) in that row, from 0; ``amounts`` (N,) are draws per row."""
    rows = torch.arange(len(amounts), device=amounts.device).repeat_interleave(amounts)
    first = amounts.cumsum(0) - amounts
    return rows, torch.arange(len(rows), device=amounts.device) - first[rows]


@cache
def _ends(test: SequentialTest, alpha: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    above, below = _evidence(test.null, test.max_draws), _evidence(1 - test.alternative, test.max_draws)
    return _first_ends(above >= -np.log(alpha)), _first_ends(below >= -np.log(test.beta))


def _first_ends(enough: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns, per number of misses, the first number of draws n at which n - misses hits are ``enough`` [n, hits]."""
    size = len(enough)
    fewest = np.where(enough.any(1), enough.argmax(1), size)
    allowed = np.arange(size) - fewest  # misses at n draws
    reached = allowed[None] >= np.arange(size)[:, None]
    return np.where(reached.any(1), reached.argmax(1), size)


@cache
def _evidence(null: float, max_draws: int) -> FloatArray:
    """Returns the logarithm of the e-process against ``P <= null`` after n draws with k successes, [n, k].

    The e-process is the integral over p in (null, 1) of (p / null)^k ((1 - p) / (1 - null))^(n - k) / (1 - null). The
    logarithm is minus infinity where k exceeds n.
    """
    n, k = np.arange(max_draws + 1)[:, None], np.arange(max_draws + 1)[None]
    possible = k <= n
    failures = np.where(possible, n - k, 0)
    tail = beta_distribution.logsf(null, k + 1, failures + 1) + betaln(k + 1, failures + 1)
    log_e = tail - k * np.log(null) - (failures + 1) * np.log1p(-null)
    return np.where(possible, log_e, -np.inf)
