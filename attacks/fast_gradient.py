"""One gradient and a line search: FGM (L2) and FGSM (Linf)."""

from __future__ import annotations

import math

from torch import Tensor

from attacks.gradients import GradientOracle, steepest, wrong_odds
from attacks.lines import climb
from bench.cards import attack

CITATION = "Goodfellow, Shlens & Szegedy 2015, Explaining and harnessing adversarial examples"


def line_search(oracle: GradientOracle, x: Tensor, y: Tensor, largest: float, rungs: int, bisections: int) -> Tensor:
    """The first adversarial ``clip(x + epsilon d)``, epsilon up to ``largest``, along the steepest direction d of the
    clean image; see `attacks.lines.climb`."""
    gradient, _ = oracle.gradient(x, y, wrong_odds, oracle.ids)
    direction = steepest(gradient, x, oracle.threat.norm)
    return oracle.closest(climb(oracle, x, y, direction, largest, rungs, bisections))


@attack("fgm", norms=["L2"], access="gradient", budget=200, citation=CITATION)
def fgm(oracle: GradientOracle, x: Tensor, y: Tensor, *, rungs: int = 50, bisections: int = 5) -> Tensor:
    """Fast gradient method: along the gradient, up to a root mean square change of 1."""
    return line_search(oracle, x, y, math.sqrt(x.shape[1:].numel()), rungs, bisections)


@attack("fgsm", norms=["Linf"], access="gradient", budget=200, citation=CITATION)
def fgsm(oracle: GradientOracle, x: Tensor, y: Tensor, *, rungs: int = 50, bisections: int = 5) -> Tensor:
    """Fast gradient sign method: along the sign of the gradient."""
    return line_search(oracle, x, y, 1.0, rungs, bisections)
