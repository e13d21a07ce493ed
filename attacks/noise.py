"""Random noise at the smallest scale that is adversarial: Gaussian (L2, Linf), uniform (Linf), salt and pepper (L0)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attacks.parts.lines import tightened
from attacks.parts.starts import densest, first_hit
from bench.contracts.cards import attack
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Natural

CITATION = "Rauber, Brendel & Bethge 2017, Foolbox; reference attacks of Schott et al. 2019"

REACH = 1.5
"""Additive noise is tried up to this multiple of the first adversarial scale, because some of this noise is closer."""
AT_ONCE = 4
"""Densities of salt and pepper noise per query. Few images climb, and a pass over a few images costs as much as one
over some more. Only the lowest hit counts. The queries above it are the price."""

Draw = Callable[[Tensor, Sequence[int]], Tensor]
"""Draws noise of a given shape for each of the samples (N,)."""


@attack(
    "gaussian_noise",
    norms=["L2", "Linf"],
    access="decision",
    stochastic=True,
    budget=1000,
    citation=CITATION,
    short={"repetitions": 3},
    approximation_ratio={"L2": (2.8, 4), "Linf": (4, 6)},
)
def gaussian_noise(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    repetitions: Count = 10,
    num_scales: Count = 100,
    binary_search_steps: Natural = 8,
) -> Tensor:
    """Adds Gaussian noise of standard deviations up to 1; see `additive_noise`."""
    return additive_noise(oracle, x, oracle.random.normal, repetitions, num_scales, binary_search_steps)


@attack(
    "uniform_noise",
    norms=["Linf"],
    access="decision",
    stochastic=True,
    budget=1000,
    citation=CITATION,
    short={"repetitions": 3},
    approximation_ratio={"Linf": (3.2, math.inf)},
)
def uniform_noise(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    repetitions: Count = 10,
    num_scales: Count = 100,
    binary_search_steps: Natural = 8,
) -> Tensor:
    """Adds uniform noise of half-widths up to 1; see `additive_noise`."""

    def draw(ids: Tensor, shape: Sequence[int]) -> Tensor:
        return 2 * oracle.random.uniform(ids, shape) - 1

    return additive_noise(oracle, x, draw, repetitions, num_scales, binary_search_steps)


def additive_noise(
    oracle: Oracle, x: Tensor, draw: Draw, repetitions: int, num_scales: int, binary_search_steps: int
) -> Tensor:
    """Adds noise on a grid of ``num_scales`` scales up to 1 and clips to [0, 1], until the image is adversarial.

    The repetitions climb side by side, each with its own noise. A repetition climbs until it hits, or until a bit
    beyond the first hit of all. Noise that would not be closer is not queried. The closest hit's noise was not tried at
    lower scales. The closest hit is therefore moved back towards the clean image in ``binary_search_steps`` halvings.
    """
    scales = torch.linspace(0, 1, num_scales + 1)[1:].to(x)
    first = torch.full((len(x),), torch.inf, device=x.device)
    climbing = oracle.ids.repeat(repetitions)
    for scale in scales:
        climbing = climbing[scale <= REACH * first[climbing]]
        if not len(climbing := oracle.working(climbing)):
            break
        noisy = (x[climbing] + scale * draw(climbing, x.shape[1:])).clamp(0, 1)
        closer = oracle.threat.distance(noisy, x[climbing]) < oracle.closest_distance[climbing]
        asked = climbing[closer]
        hit = torch.zeros_like(closer)
        hit[closer] = oracle.adversarial(noisy[closer], asked)
        first[climbing[hit]] = first[climbing[hit]].clamp_max(scale)
        climbing = climbing[~hit]
    loudest = (x + draw(oracle.ids, x.shape[1:])).clamp(0, 1)
    return tightened(oracle, x, loudest, binary_search_steps)


@attack(
    "salt_and_pepper",
    norms=["L0"],
    access="decision",
    stochastic=True,
    budget=1000,
    citation=CITATION,
    short={"repetitions": 3},
    approximation_ratio={"L0": (2.6, 4)},
)
def salt_and_pepper(
    oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: Count = 10, num_scales: Count = 100
) -> Tensor:
    """Adds salt and pepper noise on a ladder of densities until the image is adversarial.

    Each further repetition climbs from half the last hit's density to 1.2 times that density. Noise that would not be
    closer is not queried.
    """
    bottom, top = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    for repetition in range(repetitions):
        oracle.lane = repetition
        _, density = first_hit(oracle, x, oracle.ids, bottom, top, num_scales, at_once=AT_ONCE, only_closer=True)
        hit = torch.isfinite(density)
        bottom = torch.where(hit, density / 2, bottom)
        top = torch.where(hit, (1.2 * density).clamp_max(1), top)
    return oracle.closest(densest(oracle, x))
