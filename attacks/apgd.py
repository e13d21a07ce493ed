"""Auto-PGD: projected gradient ascent with momentum, whose step size halves where progress stalls.

Algorithm 1 of Croce & Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attacks.iterative_gradient import random_start
from attacks.parts.epsilon_search import smallest_epsilon
from attacks.parts.gradients import logit_margin, per_image, steepest, wrong_odds
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
    loss: Callable[[Tensor], Loss],
    steps: int,
) -> Tensor:
    """Ascends a loss within balls, from random starts; adversarial rows leave.

    Args:
        oracle: answers the queries.
        x: clean images (N, C, H, W), the centers of the balls.
        y: labels (N,) of ``x``.
        ids: samples (N,) of ``x``.
        radii: radii (N,) of the balls.
        loss: returns the loss for samples (M,).
        steps: number of gradients after the first.

    Returns:
        The iterate (N, C, H, W) of the largest loss in each row, adversarial where one was reached.
    """
    norm = oracle.threat.norm
    radii = radii.to(x.dtype)
    z = random_start(oracle, x, ids, radii)
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
        function = loss(ids[rows])
        gradient, logits = oracle.gradient(z[rows], y[rows], function, ids[rows])
        now = function(logits, y[rows])
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
    return best


def difference_of_logits_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """The DLR loss (N,) of logits (N, K): -(z_y - max_{i != y} z_i) / (z_1st - z_3rd) (equation 6)."""
    return logit_margin(logits, y) / _spread(logits, [2])


def targeted_ratio(targets: Tensor) -> Loss:
    """Returns the targeted DLR loss towards ``targets`` (N,) (equation 7).

    The loss (N,) of logits (N, K) is -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2).
    """

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        true, target = logits.gather(1, y[:, None])[:, 0], logits.gather(1, targets[:, None])[:, 0]
        return (target - true) / _spread(logits, [2, 3])

    return loss


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
    y: Tensor,
    losses: Sequence[Callable[[Tensor], Loss]],
    *,
    steps: int,
    epsilon: float,
    binary_search_steps: int,
) -> Tensor:
    """Runs one ascent for each of ``losses`` on the samples that are left.

    The ascents run in the threat model's ball, or in a search for the smallest epsilon that starts at ``epsilon``.
    """

    def run(ids: Tensor, radii: Tensor) -> Tensor:
        last = x[ids]
        left = torch.arange(len(ids), device=ids.device)
        for restart, loss in enumerate(losses):
            oracle.lane = restart
            left = left[oracle.closest_distance[ids[left]] > radii[left]]
            if not len(left := oracle.working(left, ids)):
                break
            last[left] = ascend(oracle, x[ids[left]], y[ids[left]], ids[left], radii[left], loss, steps)
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
    losses = [lambda ids: wrong_odds] * restarts
    return restarted(oracle, x, y, losses, steps=steps, epsilon=epsilon, binary_search_steps=binary_search_steps)


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
    losses = [lambda ids: difference_of_logits_ratio] * restarts
    return restarted(oracle, x, y, losses, steps=steps, epsilon=epsilon, binary_search_steps=binary_search_steps)


@attack(
    "apgd_t",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=40_000,
    citation=CITATION,
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
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs APGD on the targeted difference of logits ratio, towards the ``targets`` likeliest wrong classes in turn."""
    logits = oracle.scores(x, oracle.ids)
    ranked = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)

    def towards(place: int) -> Callable[[Tensor], Loss]:
        return lambda ids: targeted_ratio(ranked[ids, place])

    losses = [towards(place) for place in range(min(targets, oracle.classes - 1))]
    return restarted(oracle, x, y, losses, steps=steps, epsilon=epsilon, binary_search_steps=binary_search_steps)
