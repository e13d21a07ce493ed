"""Transfer: perturbations made on a substitute, scaled until they fool the defense (Schott et al. 2019, section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.fast_gradient import fgm, fgsm
from attacks.gradients import length, per_image, steepest
from attacks.iterative_gradient import bim
from attacks.lines import climb
from bench.cards import attack
from bench.oracle import Oracle


@attack(
    "transfer",
    norms=["L2", "Linf"],
    access="transfer",
    budget=200,
    citation="Papernot et al. 2017, Practical black-box attacks against machine learning; as in Schott et al. 2019",
)
def transfer(oracle: Oracle, x: Tensor, y: Tensor, *, rungs: int = 50, bisections: int = 10) -> Tensor:
    """The perturbations of BIM and of the fast gradient method on the matrix's ``substitute``, each along its direction
    as far as it must be; see `attacks.lines.climb`."""
    largest = 1.0 if oracle.threat.norm == "Linf" else math.sqrt(x.shape[1:].numel())
    last = x
    for source in (bim, fgm if oracle.threat.norm == "L2" else fgsm):
        perturbation = oracle.transferred(source) - x
        scale = length(perturbation) if oracle.threat.norm == "L2" else perturbation.flatten(1).abs().amax(1)
        # Where the substitute errs on the clean image its minimal perturbation is none at all.
        none = steepest(torch.zeros_like(x), x, oracle.threat.norm)
        direction = torch.where(per_image(scale > 0), perturbation / per_image(scale), none)
        last = climb(oracle, x, y, direction, largest, rungs, bisections)
    return oracle.closest(last)
