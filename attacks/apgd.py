"""Auto-PGD: projected gradient ascent with momentum, whose step size halves where progress stalls.

Algorithm 1 of Croce & Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attacks.iterative_gradient import random_start
from attacks.parts.epsilon_search import smallest_epsilon
from attacks.parts.gradients import logit_margin, per_image, steepest, to_spread, wrong_odds
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle, Loss
from bench.contracts.parameters import Count, Natural, Positive

CITATION = (
    "Croce & Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free "
    "attacks"
)
MOMENTUM = 0.75
"""Weight of the new step against the last one (alpha)."""
LEAST_SPREAD = 1e-6
"""Constant added to the denominator of the ratio of logits, relative to the range of the logits."""
MALT_CANDIDATES = 100
"""Likeliest wrong classes that MALT ranks, as in its authors' demonstration."""
SUCCESS_SHARE = 0.75
"""Share of steps since the last checkpoint that must have raised the loss (rho)."""


def checkpoints(steps: int) -> list[int]:
    """Returns the steps at which progress is checked (section 3.1).

    The gaps shrink from 22 % of the steps by 3 % each to 6 %.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [int(share * steps + 0.999) for share in shares[1:] if share < 1]


def ascend(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    radii: Tensor,
    loss: Loss,
    *,
    start: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Ascends a loss within balls; adversarial rows leave.

    Args:
        oracle: answers the queries.
        x: clean images (N, C, H, W), the centers of the balls.
        y: labels (N,) of ``x``, or what else the loss takes for each row.
        ids: samples (N,) of ``x``.
        radii: radii (N,) of the balls.
        loss: the loss.
        start: first iterates (N, C, H, W).
        steps: number of gradients after the first.

    Returns:
        The iterate (N, C, H, W) of the largest loss in each row, adversarial where one was reached, and its loss (N,).
    """
    norm = oracle.threat.norm
    radii = radii.to(x.dtype)
    z = start.clone()
    before, best, last_gradient, best_gradient = z.clone(), z.clone(), torch.zeros_like(z), torch.zeros_like(z)
    top = torch.full_like(radii, -torch.inf)
    value, top_at_check, raised = top.clone(), top.clone(), torch.full_like(radii, -1)
    size = 2 * radii
    halved = torch.ones_like(radii, dtype=torch.bool)
    rows = torch.arange(len(ids), device=ids.device)
    checks, checked = checkpoints(steps), 0
    for k in range(steps + 1):
        if not len(rows := oracle.working(rows, ids)):
            break
        gradient, logits = oracle.gradient(z[rows], y[rows], loss, ids[rows])
        now = loss(logits, y[rows])
        wrong = oracle.reached(logits, ids[rows])
        raised[rows] += (now > value[rows]).to(x.dtype)
        value[rows], last_gradient[rows] = now, gradient
        better = wrong | (now > top[rows])
        up = rows[better]
        best[up], best_gradient[up], top[up] = z[up], gradient[better], now[better]
        rows = rows[~wrong]
        if k in checks:
            stalled = raised[rows] < SUCCESS_SHARE * (k - checked)
            stalled |= ~halved[rows] & (top_at_check[rows] >= top[rows])
            halved[rows] = stalled
            back = rows[stalled]
            size[back] /= 2
            z[back], last_gradient[back] = best[back], best_gradient[back]
            top_at_check[rows], raised[rows], checked = top[rows], 0, k
        direction = steepest(last_gradient[rows], x[rows], norm)
        step = norm.project(z[rows] + per_image(size[rows]) * direction, x[rows], radii[rows])
        momentum = MOMENTUM if k else 1.0
        moved = z[rows] + momentum * (step - z[rows]) + (1 - momentum) * (z[rows] - before[rows])
        before[rows] = z[rows]
        z[rows] = norm.project(moved, x[rows], radii[rows])
    return best, top


def difference_of_logits_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """The DLR loss (N,) of logits (N, K): -(z_y - max_{i != y} z_i) / (z_1st - z_3rd) (equation 6)."""
    return logit_margin(logits, y) / _spread(logits, [2])


def targeted_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """The targeted DLR loss (N,) of logits (N, K): -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) (equation 7).

    ``y`` (N, 2) holds the label and the target t of each row.
    """
    true, target = logits.gather(1, y).unbind(1)
    return (target - true) / _spread(logits, [2, 3])


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Returns the margin (N,) of probabilities of the likeliest wrong class, max_{i != y} p_i - p_y.

    p is the softmax of logits (N, K), scaled to the standard deviation `attacks.parts.gradients.SPREAD`.
    """
    scaled = (logits - logits.mean(1, keepdim=True)) * to_spread(logits)
    return logit_margin(scaled.softmax(1), y)


def by_logits(oracle: GradientOracle, x: Tensor, y: Tensor) -> Tensor:
    """Returns the wrong classes (n, K - 1) of each image, the likeliest first."""
    logits = oracle.scores(x, oracle.ids)
    return logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]


def by_malt(oracle: GradientOracle, x: Tensor, y: Tensor) -> Tensor:
    """Returns the `MALT_CANDIDATES` likeliest wrong classes (n, M) of each image, the nearest decision boundary first.

    The distance to the boundary with class c is that of the linearized logits, (z_y - z_c) / ||grad z_y - grad z_c||,
    in the dual of the threat model's norm (Melamed, Yehudai & Shamir 2024). Their code takes this norm as well: L1 for
    Linf, L2 for L2. Where the gradients are equal, the distance is infinite. Their code sets it to zero.
    """
    likeliest = by_logits(oracle, x, y)[:, :MALT_CANDIDATES]
    gradients, logits = oracle.jacobian(x, torch.cat([y[:, None], likeliest], 1), oracle.ids)
    difference = (gradients[:, :1] - gradients[:, 1:]).flatten(0, 1)
    slope = oracle.threat.norm.dual(torch.nan_to_num(difference)).reshape(likeliest.shape)
    gap = logits.gather(1, y[:, None]) - logits.gather(1, likeliest)
    distance = torch.where(slope > 0, gap / slope, torch.inf)
    return likeliest.gather(1, distance.argsort(dim=1, stable=True))


def _spread(logits: Tensor, places: list[int]) -> Tensor:
    """Returns the gap (N,) from the largest logit to the mean of the logits at ``places`` of the ranking.

    The gap is 1 where there are only two classes.
    """
    if logits.shape[1] < 3:
        return torch.ones_like(logits[:, 0])
    ranked = logits.sort(1, descending=True).values
    present = [min(place, logits.shape[1] - 1) for place in places]
    # Prevents division by zero where logits are equal, at any scale of the logits.
    least = LEAST_SPREAD * (ranked[:, 0] - ranked[:, -1]).detach().clamp_min(torch.finfo(logits.dtype).tiny)
    return ranked[:, 0] - ranked[:, present].mean(1) + least


def restarted(
    oracle: GradientOracle,
    x: Tensor,
    ascents: Sequence[tuple[Loss, Tensor]],
    *,
    steps: int,
    epsilon: float,
    binary_search_steps: int,
) -> Tensor:
    """Runs each of ``ascents`` on the samples that are left: a loss, with what it takes for each sample (n, ...).

    The ascents run in the threat model's ball, or in a search for the smallest epsilon that starts at ``epsilon``.
    """

    def run(ids: Tensor, radii: Tensor) -> Tensor:
        last = x[ids]
        left = torch.arange(len(ids), device=ids.device)
        for restart, (loss, y) in enumerate(ascents):
            oracle.lane = restart
            left = left[oracle.closest_distance[ids[left]] > radii[left]]
            if not len(left := oracle.working(left, ids)):
                break
            rows = ids[left]
            start = random_start(oracle, x[rows], rows, radii[left])
            last[left], _ = ascend(oracle, x[rows], y[rows], rows, radii[left], loss, start=start, steps=steps)
        return last

    if oracle.threat.epsilon is None:
        return smallest_epsilon(oracle, x, run, start=epsilon, binary_search_steps=binary_search_steps)
    radii = torch.full((len(x),), oracle.threat.epsilon, dtype=torch.float64, device=x.device)
    return oracle.closest(run(oracle.ids, radii))


@attack(
    "apgd_ce",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=5000,
    citation=CITATION,
    only={"minimal": ["epsilon", "binary_search_steps"]},
    short={"steps": 15, "binary_search_steps": 4},
    approximation_ratio={"L2": (1.01, 1.2), "Linf": (1.01, 1.2)},
)
def apgd_ce(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 100,
    restarts: Count = 1,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs APGD on the cross-entropy, in the form of `attacks.parts.gradients.wrong_odds`.

    The gradients of `wrong_odds` do not underflow.
    """
    ascents = [(wrong_odds, y)] * restarts
    return restarted(oracle, x, ascents, steps=steps, epsilon=epsilon, binary_search_steps=binary_search_steps)


@attack(
    "apgd_dlr",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=5000,
    citation=CITATION,
    only={"minimal": ["epsilon", "binary_search_steps"]},
    short={"steps": 15, "binary_search_steps": 4},
    approximation_ratio={"L2": (1.02, 1.35), "Linf": (1.02, 1.35)},
)
def apgd_dlr(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 100,
    restarts: Count = 1,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs APGD on the difference of logits ratio."""
    ascents = [(difference_of_logits_ratio, y)] * restarts
    return restarted(oracle, x, ascents, steps=steps, epsilon=epsilon, binary_search_steps=binary_search_steps)


@attack(
    "pma",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=5000,
    citation="Xie, Zheng, Huang, Ye & Ma 2024, Towards million-scale adversarial robustness evaluation with stronger "
    f"individual attacks; ascent of {CITATION}",
    only={"minimal": ["epsilon", "binary_search_steps"]},
    short={"steps": 15, "binary_search_steps": 4},
    approximation_ratio={"L2": (1.02, 1.35), "Linf": (1.02, 1.35)},
)
def pma(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 100,
    restarts: Count = 1,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs APGD on the margin of probabilities (the probability margin attack's loss, `probability_margin`).

    The loss is the paper's, but for the scale of the logits. The softmax of large logits would round to 0 and 1. The
    ascent is not the paper's. Its code runs PGD with an annealed step size, which ascends single terms of the margin
    first.
    """
    ascents = [(probability_margin, y)] * restarts
    return restarted(oracle, x, ascents, steps=steps, epsilon=epsilon, binary_search_steps=binary_search_steps)


@attack(
    "apgd_t",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=40_000,
    citation=f"{CITATION}; targeting of Melamed, Yehudai & Shamir 2024, MALT powers up adversarial attacks",
    only={"minimal": ["epsilon", "binary_search_steps"]},
    short={"steps": 15, "binary_search_steps": 4, "targets": 2},
    approximation_ratio={"L2": (1.01, 1.1), "Linf": (1.01, 1.1)},
)
def apgd_t(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 100,
    targets: Count = 9,
    targeting: Literal["logits", "malt"] = "logits",
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs APGD on the targeted difference of logits ratio, towards ``targets`` wrong classes in turn.

    ``targeting`` ranks them: ``logits`` takes the likeliest ones (`by_logits`), ``malt`` those with the nearest
    boundaries (`by_malt`).
    """
    ranked = (by_malt if targeting == "malt" else by_logits)(oracle, x, y)
    ascents = [(targeted_ratio, torch.stack([y, classes], 1)) for classes in ranked.T[:targets]]
    return restarted(oracle, x, ascents, steps=steps, epsilon=epsilon, binary_search_steps=binary_search_steps)
