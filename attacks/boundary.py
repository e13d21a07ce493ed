"""The Boundary attack (Brendel, Rauber & Bethge 2018): a random walk along the decision boundary.

The steps are drawn with biases of Brunner, Diehl, Truong Le & Knoll 2019 (Guessing smart: biased sampling for efficient
black-box adversarial attacks) that need no second model. One bias favors low frequencies. The other favors pixels that
are already perturbed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.parts.gradients import length, per_image
from attacks.parts.lines import bisect
from attacks.parts.starts import starting_points
from bench.contracts.cards import attack
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Positive

START_BISECTIONS = 12
ADAPTATION = 1.5
CHECK_EVERY = 4
"""Number of steps between checks. A check also queries the spherical candidate and adapts the step sizes."""
SPHERICAL_QUEUE, SOURCE_QUEUE = 10, 5
"""Number of outcomes in each success rate."""
SPHERICAL_RATES, SOURCE_RATES = (0.2, 0.5), (0.3, 0.5)
"""Success rates below which steps shrink and above which steps grow."""
SMALLEST_SOURCE_STEP = 1e-7
DRAWS_AT_ONCE = 32
SMOOTHING = 1 / 16
"""Radius of the squares that average half of the draws, as a share of the image's edge. A square is 3 pixels wide at
28x28 and 1 pixel wide at 8x8."""


@attack(
    "boundary",
    norms=["L2"],
    access="decision",
    stochastic=True,
    refines=True,
    budget=8000,
    citation="Brendel, Rauber & Bethge 2018, Decision-based adversarial attacks",
    short={"steps": 250},
    approximation_ratio={"L2": (1.1, 1.6)},
)
def boundary(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 5000,
    spherical_step: Positive = 0.1,
    source_step: Positive = 0.01,
) -> Tensor:
    """Walks for up to ``steps`` along the boundary and keeps the steps that stay adversarial.

    Each step moves at random on the sphere around the clean image, then towards the clean image. ``spherical_step`` and
    ``source_step`` are the first lengths relative to the distance. Both are adapted to the success rates of the steps.
    A sample is finished when its source step falls below 1e-7.
    """
    start, found = starting_points(oracle, x, y)
    active = oracle.ids[found]
    z = start.clone()
    z[active] = bisect(oracle, x[active], start[active], active, START_BISECTIONS)
    spherical = torch.full((len(x),), spherical_step, device=x.device)
    source = torch.full((len(x),), source_step, device=x.device)
    on_sphere = SuccessQueue(len(x), SPHERICAL_QUEUE, x.device)
    towards = SuccessQueue(len(x), SOURCE_QUEUE, x.device)
    draws = x.new_empty(DRAWS_AT_ONCE, *x.shape)
    for k in range(steps):
        active = active[source[active] >= SMALLEST_SOURCE_STEP]
        if not len(active := oracle.working(active)):
            break
        if k % DRAWS_AT_ONCE == 0:
            block = oracle.random.normal(active, (DRAWS_AT_ONCE, *x.shape[1:]))
            draws[:, active] = block.transpose(0, 1)
        smooth = k // CHECK_EVERY % 2 == 1
        noise = biased(draws[k % DRAWS_AT_ONCE, active], z[active] - x[active], smooth=smooth)
        sphere_point, candidate = propose(x[active], z[active], noise, spherical[active], source[active])
        asked = active
        checking = k % CHECK_EVERY == 0
        if checking:
            still = oracle.adversarial(sphere_point, active)
            on_sphere.push(active, still)
            asked, candidate = active[still], candidate[still]
        hit = oracle.adversarial(candidate, asked)
        z[asked[hit]] = candidate[hit]
        if checking:
            towards.push(asked, hit)
            spherical_factor = on_sphere.factors(*SPHERICAL_RATES)
            spherical *= spherical_factor
            source *= spherical_factor * towards.factors(*SOURCE_RATES)
    return oracle.closest(z)


def biased(noise: Tensor, perturbation: Tensor, *, smooth: bool) -> Tensor:
    """Scales white ``noise`` (N, C, H, W) up where the image is perturbed, without high frequencies if ``smooth``."""
    if smooth:
        noise = smoothed(noise)
    size = perturbation.abs()
    # The mean keeps pixels that are not perturbed within the walk's reach.
    return noise * (size + size.mean((1, 2, 3), keepdim=True)).sqrt()


def smoothed(noise: Tensor) -> Tensor:
    """Returns the low frequencies of ``noise`` (N, C, H, W), as averages over squares of radius `SMOOTHING`."""
    radius = int(SMOOTHING * noise.shape[-1])
    width = 2 * radius + 1
    padded = torch.nn.functional.pad(noise, (radius,) * 4)
    # Rows, then columns: ``avg_pool2d`` is slower.
    rows = torch.stack([padded[..., k : k + noise.shape[-1]] for k in range(width)]).sum(0)
    return torch.stack([rows[..., k : k + noise.shape[-2], :] for k in range(width)]).sum(0) / width**2


def propose(x: Tensor, z: Tensor, noise: Tensor, spherical_step: Tensor, source_step: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a random point of the sphere around ``x`` through ``z``, and this point nearer to ``x`` (figure 2)."""
    to_source = x - z
    distance = length(to_source)
    unit = to_source / per_image(distance)
    orthogonal = noise - per_image((noise * unit).flatten(1).sum(1)) * unit
    orthogonal = orthogonal * per_image(spherical_step * distance / length(orthogonal))
    sphere_point = (x + (orthogonal - to_source) / per_image((1 + spherical_step**2).sqrt())).clamp(0, 1)
    back = x - sphere_point
    # Clipping leaves the sphere. The step still ends at (1 - source_step) times the distance.
    away = length(back)
    reach = (source_step * distance + away - distance).clamp_min(0) / away
    return sphere_point, (sphere_point + per_image(reach) * back).clamp(0, 1)


@dataclass
class SuccessQueue:
    """The last ``size`` outcomes of each sample, and the factors of the step sizes that follow from the outcomes."""

    samples: int
    size: int
    device: torch.device
    outcomes: Tensor = field(init=False)
    count: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = torch.zeros(self.samples, self.size, device=self.device)
        self.count = torch.zeros(self.samples, dtype=torch.int64, device=self.device)

    def push(self, ids: Tensor, outcome: Tensor) -> None:
        """Adds an outcome (N,) to each of ``ids`` (N,), over the oldest outcome where the queue is full."""
        self.outcomes[ids, self.count[ids] % self.size] = outcome.to(self.outcomes)
        self.count[ids] += 1

    def factors(self, low: float, high: float) -> Tensor:
        """Returns the factors (n,) of the step sizes.

        The factor of a full queue is `ADAPTATION` at a success rate above ``high``, and its inverse below ``low``. All
        other factors are 1. Queues that gave another factor than 1 start anew.
        """
        full, rate = self.count >= self.size, self.outcomes.mean(1)
        up, down = full & (rate > high), full & (rate < low)
        self.count[up | down] = 0
        return torch.where(up, ADAPTATION, torch.where(down, 1 / ADAPTATION, 1.0))
