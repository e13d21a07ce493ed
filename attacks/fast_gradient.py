"""One gradient and a line search: FGM (L2) and FGSM (Linf)."""

from __future__ import annotations

import math

from torch import Tensor

from attacks.parts.gradients import steepest, wrong_odds
from attacks.parts.lines import climb
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count, Natural

CITATION = "Goodfellow, Shlens & Szegedy 2015, Explaining and harnessing adversarial examples"


def line_search(oracle: GradientOracle, x: Tensor, y: Tensor, num_scales: int, binary_search_steps: int) -> Tensor:
    """Searches for the first adversarial ``clip(x + epsilon d)`` along the steepest direction d of the clean image.

    Epsilon grows up to the pixel box's diameter; see `attacks.parts.lines.climb`.
    """
    gradient, _ = oracle.gradient(x, y, wrong_odds, oracle.ids)
    norm = oracle.threat.norm
    direction = steepest(gradient, x, norm)
    return oracle.closest(climb(oracle, x, direction, norm.diameter(x.shape[1:]), num_scales, binary_search_steps))


@attack(
    "fgm",
    norms=["L2"],
    access="gradient",
    budget=200,
    citation=CITATION,
    approximation_ratio={"L2": (1.12, 4)},
)
def fgm(
    oracle: GradientOracle, x: Tensor, y: Tensor, *, num_scales: Count = 50, binary_search_steps: Natural = 5
) -> Tensor:
    """Runs the fast gradient method: along the gradient, up to a root mean square change of 1."""
    return line_search(oracle, x, y, num_scales, binary_search_steps)


@attack(
    "fgsm",
    norms=["Linf"],
    access="gradient",
    budget=200,
    citation=CITATION,
    approximation_ratio={"Linf": (1.12, math.inf)},
)
def fgsm(
    oracle: GradientOracle, x: Tensor, y: Tensor, *, num_scales: Count = 50, binary_search_steps: Natural = 5
) -> Tensor:
    """Runs the fast gradient sign method: along the sign of the gradient."""
    return line_search(oracle, x, y, num_scales, binary_search_steps)
