"""Random noise, as loud as it must be: Gaussian (L2, Linf), uniform (Linf), salt and pepper (L0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attacks.gradients import per_image
from attacks.lines import bisect
from bench.cards import attack
from bench.oracle import Oracle

CITATION = "Rauber, Brendel & Bethge 2017, Foolbox; reference attacks of Schott et al. 2019"

Draw = Callable[[Tensor, Sequence[int]], Tensor]
"""Draws noise of a shape for samples (N,)."""


@attack(
    "gaussian_noise",
    norms=["L2", "Linf"],
    access="decision",
    stochastic=True,
    budget=1000,
    version=2,
    citation=CITATION,
)
def gaussian_noise(
    oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: int = 10, rungs: int = 100, bisections: int = 4
) -> Tensor:
    """Gaussian noise of standard deviations up to 1; see `additive_noise`."""
    return additive_noise(oracle, x, y, oracle.random.normal, repetitions, rungs, bisections)


@attack("uniform_noise", norms=["Linf"], access="decision", stochastic=True, budget=1000, version=2, citation=CITATION)
def uniform_noise(
    oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: int = 10, rungs: int = 100, bisections: int = 4
) -> Tensor:
    """Uniform noise of half-widths up to 1; see `additive_noise`."""

    def draw(ids: Tensor, shape: Sequence[int]) -> Tensor:
        return 2 * oracle.random.uniform(ids, shape) - 1

    return additive_noise(oracle, x, y, draw, repetitions, rungs, bisections)


def additive_noise(
    oracle: Oracle, x: Tensor, y: Tensor, draw: Draw, repetitions: int, rungs: int, bisections: int
) -> Tensor:
    """Noise, clipped to [0, 1], on a grid of ``rungs`` scales up to 1: the first one that is adversarial.

    Each further repetition climbs with fresh noise, up to the best scale so far. The closest of all is then moved back
    by up to a rung, in ``bisections`` halvings.
    """
    scales = torch.linspace(0, 1, rungs + 1)[1:].to(x)
    top = torch.full((len(x),), rungs - 1, device=x.device)
    last = x.clone()
    for _ in range(repetitions):
        climbing = oracle.ids
        for k, scale in enumerate(scales):
            climbing = climbing[(top[climbing] >= k) & oracle.affordable(climbing)]
            if not len(climbing):
                break
            last[climbing] = (x[climbing] + scale * draw(climbing, x.shape[1:])).clamp(0, 1)
            closer = oracle.threat.distance(last[climbing], x[climbing]) < oracle.closest_distance[climbing]
            asked = climbing[closer]
            hit = torch.zeros_like(closer)
            hit[closer] = oracle.decision(last[asked], asked) != y[asked]
            top[climbing[hit]] = k
            climbing = climbing[~hit]
    found = oracle.ids[oracle.found]
    closest, clean = oracle.closest(last)[found], x[found]
    rung_below = clean + per_image(top[found] / (top[found] + 1)) * (closest - clean)
    bisect(oracle, rung_below, closest, y[found], found, bisections)
    return oracle.closest(last)


@attack("salt_and_pepper", norms=["L0"], access="decision", stochastic=True, budget=1000, version=2, citation=CITATION)
def salt_and_pepper(oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: int = 10, rungs: int = 100) -> Tensor:
    """Salt and pepper noise on a ladder of densities: the first one that is adversarial.

    Each further repetition climbs from half to 1.2 times the last hit's density; noise that would not be closer is not
    asked about.
    """
    bottom, top = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    last = x.clone()
    for _ in range(repetitions):
        noisy, density = first_hit(oracle, x, y, oracle.ids, bottom, top, rungs, only_closer=True)
        last = torch.where(per_image((noisy != x).flatten(1).any(1)), noisy, last)
        hit = torch.isfinite(density)
        bottom = torch.where(hit, density / 2, bottom)
        top = torch.where(hit, (1.2 * density).clamp_max(1), top)
    return oracle.closest(last)


def first_hit(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    bottom: Tensor,
    top: Tensor,
    rungs: int,
    *,
    only_closer: bool,
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
        only_closer: do not ask about noise at or beyond the sample's closest adversarial so far.

    Returns:
        The last noisy image of each row (R, C, H, W) and its density (R,) where it is adversarial, else infinity.
    """
    last, density = x.clone(), torch.full_like(top, torch.inf)
    climbing = torch.arange(len(ids), device=ids.device)
    for k in range(1, rungs + 1):
        climbing = climbing[oracle.affordable(ids[climbing])]
        if not len(climbing):
            break
        now = torch.lerp(bottom[climbing], top[climbing], k / rungs)
        noisy = salted(x[climbing], now, oracle.random.uniform(ids[climbing], x.shape[2:]))
        distance = oracle.threat.distance(noisy, x[climbing])
        worth = distance > 0
        if only_closer:
            worth &= distance < oracle.closest_distance[ids[climbing]]
        asked = climbing[worth]
        last[asked] = noisy[worth]
        if not len(asked):
            continue
        hit = oracle.decision(noisy[worth], ids[asked]) != y[asked]
        density[asked[hit]] = now[worth][hit]
        climbing = climbing[~torch.isfinite(density[climbing])]
    return last, density


def salted(x: Tensor, density: Tensor, u: Tensor) -> Tensor:
    """``x`` (N, C, H, W) with the share ``density`` (N,) of its pixels, chosen by uniform draws ``u`` (N, H, W), set to
    white or to black, half of them each."""
    half = per_image(density / 2)
    u = u[:, None]
    return torch.where(u >= 1 - half, 1.0, torch.where(u < half, 0.0, x))
