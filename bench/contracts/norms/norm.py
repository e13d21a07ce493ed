"""What a norm is, and the one definition of "within epsilon".

Each module of this folder declares one norm, a subclass of `Norm`. The formulas use the tensors' own methods. No module
imports torch, so that reports can read labels and decimals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bench.contracts.norms.names import NormName

if TYPE_CHECKING:
    from torch import Tensor

    from bench.contracts.streams import RowStreams

TOLERANCE = 1e-6
"""Relative tolerance of every comparison of a distance with an epsilon."""
ROUNDING = 2.0**-24
"""The most by which rounding to float32 moves a number below 1."""


class Norm(ABC):
    """A norm of perturbations. Images are float32 (N, C, H, W) in [0, 1], and one number per image has shape (N,).

    Each norm has a distance and a diameter. A norm without a projection, a dual norm, a steepest direction or a uniform
    distribution raises ValueError where it is asked for one.

    Attributes:
        name: name in cards, cells, matrices and ledgers.
        label: name in tables and figures. The renderers translate the sign for infinity.
        unit: unit of the distance: ``pixels`` (whole numbers) or ``intensity``.
        decimals: decimals of a distance in tables.
        position: place among the norms, from 0. Ledgers list their columns in this order, so a new norm comes last.
    """

    name: ClassVar[NormName]
    label: ClassVar[str]
    unit: ClassVar[str]
    decimals: ClassVar[int]
    position: ClassVar[int]

    def __repr__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        """Compares two norms by name.

        Raises:
            TypeError: when ``other`` is a text. It would differ from every norm, and a branch would silently be lost.
        """
        if isinstance(other, str):
            raise TypeError(f"a norm is not its name; compare .name with {other!r}")
        return isinstance(other, Norm) and self.name == other.name

    @property
    def column(self) -> str:
        """Returns the name of the ledger's column of distances."""
        return self.name.lower()

    @abstractmethod
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the distance (N,) float64 of each row of ``a`` (N, C, H, W) to the same row of ``b``."""

    @abstractmethod
    def diameter(self, shape: Sequence[int]) -> float:
        """Returns the largest distance between two images of ``shape`` (C, H, W)."""

    def dual(self, gradient: Tensor) -> Tensor:
        """Returns the dual norm (N,) of a gradient (N, C, H, W).

        The dual norm is the largest rise of the linear function with this gradient, over perturbations of length one.
        """
        raise self._without("dual norm")

    def steepest(self, gradient: Tensor) -> Tensor:
        """Returns the perturbation (N, C, H, W) of length one along which the linear function rises most.

        The perturbation is 0 where the gradient is 0.
        """
        raise self._without("steepest direction")

    def rescaled(self, gradient: Tensor) -> Tensor:
        """Returns the gradient (N, C, H, W), divided by a positive number where `steepest` would underflow without."""
        return gradient

    def uniform(self, random: RowStreams, shape: Sequence[int]) -> Tensor:
        """Draws points (N, C, H, W), uniformly distributed in the ball of radius one, one per row of ``random``.

        ``shape`` is (C, H, W).
        """
        raise self._without("uniform distribution")

    def project(self, x: Tensor, center: Tensor, radius: Tensor | float) -> Tensor:
        """Projects ``x`` to the nearest point in the ball around ``center``, and clips it to [0, 1].

        ``radius`` is one radius or one per row (N,). With ``center`` in [0, 1], clipping cannot leave the ball. The
        radius is reduced by the amount that rounding to float32 can add to the distance.
        """
        radii = (x.new_zeros(len(x)) + radius).to(x.dtype).reshape(-1, 1, 1, 1)
        radii = (radii - ROUNDING * self.diameter(x.shape[1:])).clamp_min(0)
        return (center + self.nearest_in_ball(x - center, center, radii)).clamp(0, 1)

    def nearest_in_ball(self, delta: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        """Returns the perturbation nearest to ``delta`` (N, C, H, W) among those up to length ``radius`` (N, 1, 1, 1).

        `project` clips ``center`` plus this perturbation to [0, 1].
        """
        raise self._without("projection")

    def _without(self, what: str) -> ValueError:
        return ValueError(f"norm {self.name!r} has no {what}")


def within(distances: Any, epsilon: float) -> Any:
    """Returns ``distances <= epsilon (1 + TOLERANCE)`` for an array, a series, a tensor or a number.

    A candidate within epsilon is "in the ball". A sample within epsilon is "broken at epsilon".
    """
    return distances <= epsilon * (1 + TOLERANCE)


def per_image(values: Tensor) -> Tensor:
    """Reshapes one number per image (N,) to (N, 1, 1, 1), the shape that multiplies images."""
    return values.reshape(-1, 1, 1, 1)
