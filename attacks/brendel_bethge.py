"""The attack of Brendel, Rauber, Kümmerer, Ustyuzhaninov & Bethge 2019: steps along the boundary, by gradients.

Three decisions differ from foolbox's implementation by the same authors. The start is a blend with a training image of
another class, or salt and pepper noise for L0. The radius of a sample's trust region is halved when the sample makes no
progress, instead of at fixed steps. The radius does not depend on the batch. In foolbox it is proportional to the batch
size.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from attacks.parts.gradients import length, logit_margin, per_image
from attacks.parts.lines import bisect
from attacks.parts.starts import noisy_starting_points, starting_points
from attacks.parts.trust_region import Boundary, trust_region_step
from bench.contracts.cards import attack
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Natural, Positive

NUM_SCALES = 50
"""Densities of the noise to start from."""
FIRST_RADIUS = 0.7
"""First radius of the trust regions, as a share of the pixel box's diagonal.

Long steps find other parts of the boundary, where it may be nearer.
"""
PATIENCE, PROGRESS = 6, 1e-3
"""Steps without progress before a radius is halved, and the share of the distance that counts as progress."""
SMALLEST_RADIUS = 3e-3
"""Share of the Euclidean distance to the clean image below which a radius ends the attack on its sample."""


@attack(
    "brendel_bethge",
    norms=["L0", "L2", "Linf", "L1"],
    access="gradient",
    stochastic=True,
    refines=True,
    budget=1200,
    citation="Brendel, Rauber, Kümmerer, Ustyuzhaninov & Bethge 2019, Accurate, reliable and fast robustness "
    "evaluation",
    short={"steps": 60},
    approximation_ratio={"L0": (1.01, 1.51), "L2": (1.01, 1.45), "Linf": (1.02, 1.35), "L1": (1.01, 1.6)},
)
def brendel_bethge(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 500,
    momentum: Positive = 0.8,
    overshoot: Positive = 1.1,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs algorithm 1: up to ``steps`` steps, each to the nearest point of the linearized boundary in a trust region.

    A binary search of ``binary_search_steps`` halvings first leads from an adversarial start to the boundary. The
    normal of the boundary is the average of the margin's gradients, with the weight ``momentum`` on the earlier ones.
    The distance to the boundary follows from the margin. It is multiplied by ``overshoot`` from the clean side, and by
    ``2 - overshoot`` from the adversarial side, so that the iterates end on the adversarial side.
    """
    z, found = start(oracle, x, y)
    active = oracle.ids[found]
    z[active] = to_boundary(oracle, x[active], z[active], active, binary_search_steps)
    normal = torch.zeros_like(x)
    regions = TrustRegions(x)
    for k in range(steps):
        if not len(active := oracle.working(active)):
            break
        gradient, logits = oracle.gradient(z[active], y[active], logit_margin, active)
        margin = logit_margin(logits, y[active])
        normal[active] = torch.lerp(torch.nan_to_num(gradient), normal[active], momentum if k else 0.0)
        rise = torch.where(margin < 0, -overshoot, overshoot - 2) * margin
        regions.adapt(active, oracle.closest_distance[active])
        z[active] = regions.step(active, x[active], z[active], normal[active], rise, oracle.threat.norm.name)
        active = active[regions.radius[active] > SMALLEST_RADIUS * length(z[active] - x[active])]
    return oracle.closest(z)


def start(oracle: Oracle, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns an adversarial example for each sample (n, C, H, W), and True (n,) where one was found.

    It is a blend with a training image of another class, or salt and pepper noise for L0, which changes few pixels.
    """
    if oracle.threat.norm.name == "L0":
        return noisy_starting_points(oracle, x, NUM_SCALES)
    return starting_points(oracle, x, y)


def to_boundary(oracle: Oracle, x: Tensor, start: Tensor, ids: Tensor, steps: int) -> Tensor:
    """Runs a binary search of ``steps`` halvings from adversarial examples (N, C, H, W) towards the clean ``x``.

    For L0 it searches for the number of pixels that keep their change, those with the largest changes first.
    """
    if oracle.threat.norm.name != "L0":
        return bisect(oracle, x, start, ids, steps)
    size = (start - x).abs().amax(1, keepdim=True)
    rank = size.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).reshape(size.shape)
    low, high = torch.zeros(len(x), device=x.device), (size > 0).flatten(1).sum(1).to(x)
    rows = torch.arange(len(ids), device=ids.device)
    for _ in range(steps):
        if not len(rows := oracle.working(rows, ids)):
            break
        middle = (low[rows] + high[rows]) / 2
        hit = oracle.adversarial(torch.where(rank[rows] < per_image(middle), start[rows], x[rows]), ids[rows])
        high[rows], low[rows] = torch.where(hit, middle, high[rows]), torch.where(hit, low[rows], middle)
    return torch.where(rank < per_image(high), start, x)


@dataclass
class TrustRegions:
    """Radii of the trust regions of the samples ``x`` (n, C, H, W), and what they were last adapted by."""

    x: InitVar[Tensor]
    radius: Tensor = field(init=False)
    pull: Tensor = field(init=False)
    reference: Tensor = field(init=False)
    idle: Tensor = field(init=False)

    def __post_init__(self, x: Tensor) -> None:
        self.pull = torch.ones(len(x), device=x.device)
        self.radius = FIRST_RADIUS * x.shape[1:].numel() ** 0.5 * self.pull
        self.reference = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.idle = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def adapt(self, ids: Tensor, distance: Tensor) -> None:
        """Halves the radii of samples whose closest ``distance`` (N,) has not fallen for `PATIENCE` steps."""
        progress = distance < (1 - PROGRESS) * self.reference[ids]
        self.reference[ids] = torch.where(progress, distance, self.reference[ids])
        self.idle[ids] = torch.where(progress, 0, self.idle[ids] + 1)
        stuck = ids[self.idle[ids] >= PATIENCE]
        self.radius[stuck] /= 2
        self.idle[stuck] = 0

    def step(self, ids: Tensor, x: Tensor, z: Tensor, normal: Tensor, rise: Tensor, norm: str) -> Tensor:
        """Returns the next iterates (N, C, H, W), where the margin is expected to have risen by ``rise`` (N,)."""
        slope = length(normal).clamp_min(torch.finfo(x.dtype).tiny)
        at = Boundary(
            x.flatten(2),
            z.flatten(2),
            (normal / per_image(slope)).flatten(2),
            (rise / slope)[:, None, None],
            self.radius[ids][:, None, None],
        )
        v, pull = trust_region_step(at, norm, self.pull[ids][:, None, None])
        self.pull[ids] = pull.flatten()
        return v.reshape(x.shape)
