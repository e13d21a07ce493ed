"""Latent Descent (Schott et al. 2019, section 5): walk towards the reconstruction under the likeliest wrong class."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.lines import bisect
from bench.cards import attack
from bench.oracle import Oracle
from bench.parameters import Count, Natural, Positive


@attack(
    "latent_descent",
    norms=["L2"],
    access="latent",
    budget=1100,
    citation="Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on "
    "MNIST",
)
def latent_descent(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 500,
    step: Positive = 0.01,
    bisections: Natural = 10,
    clean_bisections: Natural = 10,
) -> Tensor:
    """x_t <- (1 - ``step``) x_t + ``step`` x_c (equation 9) until adversarial, at most ``steps`` times.

    x_c is the reconstruction of x_t under its likeliest wrong class c. Then ``bisections`` within the last step, and
    ``clean_bisections`` between its end and the clean image.
    """
    z, before = x.clone(), x.clone()
    walking = oracle.ids
    logits = oracle.scores(x, walking)
    for _ in range(steps):
        target = logits.scatter(1, y[walking, None], -torch.inf).argmax(1)
        reconstruction = oracle.reconstruct(z[walking], target, walking)
        before[walking] = z[walking]
        z[walking] = torch.lerp(z[walking], reconstruction, step).clamp(0, 1)
        logits = oracle.scores(z[walking], walking)
        missed = (logits.argmax(1) == y[walking]) & oracle.affordable(walking)
        walking, logits = walking[missed], logits[missed]
        if not len(walking):
            break
    hit = oracle.ids[oracle.found]
    refined = bisect(oracle, before[hit], z[hit], y[hit], hit, bisections)
    bisect(oracle, x[hit], refined, y[hit], hit, clean_bisections)
    return oracle.closest(z)
