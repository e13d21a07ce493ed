"""L1: the sum of absolute changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.contracts.norms.norm import ROUNDING, Norm, per_image

if TYPE_CHECKING:
    from torch import Tensor

    from bench.contracts.streams import RowStreams


class L1(Norm):
    """The sum of the absolute changes of intensity, over all channels and pixels."""

    name = "L1"
    label = "L1"
    unit = "intensity"
    decimals = 2
    position = 3

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Norm`."""
        return (a.double() - b).flatten(1).abs_().sum(1)

    def diameter(self, shape: Sequence[int]) -> float:
        """See `Norm`."""
        return float(math.prod(shape))

    def dual(self, gradient: Tensor) -> Tensor:
        """See `Norm`."""
        return gradient.flatten(1).abs().amax(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """See `Norm`. All of the change goes to one value, the first of the largest absolute derivative."""
        flat = gradient.flatten(1)
        largest = flat.abs().argmax(1, keepdim=True)
        return flat.new_zeros(flat.shape).scatter(1, largest, flat.gather(1, largest).sign()).reshape(gradient.shape)

    def uniform(self, random: RowStreams, shape: Sequence[int]) -> Tensor:
        """See `Norm`. Exponential numbers, divided by their sum, are uniformly distributed on the ball's surface."""
        signed = 2 * random.uniform(shape) - 1
        exponential = -(1 - signed.abs()).clamp_min(ROUNDING).log()
        radius = random.uniform(()) ** (1 / math.prod(shape))
        return exponential.copysign(signed) * per_image(radius / exponential.flatten(1).sum(1))

    def nearest_in_ball(self, delta: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        """See `Norm`. The result is the nearest of the perturbations that also keep the image in [0, 1].

        Each value moves towards 0 by the same amount, and stays between 0 and the end of the pixel range (Croce & Hein
        2021, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers). The length of the result is
        linear in this amount between kinks, where a value leaves the end of its range or reaches 0.
        """
        size = delta.flatten(1).double().abs()
        room = ((delta > 0).to(delta) - center).flatten(1).double().abs()
        kinks = (size[:, None] - room[:, None] * room.new_tensor([[0.0], [1.0]])).flatten(1)
        # Of equal kinks, those that reach 0 come first: the number of moving values is never negative.
        kinks, order = kinks.sort(stable=True, descending=True)
        change = room.new_tensor([1.0, -1.0]).repeat_interleave(size.shape[1])[order]
        moving, total = change.cumsum(1), (change * kinks).cumsum(1)
        limit = radius.flatten(1).double()
        last = ((total - kinks * moving < limit).sum(1, keepdim=True) - 1).clamp_min(0)
        amount = ((total.gather(1, last) - limit) / moving.gather(1, last).clamp_min(1)).clamp_min(0)
        shorter = (size - amount).clamp_min(0).minimum(room)
        return shorter.to(delta).reshape(delta.shape).copysign(delta)
