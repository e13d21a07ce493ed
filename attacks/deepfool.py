"""DeepFool (Moosavi-Dezfooli, Fawzi & Frossard 2016), algorithm 2, for L2 and Linf."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.gradients import GradientOracle, diameter, per_image, steepest
from attacks.lines import bisect
from bench.cards import attack
from bench.norms import of_norm
from bench.parameters import Count, Natural


@attack(
    "deepfool",
    norms=["L2", "Linf"],
    access="gradient",
    budget=600,
    citation="Moosavi-Dezfooli, Fawzi & Frossard 2016, DeepFool: a simple and accurate method to fool deep networks",
)
def deepfool(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 50,
    overshoot: float = 0.02,
    bisections: Natural = 10,
) -> Tensor:
    """Steps to the nearest boundary of the linearised classifier until the label changes.

    The k-th iterate overshoots the summed steps by k times ``overshoot``: with a fixed one, iterates would creep up to
    curved boundaries from inside. Each step takes the Jacobian of all logits and, cheaper than another
    one, a decision at the next iterate. The way from the clean image to the last iterate is then halved ``bisections``
    times, which takes the overshoot back.
    """
    z, total = x.clone(), torch.zeros_like(x)
    classes = torch.arange(oracle.classes, device=x.device)
    active = oracle.ids
    for k in range(1, steps + 1):
        active = active[oracle.affordable(active)]
        if not len(active):
            break
        jacobian, logits = oracle.jacobian(z[active], classes.expand(len(active), -1), active)
        total[active] += boundary_step(jacobian, logits, x[active], y[active], oracle)
        z[active] = (x[active] + (1 + k * overshoot) * total[active]).clamp(0, 1)
        active = active[oracle.affordable(active)]
        if len(active):
            active = active[oracle.decision(z[active], active) == y[active]]
    hit = oracle.ids[oracle.found]
    bisect(oracle, x[hit], z[hit], y[hit], hit, bisections)
    return oracle.closest(z)


def boundary_step(jacobian: Tensor, logits: Tensor, x: Tensor, y: Tensor, oracle: GradientOracle) -> Tensor:
    """The shortest step (N, C, H, W) to a boundary of the classifier linearised at the iterate (equations 7 to 9;
    13 to 15 for Linf): of length |f_k - f_y| / ||w_k - w_y|| in the dual norm, along the steepest direction."""
    rows = torch.arange(len(y), device=y.device)
    w = torch.nan_to_num(jacobian - jacobian[rows, y][:, None])
    f = logits - logits[rows, y][:, None]
    # In float64, where the squares of tiny derivatives do not underflow.
    order = of_norm(oracle.threat.norm, L2=2, Linf=1)
    dual = torch.linalg.vector_norm(w.flatten(2), order, dim=2, dtype=torch.float64)
    distances = (f.abs() / dual.clamp_min(torch.finfo(x.dtype).tiny)).to(x.dtype)
    distances[rows, y] = torch.inf
    nearest = distances.argmin(1)
    # Where all derivatives vanish the linearisation has no boundary; a step across the pixel range has to do.
    widest = diameter(x, oracle.threat.norm)
    step = distances[rows, nearest].clamp_max(widest) + 1e-4
    return per_image(step) * steepest(w[rows, nearest], x, oracle.threat.norm)
