"""Transfer: perturbations made on a substitute, scaled until they fool the defense (Schott et al. 2019, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.fast_gradient import fgm, fgsm
from attacks.iterative_gradient import bim
from attacks.parts.gradients import length, per_image, steepest
from attacks.parts.lines import climb
from bench.contracts.cards import attack
from bench.contracts.norms import of_norm
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Natural


@attack(
    "transfer",
    norms=["L2", "Linf"],
    access="transfer",
    budget=200,
    citation="Papernot et al. 2017, Practical black-box attacks against machine learning; as in Schott et al. 2019",
    # With the attacked defense itself as the substitute.
    approximation_ratio={"L2": (1.05, 1.3), "Linf": (1.08, 1.3)},
)
def transfer(
    oracle: Oracle, x: Tensor, y: Tensor, *, num_scales: Count = 50, binary_search_steps: Natural = 10
) -> Tensor:
    """Scales the perturbations of BIM and of the fast gradient method on the matrix's ``substitute``.

    Each perturbation goes along its direction as far as needed; see `attacks.parts.lines.climb`.
    """
    norm = oracle.threat.norm
    last = x
    for source in (bim, of_norm(norm.name, L2=fgm, Linf=fgsm)):
        perturbation = oracle.transferred(source) - x
        scale = of_norm(norm.name, L2=length(perturbation), Linf=perturbation.flatten(1).abs().amax(1))
        # Where the substitute misclassifies the clean image, its minimal perturbation is zero.
        none = steepest(torch.zeros_like(x), x, norm)
        direction = torch.where(per_image(scale > 0), perturbation / per_image(scale), none)
        last = climb(oracle, x, direction, norm.diameter(x.shape[1:]), num_scales, binary_search_steps)
    return oracle.closest(last)
