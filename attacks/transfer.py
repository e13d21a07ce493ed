"""Transfer: perturbations made on a substitute, scaled until they fool the defense (Schott et al. 2019, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.fast_gradient import fgm, fgsm
from attacks.gradients import diameter, length, per_image, steepest
from attacks.iterative_gradient import bim
from attacks.lines import climb
from bench.cards import attack
from bench.norms import of_norm
from bench.oracle import Oracle
from bench.parameters import Count, Natural


@attack(
    "transfer",
    norms=["L2", "Linf"],
    access="transfer",
    budget=200,
    citation="Papernot et al. 2017, Practical black-box attacks against machine learning; as in Schott et al. 2019",
)
def transfer(oracle: Oracle, x: Tensor, y: Tensor, *, rungs: Count = 50, bisections: Natural = 10) -> Tensor:
    """The perturbations of BIM and of the fast gradient method on the matrix's ``substitute``, each along its direction
    as far as it must be; see `attacks.lines.climb`."""
    norm = oracle.threat.norm
    last = x
    for source in (bim, of_norm(norm, L2=fgm, Linf=fgsm)):
        perturbation = oracle.transferred(source) - x
        scale = of_norm(norm, L2=length(perturbation), Linf=perturbation.flatten(1).abs().amax(1))
        # Where the substitute errs on the clean image its minimal perturbation is none at all.
        none = steepest(torch.zeros_like(x), x, norm)
        direction = torch.where(per_image(scale > 0), perturbation / per_image(scale), none)
        last = climb(oracle, x, y, direction, diameter(x, norm), rungs, bisections)
    return oracle.closest(last)
