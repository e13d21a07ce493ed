"""The L2 attack of Carlini & Wagner 2017, Towards evaluating the robustness of neural networks (section V)."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.gradients import logit_margin, per_image, to_spread
from attacks.parts.lines import tightened
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count, Natural, Positive

INSIDE = 1 - 1e-6
"""Factor that keeps pixels strictly within [-1, 1], where atanh is finite."""
GROWTH = 10.0
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@attack(
    "cw",
    norms=["L2"],
    access="gradient",
    budget=2000,
    citation="Carlini & Wagner 2017, Towards evaluating the robustness of neural networks",
    short={"searches": 5, "steps": 40},
    approximation_ratio={"L2": (1.03, 1.2)},
)
def cw(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    searches: Count = 6,
    steps: Count = 150,
    learning_rate: Positive = 0.05,
    constant: Positive = 0.1,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Minimizes ||z - x||^2 + c max(f(z), 0), z = (tanh(w) + 1) / 2, by ``steps`` of Adam in w.

    f(z) is the margin of the true class, with the clean image's logits scaled to the standard deviation
    `attacks.parts.gradients.SPREAD`. c starts at ``constant`` and grows tenfold until a run succeeds. A binary search
    then refines c, over ``searches`` runs in all. The segment from the clean image to the closest adversarial example
    is then halved ``binary_search_steps`` times.
    """
    last = x.clone()
    constants = torch.full((len(x),), constant, device=x.device)
    low, high = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
    for _ in range(searches):
        if not len(ids := oracle.working(oracle.ids)):
            break
        last[ids], hit = descend(oracle, x[ids], y[ids], ids, constants[ids], steps, learning_rate)
        high[ids[hit]], low[ids[~hit]] = constants[ids[hit]], constants[ids[~hit]]
        constants = torch.where(torch.isfinite(high), (low + high) / 2, constants * GROWTH)
    return tightened(oracle, x, last, binary_search_steps)


def descend(
    oracle: GradientOracle, x: Tensor, y: Tensor, ids: Tensor, constants: Tensor, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """Runs Adam from the clean images (N, C, H, W) with ``constants`` (N,).

    Returns the last iterates (N, C, H, W), and True (N,) for rows with an adversarial iterate.
    """
    w = torch.atanh((2 * x - 1) * INSIDE)
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    hit = torch.zeros_like(ids, dtype=torch.bool)
    scale = torch.ones_like(constants)
    rows = torch.arange(len(ids), device=ids.device)
    for k in range(1, steps + 1):
        if not len(rows := oracle.working(rows, ids)):
            break
        squashed = w[rows].tanh()
        z = (squashed + 1) / 2
        gradient, logits = oracle.gradient(z, y[rows], logit_margin, ids[rows])
        if k == 1:
            scale[rows] = to_spread(logits)[:, 0]
        wrong = oracle.reached(logits, ids[rows])
        hit[rows] |= wrong
        pull = per_image(constants[rows] * ~wrong) * torch.nan_to_num(per_image(scale[rows]) * gradient)
        slope = (2 * (z - x[rows]) - pull) * (1 - squashed.square()) / 2
        mean[rows] = BETA_1 * mean[rows] + (1 - BETA_1) * slope
        square[rows] = BETA_2 * square[rows] + (1 - BETA_2) * slope.square()
        deviation = (square[rows] / (1 - BETA_2**k)).sqrt() + EPSILON
        w[rows] -= learning_rate / (1 - BETA_1**k) * mean[rows] / deviation
    return (w.tanh() + 1) / 2, hit
