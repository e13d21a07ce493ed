"""Iterated gradient steps in a ball: BIM, PGD and MIM, minimal by epsilon search or bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.epsilon_search import smallest_epsilon
from attacks.parts.gradients import per_image, usable, wrong_odds
from bench.contracts import ascent
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle, Oracle
from bench.contracts.parameters import Count, Natural, Positive


def ascend(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    radii: Tensor,
    *,
    start: Tensor,
    steps: int,
    relative_step_size: float,
    decay: float | None = None,
    clean_gradient: Tensor | None = None,
) -> Tensor:
    """Takes ``steps`` projected steps of length ``relative_step_size * radii`` up the loss; adversarial rows leave.

    Args:
        oracle: answers the queries.
        x: clean images (N, C, H, W), the centers of the balls.
        y: labels (N,) of ``x``.
        ids: samples (N,) of ``x``.
        radii: radii (N,) of the balls.
        start: first iterates (N, C, H, W).
        steps: number of steps.
        relative_step_size: length of a step relative to the radius.
        decay: decay of the momentum (Dong et al. 2018); no momentum if None.
        clean_gradient: gradient (N, C, H, W) at ``start``, where ``start`` is clean and its gradient is known.

    Returns:
        The last iterate of each row (N, C, H, W), adversarial where one was reached.
    """
    momentum, known = torch.zeros_like(x), clean_gradient

    def gradient(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal known
        if known is not None:
            slope, known = known, None
        else:
            if not len(rows := oracle.working(rows, ids)):
                return rows, z[:0]
            slope, logits = oracle.gradient(z[rows], y[rows], wrong_odds, ids[rows])
            failed = ~oracle.reached(logits, ids[rows])
            rows, slope = rows[failed], slope[failed]
        if decay is not None:
            slope = torch.nan_to_num(slope)
            mean = slope.flatten(1).abs().mean(1).clamp_min(torch.finfo(x.dtype).tiny)
            slope = momentum[rows] = decay * momentum[rows] + slope / per_image(mean)
        return rows, usable(slope, x[rows], oracle.threat.norm)

    radii = radii.to(x.dtype)
    z, rows = ascent.ascend(
        gradient, x, oracle.threat.norm, radii, start=start, lengths=[relative_step_size * radii] * steps
    )
    rows = oracle.working(rows, ids)
    if len(rows):
        oracle.scores(z[rows], ids[rows])
    return z


def random_start(oracle: GradientOracle, x: Tensor, ids: Tensor, radii: Tensor) -> Tensor:
    """Draws points uniformly from the balls of ``radii`` (N,) around ``x`` (N, C, H, W), clipped to [0, 1]."""
    norm = oracle.threat.norm
    offset = norm.uniform(oracle.random.rows(ids), x.shape[1:])
    return norm.project(x + per_image(radii.to(x.dtype)) * offset, x, radii)


@attack(
    "bim",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    budget=1000,
    citation="Kurakin, Goodfellow & Bengio 2017, Adversarial examples in the physical world",
    only={"minimal": ["epsilon", "binary_search_steps"]},
    short={"binary_search_steps": 5},
    approximation_ratio={"L2": (1.03, 1.3), "Linf": (1.06, 1.4)},
)
def bim(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 10,
    relative_step_size: Positive = 1 / 6,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 12,
) -> Tensor:
    """Runs the basic iterative method: ``steps`` of length ``relative_step_size`` times epsilon.

    The search starts at ``epsilon``.
    """
    return _from_clean(oracle, x, y, steps, relative_step_size, epsilon, binary_search_steps, decay=None)


@attack(
    "mim",
    norms=["Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    budget=1000,
    citation="Dong et al. 2018, Boosting adversarial attacks with momentum",
    only={"minimal": ["epsilon", "binary_search_steps"]},
    short={"binary_search_steps": 5},
    approximation_ratio={"Linf": (1.06, 1.4)},
)
def mim(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 10,
    relative_step_size: Positive = 0.2,
    decay: float = 1.0,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 12,
) -> Tensor:
    """Runs the momentum iterative method: BIM along the decayed sum of normalized gradients."""
    return _from_clean(oracle, x, y, steps, relative_step_size, epsilon, binary_search_steps, decay)


@attack(
    "pgd",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=3000,
    citation="Madry et al. 2018, Towards deep learning models resistant to adversarial attacks",
    only={"minimal": ["epsilon", "binary_search_steps"], "bounded": ["restarts"]},
    short={"steps": 10, "relative_step_size": 1 / 4, "binary_search_steps": 5},
    approximation_ratio={"L2": (1.03, 1.25), "Linf": (1.03, 1.3)},
)
def pgd(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Natural = 40,
    relative_step_size: Positive = 1 / 8,
    restarts: Count = 5,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 12,
) -> Tensor:
    """Runs projected gradient descent from a random start in the ball.

    A given ball gets up to ``restarts`` random starts.
    """

    def run(ids: Tensor, radii: Tensor) -> Tensor:
        start = random_start(oracle, x[ids], ids, radii)
        return ascend(
            oracle, x[ids], y[ids], ids, radii, start=start, steps=steps, relative_step_size=relative_step_size
        )

    if oracle.threat.epsilon is None:
        return smallest_epsilon(oracle, x, run, start=epsilon, binary_search_steps=binary_search_steps)
    last = x.clone()
    radii = torch.full((len(x),), oracle.threat.epsilon, dtype=torch.float64, device=x.device)
    for restart in range(restarts):
        oracle.lane = restart
        ids = oracle.ids[~oracle.found]
        if not len(ids := oracle.working(ids)):
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
    only={"minimal": ["epsilon", "binary_search_steps"], "bounded": ["restarts"]},
    short={"steps": 10, "relative_step_size": 1 / 4, "binary_search_steps": 5},
    approximation_ratio={"L2": (1.02, 1.2), "Linf": (1.02, 1.2)},
)
def eot_pgd(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    eot_samples: Count = 5,
    steps: Natural = 80,
    relative_step_size: Positive = 1 / 8,
    restarts: Count = 5,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 12,
) -> Tensor:
    """Runs `pgd` on gradients averaged over ``eot_samples`` draws (expectation over transformation)."""
    oracle.draws = eot_samples
    return pgd(
        oracle,
        x,
        y,
        steps=steps,
        relative_step_size=relative_step_size,
        restarts=restarts,
        epsilon=epsilon,
        binary_search_steps=binary_search_steps,
    )


@attack(
    "unrolled_pgd",
    norms=["L2", "Linf"],
    access="unrolled",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=50_000,
    citation="Tramer, Carlini, Brendel & Madry 2020, On adaptive attacks to adversarial example defenses",
    only={"minimal": ["epsilon", "binary_search_steps"], "bounded": ["restarts"]},
    short={"steps": 10, "relative_step_size": 1 / 4, "binary_search_steps": 5},
    approximation_ratio={"L2": (1.02, 1.2), "Linf": (1.02, 1.2)},
)
def unrolled_pgd(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    eot_samples: Count = 5,
    steps: Natural = 80,
    relative_step_size: Positive = 1 / 8,
    restarts: Count = 5,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 12,
) -> Tensor:
    """Runs `eot_pgd` through the optimization that a defense does at inference.

    Other attacks hold the result of this optimization fixed.
    """
    return eot_pgd(
        oracle,
        x,
        y,
        eot_samples=eot_samples,
        steps=steps,
        relative_step_size=relative_step_size,
        restarts=restarts,
        epsilon=epsilon,
        binary_search_steps=binary_search_steps,
    )


def _from_clean(
    oracle: GradientOracle,
    x: Tensor,
    y: Tensor,
    steps: int,
    relative_step_size: float,
    epsilon: float,
    binary_search_steps: int,
    decay: float | None,
) -> Tensor:
    """Runs ascents that start at the clean image and share its gradient."""
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
            relative_step_size=relative_step_size,
            decay=decay,
            clean_gradient=clean_gradient[ids],
        )

    if oracle.threat.epsilon is None:
        return smallest_epsilon(oracle, x, run, start=epsilon, binary_search_steps=binary_search_steps)
    radii = torch.full((len(x),), oracle.threat.epsilon, dtype=torch.float64, device=x.device)
    return oracle.closest(run(oracle.ids, radii))
