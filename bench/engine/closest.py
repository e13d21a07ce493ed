"""The closest adversarial example of each sample among an attack's own queries."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.engine.meter import Meter


class ClosestFound:
    """Remembers, for one chunk's n samples, the closest adversarial example so far.

    Args:
        x: clean images (n, C, H, W).

    Attributes:
        images: (n, C, H, W) the closest; the clean image where there is none.
        distance: (n,) float64; infinity where there is none.
        found_after: passes (n,) float64 up to the first one; infinity without one, NaN where a library hides it.
    """

    def __init__(self, x: Tensor) -> None:
        self.images = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.found_after = self.distance.clone()

    @property
    def found(self) -> Tensor:
        """True (n,) for samples that have one."""
        return torch.isfinite(self.distance)

    def keep(self, images: Tensor, distances: Tensor, ids: Tensor, meter: Meter) -> None:
        """Enters images (N, C, H, W) that are closer, one for each of the samples ``ids`` (N,)."""
        fresh = ids[torch.isinf(self.distance[ids])]
        if len(fresh):
            passes = (meter.forwards + meter.backwards)[fresh]
            self.found_after[fresh] = torch.full_like(passes, torch.nan) if meter.hides_samples else passes
        self.images[ids], self.distance[ids] = images, distances


def nearest_first(rows: Tensor, distances: Tensor, ids: Tensor) -> Tensor:
    """Returns rows (N,) in the order of their samples, and of each sample the nearest first."""
    if (ids[rows].diff() > 0).all():
        # One row for each sample, in order, as most attacks ask: sorting would take part of a small net's pass.
        return rows
    rows = rows[torch.argsort(distances[rows], stable=True)]
    return rows[torch.argsort(ids[rows], stable=True)]
