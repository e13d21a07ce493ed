"""L0: the number of changed pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.contracts.norms.norm import Norm

if TYPE_CHECKING:
    from torch import Tensor


class L0(Norm):
    """The number of pixels that differ in any channel (Schott et al. 2019, section 6)."""

    name = "L0"
    label = "L0"
    unit = "pixels"
    decimals = 1
    position = 0

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Norm`."""
        return (a != b).any(dim=1).flatten(1).sum(1).double()

    def diameter(self, shape: Sequence[int]) -> float:
        """See `Norm`."""
        _, height, width = shape
        return float(height * width)
