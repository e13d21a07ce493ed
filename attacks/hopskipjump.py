"""HopSkipJumpAttack (Chen, Jordan & Wainwright 2020): gradient steps along the boundary, by decisions alone.

Half of the random directions are low frequencies, as in `attacks.boundary` (Brunner et al. 2019; for this attack Li et
al. 2020, QEBA). The other half keeps every pixel in reach.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.boundary import smoothed
from attacks.parts.gradients import per_image
from attacks.parts.starts import starting_points
from bench.contracts.cards import attack
from bench.contracts.norms import NormName, check_norm, of_norm
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count

DRAWS_AT_ONCE = 64
"""Random directions per query. A sample overdraws its budget by at most this number."""
FIRST_DELTA = 0.1
HALVINGS = 25
"""Tries of a step, each half as long as the last, before the step is given up."""


@attack(
    "hopskipjump",
    norms=["L2", "Linf"],
    access="decision",
    stochastic=True,
    refines=True,
    budget=8000,
    citation="Chen, Jordan & Wainwright 2020, HopSkipJumpAttack: a query-efficient decision-based attack",
    short={"steps": 6, "draws": 30},
    approximation_ratio={"L2": (1.1, 1.6), "Linf": (1.1, 1.6)},
)
def hopskipjump(oracle: Oracle, x: Tensor, y: Tensor, *, steps: Count = 30, draws: Count = 50) -> Tensor:
    """Runs algorithm 2: a step from the boundary along the estimated gradient, then a binary search back to it.

    The t-th of ``steps`` estimates the gradient of each sample alone, from ``draws * sqrt(t)`` random directions. The
    step size starts at ``1 / sqrt(t)`` times the distance and is halved until the image is adversarial.
    """
    z, found = starting_points(oracle, x, y)
    active = oracle.ids[found]
    z[active] = to_boundary(oracle, x[active], z[active], active)
    for t in range(1, steps + 1):
        if not len(active := oracle.working(active)):
            break
        distance = oracle.threat.distance(z[active], x[active]).to(x)
        delta = torch.full_like(distance, FIRST_DELTA) if t == 1 else distance / x[0].numel()
        gradient = boundary_gradient(oracle, z[active], active, delta, int(draws * math.sqrt(t)))
        direction = oracle.threat.norm.steepest(gradient)
        stepped, moved = step(oracle, z[active], active, direction, distance / math.sqrt(t))
        rows = active[moved]
        z[rows] = to_boundary(oracle, x[rows], stepped[moved], rows)
    return oracle.closest(z)


def boundary_gradient(oracle: Oracle, z: Tensor, ids: Tensor, delta: Tensor, draws: int) -> Tensor:
    """Estimates the direction (N, C, H, W) into the adversarial side at points ``z`` of the boundary (equation 12).

    The estimate is the weighted mean of random directions of length ``delta`` (N,). The weight is 1 where the direction
    is adversarial and -1 elsewhere, less the mean of these signs. Subtracting the mean lowers the variance where the
    signs are unbalanced.
    """
    signs = z.new_zeros(len(z))
    directions, signed = torch.zeros_like(z), torch.zeros_like(z)
    for start in range(0, draws, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, draws - start)
        noise = random_directions(oracle, ids, count, z.shape[1:])
        scale = delta[:, None, None, None, None]
        asked = (z[:, None] + scale * noise).clamp(0, 1)
        # The query was about the clipped direction.
        noise = (asked - z[:, None]) / scale
        hits = oracle.adversarial(asked.flatten(0, 1), ids.repeat_interleave(count)).reshape(-1, count)
        sign = torch.where(hits, 1.0, -1.0)
        signs += sign.sum(1)
        directions += noise.sum(1)
        signed += (sign[:, :, None, None, None] * noise).sum(1)
    mean = signs / draws
    # Where all signs agree, subtracting their mean would leave zero.
    baseline = torch.where(mean.abs() == 1, 0.0, mean)
    return (signed - per_image(baseline) * directions) / draws


def random_directions(oracle: Oracle, ids: Tensor, count: int, shape: torch.Size) -> Tensor:
    """Draws directions (N, count, C, H, W) of Euclidean length one, the second half smooth.

    The noise is Gaussian for L2 and uniform for Linf.
    """
    norm = oracle.threat.norm.name
    check_norm(norm, ("L2", "Linf"))
    if norm == "L2":
        noise = oracle.random.normal(ids, (count, *shape))
    else:
        noise = 2 * oracle.random.uniform(ids, (count, *shape)) - 1
    smooth = smoothed(noise[:, count // 2 :].flatten(0, 1)).reshape(noise[:, count // 2 :].shape)
    noise = torch.cat([noise[:, : count // 2], smooth], 1)
    directions: Tensor = noise / noise.flatten(2).norm(dim=2)[:, :, None, None, None]
    return directions


def step(oracle: Oracle, z: Tensor, ids: Tensor, direction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Moves ``z`` by ``size * direction``, with ``size`` (N,) halved until the result is adversarial.

    Returns the last images tried (N, C, H, W), and True (N,) for adversarial ones.
    """
    stepped, moved = z.clone(), torch.zeros(len(z), dtype=torch.bool, device=z.device)
    rows = torch.arange(len(z), device=z.device)
    for k in range(HALVINGS):
        if not len(rows := oracle.working(rows, ids)):
            break
        stepped[rows] = (z[rows] + per_image(size[rows] / 2**k) * direction[rows]).clamp(0, 1)
        hit = oracle.adversarial(stepped[rows], ids[rows])
        moved[rows[hit]] = True
        rows = rows[~hit]
    return stepped, moved


def to_boundary(oracle: Oracle, x: Tensor, z: Tensor, ids: Tensor) -> Tensor:
    """Runs a binary search between the clean ``x`` and the adversarial ``z`` (N, C, H, W).

    Returns the adversarial ends (N, C, H, W). The precision is the paper's theta, as a share of the way: d^(-3/2) for
    L2 and d^(-2) for Linf, with d pixel values.
    """
    norm = oracle.threat.norm.name
    size = x.shape[1:].numel()
    binary_search_steps = math.ceil(math.log2(size) * of_norm(norm, L2=1.5, Linf=2))
    low, high = z.new_zeros(len(z)), z.new_ones(len(z))
    rows = torch.arange(len(z), device=z.device)
    for _ in range(binary_search_steps):
        if not len(rows := oracle.working(rows, ids)):
            break
        middle = (low[rows] + high[rows]) / 2
        hit = oracle.adversarial(shrink(x[rows], z[rows], middle, norm), ids[rows])
        high[rows] = torch.where(hit, middle, high[rows])
        low[rows] = torch.where(hit, low[rows], middle)
    return shrink(x, z, high, norm)


def shrink(x: Tensor, z: Tensor, share: Tensor, norm: NormName) -> Tensor:
    """Brings ``z`` (N, C, H, W) to ``share`` (N,) of its distance to ``x``, blended for L2 and clipped for Linf."""
    check_norm(norm, ("L2", "Linf"))
    if norm == "L2":
        return torch.lerp(x, z, per_image(share))
    radius = per_image(share * (z - x).flatten(1).abs().amax(1))
    return torch.minimum(torch.maximum(z, x - radius), x + radius)
