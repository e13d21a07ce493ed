"""Iterated gradient steps in a ball: BIM, PGD and MIM; minimal by epsilon search, or bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.epsilon_search import smallest_epsilon
from attacks.gradients import GradientOracle, length, per_image, usable, wrong_odds
from bench import ascent
from bench.cards import attack
from bench.norms import check_norm
from bench.oracle import Oracle
from bench.parameters import Count, Natural, Positive
from bench.threat import project


def ascend(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    radii: Tensor,
    *,
    start: Tensor,
    steps: int,
    step: float,
    decay: float | None = None,
    clean_gradient: Tensor | None = None,
) -> Tensor:
    """``steps`` projected steps of length ``step * radii`` up the loss from ``start``; adversarial rows leave.

    Args:
        oracle: answers the queries.
        x: clean images (N, C, H, W), the balls' centres; ``y`` (N,) their labels, ``ids`` (N,) their samples.
        y: see ``x``.
        ids: see ``x``.
        radii: of the balls (N,).
        start: first iterates (N, C, H, W).
        steps: number of steps.
        step: length of a step relative to the radius.
        decay: of the momentum (Dong et al. 2018); without momentum if None.
        clean_gradient: the gradient at ``start``, where ``start`` is clean and its gradient is known.

    Returns:
        The last iterate of each row, adversarial where one was reached.
    """
    momentum, known = torch.zeros_like(x), clean_gradient

    def gradient(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal known
        if known is not None:
            slope, known = known, None
        else:
            rows = rows[oracle.affordable(ids[rows])]
            if not len(rows):
                return rows, z[:0]
            slope, logits = oracle.gradient(z[rows], y[rows], wrong_odds, ids[rows])
            failed = logits.argmax(1) == y[rows]
            rows, slope = rows[failed], slope[failed]
        if decay is not None:
            slope = torch.nan_to_num(slope)
            mean = slope.flatten(1).abs().mean(1).clamp_min(torch.finfo(x.dtype).tiny)
            slope = momentum[rows] = decay * momentum[rows] + slope / per_image(mean)
        return rows, usable(slope, x[rows], oracle.threat.norm)

    radii = radii.to(x.dtype)
    z, rows = ascent.ascend(gradient, x, oracle.threat.norm, radii, start=start, lengths=[step * radii] * steps)
    rows = rows[oracle.affordable(ids[rows])]
    if len(rows):
        oracle.scores(z[rows], ids[rows])
    return z


def random_start(oracle: GradientOracle, x: Tensor, ids: Tensor, radii: Tensor) -> Tensor:
    """Points drawn uniformly from the balls of ``radii`` (N,) around ``x`` (N, C, H, W), clipped to [0, 1]."""
    check_norm(oracle.threat.norm, ("L2", "Linf"))
    if oracle.threat.norm == "Linf":
        offset = 2 * oracle.random.uniform(ids, x.shape[1:]) - 1
    else:
        direction = oracle.random.normal(ids, x.shape[1:])
        radius = oracle.random.uniform(ids, ()) ** (1 / x.shape[1:].numel())
        offset = direction * per_image(radius / length(direction))
    return project(x + per_image(radii.to(x.dtype)) * offset, x, oracle.threat.norm, radii)


@attack(
    "bim",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    budget=1000,
    citation="Kurakin, Goodfellow & Bengio 2017, Adversarial examples in the physical world",
    only={"minimal": ["epsilon", "bisections"]},
)
def bim(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 10,
    step: Positive = 1 / 6,
    epsilon: Positive = 0.3,
    bisections: Natural = 12,
) -> Tensor:
    """Basic iterative method: ``steps`` of length ``step`` times epsilon; the search starts at ``epsilon``."""
    return _from_clean(oracle, x, y, steps, step, epsilon, bisections, decay=None)


@attack(
    "mim",
    norms=["Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    budget=1000,
    citation="Dong et al. 2018, Boosting adversarial attacks with momentum",
    only={"minimal": ["epsilon", "bisections"]},
)
def mim(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 10,
    step: Positive = 0.2,
    decay: float = 1.0,
    epsilon: Positive = 0.3,
    bisections: Natural = 12,
) -> Tensor:
    """Momentum iterative method: BIM along the decayed sum of normalised gradients."""
    return _from_clean(oracle, x, y, steps, step, epsilon, bisections, decay)


@attack(
    "pgd",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=3000,
    citation="Madry et al. 2018, Towards deep learning models resistant to adversarial attacks",
    only={"minimal": ["epsilon", "bisections"], "bounded": ["restarts"]},
)
def pgd(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Natural = 40,
    step: Positive = 1 / 8,
    restarts: Count = 5,
    epsilon: Positive = 0.3,
    bisections: Natural = 12,
) -> Tensor:
    """Projected gradient descent from random points of the ball; in a given ball with up to ``restarts`` starts."""

    def run(ids: Tensor, radii: Tensor) -> Tensor:
        start = random_start(oracle, x[ids], ids, radii)
        return ascend(oracle, x[ids], y[ids], ids, radii, start=start, steps=steps, step=step)

    if oracle.threat.epsilon is None:
        return smallest_epsilon(oracle, x, run, start=epsilon, bisections=bisections)
    last = x.clone()
    radii = torch.full((len(x),), oracle.threat.epsilon, dtype=torch.float64, device=x.device)
    for _ in range(restarts):
        ids = oracle.ids[~oracle.found]
        ids = ids[oracle.affordable(ids)]
        if not len(ids):
            break
        last[ids] = run(ids, radii[ids])
    return oracle.closest(last)


@attack(
    "eot_pgd",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=50_000,
    citation="Athalye, Engstrom, Ilyas & Kwok 2018, Synthesizing robust adversarial examples; as in Ju & Wagner 2020, "
    "E-ABS",
    only={"minimal": ["epsilon", "bisections"], "bounded": ["restarts"]},
)
def eot_pgd(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    draws: Count = 5,
    steps: Natural = 80,
    step: Positive = 1 / 8,
    restarts: Count = 5,
    epsilon: Positive = 0.3,
    bisections: Natural = 12,
) -> Tensor:
    """`pgd` on gradients averaged over ``draws`` of a randomised defense (expectation over transformation)."""
    oracle.draws = draws
    return pgd(oracle, x, y, steps=steps, step=step, restarts=restarts, epsilon=epsilon, bisections=bisections)


@attack(
    "unrolled_pgd",
    norms=["L2", "Linf"],
    access="unrolled",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=50_000,
    citation="Tramer, Carlini, Brendel & Madry 2020, On adaptive attacks to adversarial example defenses",
    only={"minimal": ["epsilon", "bisections"], "bounded": ["restarts"]},
)
def unrolled_pgd(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    draws: Count = 5,
    steps: Natural = 80,
    step: Positive = 1 / 8,
    restarts: Count = 5,
    epsilon: Positive = 0.3,
    bisections: Natural = 12,
) -> Tensor:
    """`eot_pgd` through the optimisation that a defense does at inference, whose end other attacks hold fixed."""
    return eot_pgd(
        oracle, x, y, draws=draws, steps=steps, step=step, restarts=restarts, epsilon=epsilon, bisections=bisections
    )


def _from_clean(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    steps: int,
    step: float,
    epsilon: float,
    bisections: int,
    decay: float | None,
) -> Tensor:
    """Ascents that start at the clean image, whose gradient all of them share."""
    clean_gradient, _ = oracle.gradient(x, y, wrong_odds, oracle.ids)

    def run(ids: Tensor, radii: Tensor) -> Tensor:
        return ascend(
            oracle,
            x[ids],
            y[ids],
            ids,
            radii,
            start=x[ids],
            steps=steps,
            step=step,
            decay=decay,
            clean_gradient=clean_gradient[ids],
        )

    if oracle.threat.epsilon is None:
        return smallest_epsilon(oracle, x, run, start=epsilon, bisections=bisections)
    radii = torch.full((len(x),), oracle.threat.epsilon, dtype=torch.float64, device=x.device)
    return oracle.closest(run(oracle.ids, radii))
