"""One gradient and a line search: FGM (L2) and FGSM (Linf)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.gradients import GradientOracle, steepest, wrong_odds
from attacks.lines import bisect
from bench.cards import attack

CITATION = "Goodfellow, Shlens & Szegedy 2015, Explaining and harnessing adversarial examples"


def line_search(oracle: GradientOracle, x: Tensor, y: Tensor, largest: float, rungs: int, bisections: int) -> Tensor:
    """The first adversarial ``clip(x + epsilon d)`` along the steepest direction d of the clean image.

    Epsilon climbs from ``largest / 1000``, the reference's finest step, to ``largest`` on a geometric ladder: its
    relative resolution is the same everywhere, where the reference's 1000 even steps are too fine at the top and too
    coarse at the bottom. The interval below the first hit is then halved ``bisections`` times.
    """
    gradient, _ = oracle.gradient(x, y, wrong_odds, oracle.ids)
    direction = steepest(gradient, x, oracle.threat.norm)
    ladder = largest * torch.logspace(-3, 0, rungs, dtype=torch.float64).to(x)
    low, high = x.clone(), x.clone()
    climbing = oracle.ids
    for epsilon in ladder:
        climbing = climbing[oracle.affordable(climbing)]
        if not len(climbing):
            break
        low[climbing] = high[climbing]
        high[climbing] = (x[climbing] + epsilon * direction[climbing]).clamp(0, 1)
        missed = oracle.scores(high[climbing], climbing).argmax(1) == y[climbing]
        climbing = climbing[missed]
    hit = oracle.ids[oracle.found]
    bisect(oracle, low[hit], high[hit], y[hit], hit, bisections)
    return oracle.closest(high)


@attack("fgm", norms=["L2"], access="gradient", budget=200, citation=CITATION)
def fgm(oracle: GradientOracle, x: Tensor, y: Tensor, *, rungs: int = 50, bisections: int = 5) -> Tensor:
    """Fast gradient method: along the gradient, up to a root mean square change of 1."""
    return line_search(oracle, x, y, math.sqrt(x.shape[1:].numel()), rungs, bisections)


@attack("fgsm", norms=["Linf"], access="gradient", budget=200, citation=CITATION)
def fgsm(oracle: GradientOracle, x: Tensor, y: Tensor, *, rungs: int = 50, bisections: int = 5) -> Tensor:
    """Fast gradient sign method: along the sign of the gradient."""
    return line_search(oracle, x, y, 1.0, rungs, bisections)
