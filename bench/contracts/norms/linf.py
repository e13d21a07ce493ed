"""Linf: the largest change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.contracts.norms.norm import Norm

if TYPE_CHECKING:
    from torch import Tensor

    from bench.contracts.streams import RowStreams


class Linf(Norm):
    """The largest change of a pixel's intensity in any channel."""

    name = "Linf"
    label = "L∞"
    unit = "intensity"
    decimals = 3
    position = 2

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Norm`."""
        return (a.double() - b).flatten(1).abs_().amax(1)

    def diameter(self, shape: Sequence[int]) -> float:
        """See `Norm`."""
        return 1.0

    def dual(self, gradient: Tensor) -> Tensor:
        """See `Norm`."""
        return gradient.flatten(1).abs().sum(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """See `Norm`."""
        return gradient.sign()

    def uniform(self, random: RowStreams, shape: Sequence[int]) -> Tensor:
        """See `Norm`."""
        return 2 * random.uniform(shape) - 1

    def nearest_in_ball(self, delta: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        """See `Norm`."""
        return delta.maximum(-radius).minimum(radius)
