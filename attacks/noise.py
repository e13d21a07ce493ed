"""Random noise, as loud as it must be: Gaussian (L2, Linf), uniform (Linf), salt and pepper (L0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attacks.gradients import per_image
from attacks.lines import bisect
from bench.cards import attack
from bench.oracle import Oracle
from bench.parameters import Count, Natural

CITATION = "Rauber, Brendel & Bethge 2017, Foolbox; reference attacks of Schott et al. 2019"

REACH = 1.5
"""Additive noise is tried up to this multiple of the first scale that is adversarial: some of it is closer."""
AT_ONCE = 4
"""Densities of salt and pepper noise that are asked about at once: few images climb, and a pass over few costs as much
as one over some more. The lowest hit counts; what was asked above it is the price."""

Draw = Callable[[Tensor, Sequence[int]], Tensor]
"""Draws noise of a shape for samples (N,)."""


@attack(
    "gaussian_noise",
    norms=["L2", "Linf"],
    access="decision",
    stochastic=True,
    budget=1000,
    citation=CITATION,
)
def gaussian_noise(
    oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: Count = 10, rungs: Count = 100, bisections: Natural = 8
) -> Tensor:
    """Gaussian noise of standard deviations up to 1; see `additive_noise`."""
    return additive_noise(oracle, x, y, oracle.random.normal, repetitions, rungs, bisections)


@attack("uniform_noise", norms=["Linf"], access="decision", stochastic=True, budget=1000, citation=CITATION)
def uniform_noise(
    oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: Count = 10, rungs: Count = 100, bisections: Natural = 8
) -> Tensor:
    """Uniform noise of half-widths up to 1; see `additive_noise`."""

    def draw(ids: Tensor, shape: Sequence[int]) -> Tensor:
        return 2 * oracle.random.uniform(ids, shape) - 1

    return additive_noise(oracle, x, y, draw, repetitions, rungs, bisections)


def additive_noise(
    oracle: Oracle, x: Tensor, y: Tensor, draw: Draw, repetitions: int, rungs: int, bisections: int
) -> Tensor:
    """Noise, clipped to [0, 1], on a grid of ``rungs`` scales up to 1: the first one that is adversarial.

    The repetitions climb side by side, each with noise of its own: until it hits, or a bit beyond the first hit of all.
    Noise that would not be closer is not asked about. The closest hit, whose noise was not tried at lower scales, is
    then moved back towards the clean image in ``bisections`` halvings.
    """
    scales = torch.linspace(0, 1, rungs + 1)[1:].to(x)
    first = torch.full((len(x),), torch.inf, device=x.device)
    climbing = oracle.ids.repeat(repetitions)
    for scale in scales:
        climbing = climbing[scale <= REACH * first[climbing]]
        climbing = climbing[oracle.affordable(climbing)]
        if not len(climbing):
            break
        noisy = (x[climbing] + scale * draw(climbing, x.shape[1:])).clamp(0, 1)
        closer = oracle.threat.distance(noisy, x[climbing]) < oracle.closest_distance[climbing]
        asked = climbing[closer]
        hit = torch.zeros_like(closer)
        hit[closer] = oracle.decision(noisy[closer], asked) != y[asked]
        first[climbing[hit]] = first[climbing[hit]].clamp_max(scale)
        climbing = climbing[~hit]
    loudest = (x + draw(oracle.ids, x.shape[1:])).clamp(0, 1)
    found = oracle.ids[oracle.found]
    bisect(oracle, x[found], oracle.closest(loudest)[found], y[found], found, bisections)
    return oracle.closest(loudest)


@attack("salt_and_pepper", norms=["L0"], access="decision", stochastic=True, budget=1000, citation=CITATION)
def salt_and_pepper(oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: Count = 10, rungs: Count = 100) -> Tensor:
    """Salt and pepper noise on a ladder of densities: the first one that is adversarial.

    Each further repetition climbs from half to 1.2 times the last hit's density; noise that would not be closer is not
    asked about.
    """
    bottom, top = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    for _ in range(repetitions):
        _, density = first_hit(oracle, x, y, oracle.ids, bottom, top, rungs, at_once=AT_ONCE, only_closer=True)
        hit = torch.isfinite(density)
        bottom = torch.where(hit, density / 2, bottom)
        top = torch.where(hit, (1.2 * density).clamp_max(1), top)
    return oracle.closest(densest(oracle, x))


def first_hit(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    bottom: Tensor,
    top: Tensor,
    rungs: int,
    *,
    at_once: int = 1,
    only_closer: bool = False,
) -> tuple[Tensor, Tensor]:
    """Climbs ``rungs`` densities from ``bottom`` (R,) to ``top`` (R,), with fresh noise at each, until the image is
    adversarial.

    Args:
        oracle: answers the queries.
        x: clean images (R, C, H, W).
        y: their labels (R,).
        ids: their samples (R,); a sample may have several rows, each with a climb of its own.
        bottom: density of each row that is not tried any more, in [0, 1).
        top: highest density of each row, in (0, 1].
        rungs: number of densities.
        at_once: how many densities are asked about in one query.
        only_closer: do not ask about noise at or beyond the sample's closest adversarial so far.

    Returns:
        The noisy image of each row (R, C, H, W) and its density (R,) where it is adversarial, else the clean image and
        infinity.
    """
    first, density = x.clone(), torch.full_like(top, torch.inf)
    climbing = torch.arange(len(ids), device=ids.device)
    for steps in torch.split(torch.arange(1, rungs + 1).to(top), at_once):
        climbing = climbing[~torch.isfinite(density[climbing])]
        climbing = climbing[oracle.affordable(ids[climbing])]
        if not len(climbing):
            break
        rows = climbing.repeat(len(steps))
        now = torch.lerp(bottom[rows], top[rows], steps.repeat_interleave(len(climbing)) / rungs)
        noisy = salted(x[rows], now, oracle.random.uniform(ids[rows], x.shape[2:]))
        distance = oracle.threat.distance(noisy, x[rows])
        worth = distance > 0
        if only_closer:
            worth &= distance < oracle.closest_distance[ids[rows]]
        if not worth.any():
            continue
        rows, now, noisy = rows[worth], now[worth], noisy[worth]
        hit = oracle.decision(noisy, ids[rows]) != y[rows]
        density.scatter_reduce_(0, rows[hit], now[hit], "amin")
        lowest = hit & (now == density[rows])
        first[rows[lowest]] = noisy[lowest]
    return first, density


def densest(oracle: Oracle, x: Tensor) -> Tensor:
    """Salt and pepper on every pixel of ``x`` (n, C, H, W): what is proposed where nothing is found."""
    return salted(x, torch.ones(len(x), device=x.device), oracle.random.uniform(oracle.ids, x.shape[2:]))


def salted(x: Tensor, density: Tensor, u: Tensor) -> Tensor:
    """``x`` (N, C, H, W) with the share ``density`` (N,) of its pixels, chosen by uniform draws ``u`` (N, H, W), set to
    white or to black, half of them each."""
    half = per_image(density / 2)
    u = u[:, None]
    return torch.where(u >= 1 - half, 1.0, torch.where(u < half, 0.0, x))
