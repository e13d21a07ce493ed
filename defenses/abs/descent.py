"""Objectives of inference in a latent space, and the descent that minimizes them.

The sources are Schott et al. 2019, section 3, and Ju & Wagner 2020, section 3.3.

`Descent` moves the parameters of any `Objective`. `AtPoint` moves the latent itself. `Variational` moves the mean and
the deviation of a normal distribution.

With `NormalPrior`, E_c of `AtPoint` is -2 variance times a lower bound on log p(x|c), up to a constant. The bound is
eq. 3 of Schott et al. with a posterior of width 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from defenses.abs.decoders import FoldedDecoder, Penalty, excess
from defenses.abs.energies import Ends, Energy

MAX_NORM = 5.0
"""Radius of the ball that contains the latents of ABS, as in the authors' code. N(0, 1) has its mass there."""
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
TINY = torch.finfo(torch.float32).tiny


def clip_norm(z: Tensor, maximum: float) -> Tensor:
    """Scales rows of ``z`` (..., L) that are longer than ``maximum`` down to this length, in the same direction."""
    norm: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z * (maximum / norm.clamp_min(maximum))


@dataclass(frozen=True)
class NormalPrior:
    """The penalty variance ||z||^2."""

    variance: float

    def add_value(self, energies: Tensor, z: Tensor) -> None:
        """See `Penalty`."""
        energies.add_(z.square().sum(2), alpha=self.variance)

    def add_gradient(self, gradient: Tensor, z: Tensor) -> None:
        """See `Penalty`."""
        gradient.add_(z, alpha=2 * self.variance)

    def for_kernel(self) -> Energy:
        """See `Penalty`."""
        return Energy(variance=self.variance)


Values = Callable[[], Tensor]
"""Returns values (K, N). The call is deferred because most steps of a descent need only derivatives."""


class Objective(Protocol):
    """A function of parameters (K, N, P) that a descent minimizes."""

    def differentiate(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Values, Tensor]:
        """Deferred values (K, N), and derivatives (K, N, P), at the parameters ``p`` after ``taken`` steps.

        The images are rows ``x``, (N, D) or (K, N, D).
        """

    def result(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Tensor, Tensor]:
        """Values (K, N) and decoded images (K, N, D) at the end, after ``taken`` steps."""

    def confine(self, p: Tensor) -> Tensor:
        """Moves parameters back into the search region."""

    def for_kernel(self) -> Energy:
        """Returns the objective as the kernel knows it."""


@dataclass(frozen=True)
class AtPoint:
    """The energy at a latent. The parameters are the latent.

    Attributes:
        penalty: the term that the energy adds to the squared error.
        max_norm: radius of the ball that latents stay in.
        slack: error of each pixel that costs nothing, per image (N, 1).
    """

    penalty: Penalty
    max_norm: float = torch.inf
    slack: Tensor | None = None

    def differentiate(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Values, Tensor]:
        """See `Objective`."""
        error, gradient = decoder.differentiate(x, p, self.penalty, self.slack)
        return partial(energy, error, self.penalty, p), gradient

    def result(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        decoded = decoder.decode(p)
        return energy(excess(decoded - x, self.slack), self.penalty, p), decoded

    def confine(self, p: Tensor) -> Tensor:
        """See `Objective`."""
        return clip_norm(p, self.max_norm) if self.max_norm < torch.inf else p

    def for_kernel(self) -> Energy:
        """See `Objective`."""
        return replace(self.penalty.for_kernel(), most_norm=self.max_norm, slack=self.slack)


@dataclass(frozen=True)
class Variational:
    """The energy at one draw z ~ N(mu, sigma^2), by the reparameterization trick.

    The parameters are mu and log sigma, concatenated.

    Attributes:
        penalty: the term that the energy of a draw adds to the squared error.
        divergence: weight of the added divergence KL[N(mu, sigma^2) || N(0, 1)].
        noise: standard normal draws (T, K, N, L), one per evaluation.
        slack: as in `AtPoint`.
    """

    penalty: Penalty
    divergence: float
    noise: Tensor
    slack: Tensor | None = None

    def differentiate(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Values, Tensor]:
        """See `Objective`."""
        z, spread = self._draw(p, taken)
        error, gradient = decoder.differentiate(x, z, self.penalty, self.slack)
        derivative = torch.cat([gradient, gradient * spread], 2)
        if self.divergence:
            mean, log_deviation = p.chunk(2, 2)
            derivative += self.divergence * torch.cat([mean, (2 * log_deviation).exp() - 1], 2)
        return partial(self._value, error, z, p), derivative

    def result(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        z, _ = self._draw(p, taken)
        decoded = decoder.decode(z)
        return self._value(excess(decoded - x, self.slack), z, p), decoded

    def confine(self, p: Tensor) -> Tensor:
        """See `Objective`."""
        return p

    def for_kernel(self) -> Energy:
        """See `Objective`."""
        return replace(self.penalty.for_kernel(), divergence=self.divergence, slack=self.slack, noise=self.noise)

    def _value(self, error: Tensor, z: Tensor, p: Tensor) -> Tensor:
        energies = energy(error, self.penalty, z)
        return energies.add_(divergence(p), alpha=self.divergence) if self.divergence else energies

    def _draw(self, p: Tensor, which: int) -> tuple[Tensor, Tensor]:
        mean, log_deviation = p.chunk(2, 2)
        spread = log_deviation.exp() * self.noise[which]
        return mean + spread, spread


def energy(error: Tensor, penalty: Penalty, z: Tensor) -> Tensor:
    """Energies ||error||^2 + penalty(z), (K, N), of errors (K, N, D) and latents (K, N, L)."""
    energies = error.square().sum(2)
    penalty.add_value(energies, z)
    return energies


def divergence(p: Tensor) -> Tensor:
    """Divergence KL[N(mu, sigma^2) || N(0, 1)], (...), of parameters mu and log sigma, (..., 2 L)."""
    mean, log_deviation = p.chunk(2, -1)
    return 0.5 * (mean.square() + (2 * log_deviation).exp() - 2 * log_deviation - 1).sum(-1)


Objectives = Callable[[slice, slice], Objective]
"""Returns the objective for a range of classes and a range of images."""


class Descent:
    """Adam on the parameters of images under the K classes of one decoder.

    Pairs of a class and an image may leave the descent. Steps change no tensor in place, so that autograd can
    differentiate the end with respect to the images and the start.

    Args:
        decoder: decoder of the classes.
        objective: the function to minimize.
        x: images as rows, (N, D) or (K, N, D).
        p: initial parameters (K, N, P).
        learning_rate: learning rate of Adam.

    Attributes:
        rows: index of the image that each class has in each of R places, (K, R) int64.
        live: mask (K, R) of the pairs still in the descent. Pairs that left fill the places of classes with fewer live
            pairs.
    """

    def __init__(
        self, decoder: FoldedDecoder, objective: Objective, x: Tensor, p: Tensor, learning_rate: float
    ) -> None:
        self.rows = torch.arange(p.shape[1], device=x.device).expand(len(p), -1)
        self.live = torch.ones_like(self.rows, dtype=torch.bool)
        self._decoder, self._objective, self._learning_rate = decoder, objective, learning_rate
        self._x, self._p, self._gradient = x, p, p
        self._mean, self._square = torch.zeros_like(p), torch.zeros_like(p)
        self._taken = 0

    def differentiate(self) -> Values:
        """Computes the gradient at the current parameters, for `step`. Returns the deferred values (K, R) there."""
        values, self._gradient = self._objective.differentiate(self._decoder, self._x, self._p, self._taken)
        return values

    def step(self) -> None:
        """Takes one step of Adam with the last gradient."""
        self._taken += 1
        gradient = self._gradient
        self._mean = torch.lerp(self._mean, gradient, 1 - BETA_1)
        self._square = torch.addcmul(BETA_2 * self._square, gradient, gradient, value=1 - BETA_2)
        # Clamped because the square root has no derivative at 0.
        deviation = self._square.clamp_min(TINY).sqrt() * (1 - BETA_2**self._taken) ** -0.5 + EPSILON
        rate = self._learning_rate / (1 - BETA_1**self._taken)
        self._p = self._objective.confine(torch.addcdiv(self._p, self._mean, deviation, value=-rate))

    def keep(self, kept: Tensor) -> None:
        """Drops the pairs for which ``kept`` (K, R) is False."""
        places = int(kept.sum(1).max())
        if places == kept.shape[1]:
            self.live = kept
            return
        chosen = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :places]
        x = self._x.expand(len(kept), -1, -1)
        self.rows, self.live = self.rows.gather(1, chosen), kept.gather(1, chosen)
        self._x, self._p, self._gradient, self._mean, self._square = (
            tensor.gather(1, chosen[..., None].expand(-1, -1, tensor.shape[2]))
            for tensor in (x, self._p, self._gradient, self._mean, self._square)
        )

    def minimize(self, iterations: int) -> Ends:
        """Returns where the descent ends, after ``iterations`` - 1 steps."""
        for _ in range(iterations - 1):
            self.differentiate()
            self.step()
        values, decoded = self._objective.result(self._decoder, self._x, self._p, self._taken)
        return Ends(values, decoded.transpose(0, 1), self._p)
