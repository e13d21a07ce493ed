"""What a search in a latent space minimizes, how it goes on and where it ends, for torch and for the kernel alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Discriminators:
    """The penalty -weight log D(z), of one discriminator for each class or of one for all.

    A discriminator has two hidden layers with Leaky ReLU, and one logit.

    Attributes:
        packed: all weights of each discriminator in a row (K, W), as the kernel reads them; K may be 1.
        widths: numbers H1 and H2 of neurons in the hidden layers.
        weight: factor of the penalty.
        leak: slope of the activation below zero.
        latent: dimension L of the latent space.
    """

    packed: Tensor
    widths: tuple[int, int]
    weight: float
    leak: float
    latent: int

    @property
    def size(self) -> int:
        """Number of values of one discriminator."""
        first, second = self.widths
        return (self.latent + 1) * first + (2 * first + 2) * second + 1

    @classmethod
    def of(cls, matrices: Sequence[Tensor], biases: Sequence[Tensor], weight: float, leak: float) -> Self:
        """Packs the weights (K, L, H1), (K, H1, H2) and (K, H2, 1) of the layers, and their biases."""
        layers = [part for pair in zip(matrices, biases, strict=True) for part in pair]
        packed = torch.cat([part.flatten(1) for part in [*layers, matrices[1].mT]], 1)
        return cls(packed, (matrices[0].shape[2], matrices[1].shape[2]), weight, leak, matrices[0].shape[1])

    def part(self, classes: slice) -> Self:
        """Returns those of a range of classes."""
        return self if len(self.packed) == 1 else replace(self, packed=self.packed[classes])


@dataclass(frozen=True)
class Energy:
    """What is added to the squared error, and where the search may go.

    Attributes:
        variance: adds variance ||z||^2.
        discriminators: adds their penalty.
        divergence: adds this many times KL[N(mu, sigma^2) || N(0, 1)] to a variational energy.
        most_norm: radius of the ball that the latents stay in.
        slack: error of each pixel that costs nothing, per image (N, 1).
        noise: standard normal draws (T, K, N, L) of a variational search, one for each evaluation; dimensions of size 1
            are repeated. None for a search of the latent itself.
    """

    variance: float = 0.0
    discriminators: Discriminators | None = None
    divergence: float = 0.0
    most_norm: float = torch.inf
    slack: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class Steps:
    """Adam's learning rate, and the number of evaluations; the last one takes no step."""

    learning_rate: float
    evaluations: int


@dataclass(frozen=True)
class Ends:
    """Where the searches of N images under K classes ended.

    Attributes:
        values: energies (K, N).
        decoded: decoded images as rows (N, K, D).
        p: parameters (K, N, P).
    """

    values: Tensor
    decoded: Tensor
    p: Tensor
