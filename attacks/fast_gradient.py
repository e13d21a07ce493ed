"""One gradient and a line search: FGM (L2) and FGSM (Linf)."""

from __future__ import annotations

from torch import Tensor

from attacks.gradients import GradientOracle, diameter, steepest, wrong_odds
from attacks.lines import climb
from bench.cards import attack
from bench.parameters import Count, Natural

CITATION = "Goodfellow, Shlens & Szegedy 2015, Explaining and harnessing adversarial examples"


def line_search(oracle: GradientOracle, x: Tensor, y: Tensor, rungs: int, bisections: int) -> Tensor:
    """The first adversarial ``clip(x + epsilon d)`` along the steepest direction d of the clean image; epsilon goes up
    to the pixel box's diameter, see `attacks.lines.climb`."""
    gradient, _ = oracle.gradient(x, y, wrong_odds, oracle.ids)
    norm = oracle.threat.norm
    direction = steepest(gradient, x, norm)
    return oracle.closest(climb(oracle, x, y, direction, diameter(x, norm), rungs, bisections))


@attack("fgm", norms=["L2"], access="gradient", budget=200, citation=CITATION)
def fgm(oracle: GradientOracle, x: Tensor, y: Tensor, *, rungs: Count = 50, bisections: Natural = 5) -> Tensor:
    """Fast gradient method: along the gradient, up to a root mean square change of 1."""
    return line_search(oracle, x, y, rungs, bisections)


@attack("fgsm", norms=["Linf"], access="gradient", budget=200, citation=CITATION)
def fgsm(oracle: GradientOracle, x: Tensor, y: Tensor, *, rungs: Count = 50, bisections: Natural = 5) -> Tensor:
    """Fast gradient sign method: along the sign of the gradient."""
    return line_search(oracle, x, y, rungs, bisections)
