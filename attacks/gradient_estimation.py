"""Gradient attacks on scores alone, with gradients estimated from finite differences.

One method takes coordinate-wise central differences at every point (Schott et al. 2019, section 5). The other follows
natural evolution strategies (NES; Ilyas et al. 2018, Black-box adversarial attacks with limited queries and
information). NES queries antithetic pairs along random directions. Two changes make a few directions enough. First, the
directions of an estimate are orthogonal. Second, a sample's last estimate is its prior (Ilyas, Engstrom & Madry 2019,
Prior convictions). Only what the prior does not explain is estimated, by the smallest change of the Jacobian that
explains it (Broyden 1965).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from attacks.deepfool import deepfool
from attacks.fast_gradient import fgm, fgsm
from attacks.iterative_gradient import bim, mim, pgd
from bench.contracts.cards import AttackCard, attack, card_of
from bench.contracts.errors import unknown
from bench.contracts.oracle import GradientOracle, Loss, Oracle
from bench.contracts.parameters import Count, Positive

Method = Literal["coordinate", "nes"]
ROWS_AT_ONCE = 4096


class EstimatedGradients(GradientOracle):
    """An oracle that answers gradient queries by scores alone: the Jacobian of the logits is estimated.

    One estimate serves every loss, by the chain rule at the logits. Points that are already adversarial get no new
    estimate, because the attacks do not use the derivative there.

    Args:
        oracle: grants scores.
        method: ``coordinate``, 2 D queries per estimate for images of D values; or ``nes``, 2 ``pairs`` queries.
        pairs: number of directions per estimate by ``nes``.
        full_start: makes a sample's first estimate by ``nes`` coordinate-wise, so that it starts from an exact prior.
        step: distance between a point and the queries beside it.

    Raises:
        UserError: for an unknown method.
    """

    def __init__(self, oracle: Oracle, method: Method, pairs: int, full_start: bool, step: float) -> None:
        if method not in get_args(Method):
            raise unknown("method of gradient estimation", method, get_args(Method))
        self._oracle, self._step, self._pairs = oracle, step, pairs
        self._always_full, self._full_start = method == "coordinate", full_start
        self._prior: Tensor | None = None
        self._fresh = torch.ones(len(oracle.ids), dtype=torch.bool, device=oracle.ids.device)
        self.ids, self.threat, self.random, self.classes = oracle.ids, oracle.threat, oracle.random, oracle.classes
        self.starts = oracle.starts

    @property
    def lane(self) -> int:
        """See `bench.contracts.oracle.GradientOracle`."""
        return self._oracle.lane

    @lane.setter
    def lane(self, number: int) -> None:
        self._oracle.lane = number

    @property
    def found(self) -> Tensor:
        """See `bench.contracts.oracle.Oracle.found`."""
        return self._oracle.found

    @property
    def closest_distance(self) -> Tensor:
        """See `bench.contracts.oracle.Oracle.closest_distance`."""
        return self._oracle.closest_distance

    def closest(self, fallback: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.closest`."""
        return self._oracle.closest(fallback)

    def working(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """See `bench.contracts.oracle.Oracle.working`."""
        return self._oracle.working(rows, ids)

    def reached(self, answers: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.reached`."""
        return self._oracle.reached(answers, ids)

    def adversarial(self, x: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.adversarial`."""
        return self._oracle.adversarial(x, ids)

    def decision(self, x: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.decision`."""
        return self._oracle.decision(x, ids)

    def scores(self, x: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.scores`."""
        return self._oracle.scores(x, ids)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the estimated gradient (N, C, H, W) of ``loss(logits(x), y)`` and the logits (N, K) at ``x``."""
        jacobian, logits = self._estimate(x, ids)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_(True)
            (cotangent,) = torch.autograd.grad(loss(leaf, y).sum(), leaf)
        return torch.einsum("nk,nkchw->nchw", cotangent, jacobian), logits

    def jacobian(self, x: Tensor, classes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns estimated derivatives (N, M, C, H, W) of the logits of ``classes`` (N, M), and all logits (N, K)."""
        jacobian, logits = self._estimate(x, ids)
        return jacobian[torch.arange(len(x), device=x.device)[:, None], classes], logits

    def _estimate(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the estimated Jacobian (N, K, C, H, W) and the logits (N, K)."""
        logits = self._oracle.scores(x, ids)
        if self._prior is None:
            self._prior = x.new_zeros(len(self.ids), logits.shape[1], x.shape[1:].numel())
        wanted = self._oracle.working(torch.arange(len(ids), device=ids.device), ids)
        wanted = wanted[~self._oracle.reached(logits[wanted], ids[wanted])]
        full = self._always_full | (self._full_start & self._fresh[ids[wanted]])
        size = x.shape[1:].numel()
        for chosen, pairs, estimate in (
            (wanted[full], size, self._coordinate_wise),
            (wanted[~full], min(self._pairs, size), self._along_random_directions),
        ):
            # Split, because all the points of a chunk of large images would not fit into memory.
            for rows in torch.split(chosen, max(1, ROWS_AT_ONCE // (2 * pairs))):
                if len(rows):
                    self._prior[ids[rows]] = estimate(x[rows], ids[rows], self._prior[ids[rows]])
        self._fresh[ids[wanted]] = False
        return self._prior[ids].reshape(*logits.shape, *x.shape[1:]), logits

    def _coordinate_wise(self, x: Tensor, ids: Tensor, prior: Tensor) -> Tensor:
        """Returns the Jacobian (N, K, D) from central differences of each value alone."""
        offsets = self._step * torch.eye(x.shape[1:].numel()).to(x)
        change, gap = self._differences(x, ids, offsets.expand(len(x), -1, -1))
        jacobian: Tensor = change.transpose(1, 2) / gap.diagonal(dim1=1, dim2=2)[:, None]
        return jacobian

    def _along_random_directions(self, x: Tensor, ids: Tensor, prior: Tensor) -> Tensor:
        """Returns the Jacobian (N, K, D) closest to ``prior`` that explains differences along orthogonal random
        directions."""
        size = x.shape[1:].numel()
        noise = self._oracle.random.normal(ids, (size, min(self._pairs, size)))
        directions = torch.linalg.qr(noise).Q.transpose(1, 2)
        change, gap = self._differences(x, ids, self._step * directions)
        unexplained = change - gap @ prior.transpose(1, 2)
        weights: Tensor = torch.linalg.solve(gap @ gap.transpose(1, 2), unexplained)
        correction: Tensor = weights.transpose(1, 2) @ gap
        return prior + correction

    def _differences(self, x: Tensor, ids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the differences (N, P, K) of the logits between x + offset and x - offset, for offsets (N, P, D).

        Also returns the gaps (N, P, D) between these points. Clipping to [0, 1] shortens the gaps.
        """
        pairs = offsets.shape[1]
        offsets = offsets.reshape(len(x), pairs, *x.shape[1:])
        above, below = (x[:, None] + offsets).clamp(0, 1), (x[:, None] - offsets).clamp(0, 1)
        points = torch.cat([above, below], 1).flatten(0, 1)
        logits = self._oracle.scores(points, ids.repeat_interleave(2 * pairs)).reshape(len(x), 2, pairs, -1)
        return logits[:, 0] - logits[:, 1], (above - below).flatten(2)


def with_estimated_gradients(
    base: Callable[..., Tensor], budget: int, *, short: Mapping[str, Any] | None = None, slack: float = 1.0
) -> Callable[..., Tensor]:
    """Returns the attack ``base`` on scores, with ``_ge`` ("with gradient estimation") appended to its name.

    The attack has the parameters of ``base`` and of `EstimatedGradients`, whose ``step`` becomes ``estimation_step``.
    ``base`` runs once for each of ``step_sizes`` steps of the estimate (that step, 3 times it, a third of it, 9 times
    it, ...). The closest adversarial example of all runs is kept (Schott et al. 2019, section 5).
    """
    card = card_of(base)
    assert isinstance(card, AttackCard)
    ratios = card.approximation_ratio

    def estimated(
        oracle: Oracle,
        x: Tensor,
        y: Tensor,
        *,
        method: Method = "nes",
        pairs: Count = 4,
        full_start: bool = True,
        estimation_step: Positive = 0.1,
        step_sizes: Count = 1,
        **parameters: Any,
    ) -> Tensor:
        candidates = x
        for repetition in range(step_sizes):
            exponent = (repetition + 1) // 2 * (1 if repetition % 2 else -1)
            gradients = EstimatedGradients(oracle, method, pairs, full_start, estimation_step * 3.0**exponent)
            candidates = base(gradients, x, y, **parameters)
        return candidates

    own = [p for p in inspect.signature(estimated).parameters.values() if p.kind is not p.VAR_KEYWORD]
    inherited = [p for p in inspect.signature(base, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY]
    vars(estimated)["__signature__"] = inspect.Signature([*own, *inherited])
    estimated.__name__ = estimated.__qualname__ = f"{card.name}_ge"
    estimated.__doc__ = f"`{card.name}` with estimated gradients."
    return attack(
        f"{card.name}_ge",
        norms=card.norms,
        access="score",
        kinds=card.kinds,
        stochastic=True,
        budget=budget,
        citation=card.citation,
        only=card.only,
        short=short,
        approximation_ratio={norm: (median, slack * worst) for norm, (median, worst) in ratios.items()},
    )(estimated)


ATTACK_NAMES = ("fgm_ge", "fgsm_ge", "bim_ge", "mim_ge", "pgd_ge", "deepfool_ge")
"""The names that `with_estimated_gradients` declares here (see `bench.plugins.scan`)."""
FEW_STEPS = {"binary_search_steps": 5, "pairs": 2}
fgm_ge = with_estimated_gradients(fgm, budget=2_000)
fgsm_ge = with_estimated_gradients(fgsm, budget=2_000)
bim_ge = with_estimated_gradients(bim, budget=200_000, short=FEW_STEPS)
mim_ge = with_estimated_gradients(mim, budget=200_000, short=FEW_STEPS)
pgd_ge = with_estimated_gradients(pgd, budget=200_000, short={**FEW_STEPS, "steps": 10, "relative_step_size": 1 / 4})
deepfool_ge = with_estimated_gradients(deepfool, budget=20_000, slack=1.4)
