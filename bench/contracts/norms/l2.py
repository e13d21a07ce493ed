"""L2: the Euclidean length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.contracts.norms.norm import Norm, per_image

if TYPE_CHECKING:
    from torch import Tensor

    from bench.contracts.streams import RowStreams


class L2(Norm):
    """The Euclidean length of the change, over all channels and pixels."""

    name = "L2"
    label = "L2"
    unit = "intensity"
    decimals = 2
    position = 1

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Norm`."""
        return (a.double() - b).flatten(1).square_().sum(1).sqrt_()

    def diameter(self, shape: Sequence[int]) -> float:
        """See `Norm`."""
        return math.sqrt(math.prod(shape))

    def dual(self, gradient: Tensor) -> Tensor:
        """See `Norm`."""
        return _length(gradient)

    def steepest(self, gradient: Tensor) -> Tensor:
        """See `Norm`."""
        return gradient / per_image(_length(gradient).clamp_min(1e-30))

    def rescaled(self, gradient: Tensor) -> Tensor:
        """See `Norm`. Squares of tiny numbers underflow."""
        return gradient / per_image(gradient.flatten(1).abs().amax(1))

    def uniform(self, random: RowStreams, shape: Sequence[int]) -> Tensor:
        """See `Norm`."""
        direction = random.normal(shape)
        radius = random.uniform(()) ** (1 / math.prod(shape))
        return direction * per_image(radius / _length(direction))

    def nearest_in_ball(self, delta: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        """See `Norm`."""
        return delta * (radius / per_image(_length(delta)).clamp_min(1e-30)).clamp_max(1)


def _length(delta: Tensor) -> Tensor:
    length: Tensor = delta.flatten(1).norm(dim=1)
    return length
