"""DeepFool (Moosavi-Dezfooli, Fawzi & Frossard 2016), algorithm 2, for L2 and Linf."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.gradients import per_image, steepest
from attacks.parts.lines import bisect
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count, Natural


@attack(
    "deepfool",
    norms=["L2", "Linf"],
    access="gradient",
    budget=600,
    citation="Moosavi-Dezfooli, Fawzi & Frossard 2016, DeepFool: a simple and accurate method to fool deep networks",
    approximation_ratio={"L2": (1.002, 1.2), "Linf": (1.01, 1.4)},
)
def deepfool(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 50,
    overshoot: float = 0.02,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Steps to the nearest boundary of the linearized classifier until the label changes.

    The k-th iterate overshoots the summed steps by k times ``overshoot``. With a fixed overshoot, iterates would creep
    up to curved boundaries from inside. Each step takes the Jacobian of all logits and a decision at the next iterate.
    The decision is cheaper than another Jacobian. The segment from the clean image to the last iterate is then halved
    ``binary_search_steps`` times, to remove the overshoot.
    """
    z, total = x.clone(), torch.zeros_like(x)
    classes = torch.arange(oracle.classes, device=x.device)
    active = oracle.ids
    for k in range(1, steps + 1):
        if not len(active := oracle.working(active)):
            break
        jacobian, logits = oracle.jacobian(z[active], classes.expand(len(active), -1), active)
        total[active] += boundary_step(jacobian, logits, x[active], y[active], oracle)
        z[active] = (x[active] + (1 + k * overshoot) * total[active]).clamp(0, 1)
        active = oracle.working(active)
        if len(active):
            active = active[~oracle.adversarial(z[active], active)]
    hit = oracle.ids[oracle.found]
    bisect(oracle, x[hit], z[hit], hit, binary_search_steps)
    return oracle.closest(z)


def boundary_step(jacobian: Tensor, logits: Tensor, x: Tensor, y: Tensor, oracle: GradientOracle) -> Tensor:
    """Returns the shortest step (N, C, H, W) to a boundary of the classifier linearized at the iterate.

    The length of the step is |f_k - f_y| / ||w_k - w_y||, with the dual norm in the denominator. The step follows the
    steepest direction (equations 7 to 9; 13 to 15 for Linf).
    """
    rows = torch.arange(len(y), device=y.device)
    w = torch.nan_to_num(jacobian - jacobian[rows, y][:, None])
    f = logits - logits[rows, y][:, None]
    # In float64, where the squares of tiny derivatives do not underflow.
    norm = oracle.threat.norm
    dual = norm.dual(w.flatten(0, 1).double()).reshape(f.shape)
    distances = (f.abs() / dual.clamp_min(torch.finfo(x.dtype).tiny)).to(x.dtype)
    distances[rows, y] = torch.inf
    nearest = distances.argmin(1)
    # Where all derivatives vanish, the linearization has no boundary. The step then crosses the pixel range.
    step = distances[rows, nearest].clamp_max(norm.diameter(x.shape[1:])) + 1e-4
    return per_image(step) * steepest(w[rows, nearest], x, norm)
