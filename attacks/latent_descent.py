"""Latent Descent (Schott et al. 2019, section 5): a walk towards the reconstruction under the likeliest wrong class."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.lines import bisect
from bench.contracts.cards import attack
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Natural, Positive


@attack(
    "latent_descent",
    norms=["L2"],
    access="latent",
    budget=1100,
    citation="Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on "
    "MNIST",
    approximation_ratio={"L2": (1.7, 2)},
)
def latent_descent(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 500,
    step_size: Positive = 0.01,
    binary_search_steps: Natural = 10,
    clean_binary_search_steps: Natural = 10,
) -> Tensor:
    """Repeats x_t <- (1 - a) x_t + a x_c (equation 9) until adversarial, at most ``steps`` times; a is ``step_size``.

    x_c is the reconstruction of x_t under its likeliest wrong class c. The last step is then halved
    ``binary_search_steps`` times. After that, the segment from the clean image to the result is halved
    ``clean_binary_search_steps`` times.
    """
    z, before = x.clone(), x.clone()
    walking = oracle.ids
    logits = oracle.scores(x, walking)
    for _ in range(steps):
        target = logits.scatter(1, y[walking, None], -torch.inf).argmax(1)
        reconstruction = oracle.reconstruct(z[walking], target, walking)
        before[walking] = z[walking]
        z[walking] = torch.lerp(z[walking], reconstruction, step_size).clamp(0, 1)
        logits = oracle.scores(z[walking], walking)
        rows = oracle.working(torch.arange(len(walking), device=x.device), walking)
        missed = rows[~oracle.reached(logits[rows], walking[rows])]
        walking, logits = walking[missed], logits[missed]
        if not len(walking):
            break
    hit = oracle.ids[oracle.found]
    refined = bisect(oracle, before[hit], z[hit], hit, binary_search_steps)
    bisect(oracle, x[hit], refined, hit, clean_binary_search_steps)
    return oracle.closest(z)
