"""Inference by optimisation in the latent space of class-conditional decoders (Schott et al. 2019, section 3; Ju &
Wagner 2020, section 3.3).

For each class c it finds z minimising the energy E_c(x, z) = ||x - G_c(z)||^2 + penalty(z), or a normal distribution of
z minimising its mean. The search starts from the best of many draws from the prior and takes a fixed number of steps of
Adam.

`Descent` moves the parameters of an `Objective` and knows nothing else of it. `AtPoint` moves the latent itself; with
`NormalPrior`, E_c is, but for a constant, -2 variance times the lower bound of Schott et al.'s eq. 3 on log p(x|c) with
a posterior of width 1. `Variational` moves the mean and the deviation of a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from defenses.abs.decoders import (
    Activation,
    FoldedDecoder,
    FoldedLayers,
    Penalty,
    evaluated_together,
    excess,
    features,
    images,
)

PRIOR_SEED = 2019
MAX_NORM = 5.0
"""Latents of ABS stay in the ball of this radius, where N(0, 1) has its mass, as in the authors' code."""
ROWS = 100
"""Images or latents that are decoded at once at most: bounds the memory and keeps activations in the cache."""
PARTS = 10
"""In so many parts starting points are compared, or in as many as their number can be divided into."""
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

Pruning = tuple[tuple[int, float], ...]
"""Pairs (steps taken, gap), the first for 0 steps: a class whose scaled energy then lies further than the gap above the
lowest one is given up."""


@dataclass(frozen=True)
class Search:
    """How hard inference tries.

    Attributes:
        starts: draws from the prior to start from, the same for every class and image.
        iterations: evaluations in the descent; the last one takes no step.
        learning_rate: Adam's.
        variance: of the likelihood p(x|z, c), in squared pixel intensity.
    """

    starts: int
    iterations: int
    learning_rate: float
    variance: float


def prior_draws(count: int, latent: int) -> Tensor:
    """The ``count`` densest of 10/9 as many draws from N(0, 1), (count, latent): the authors keep 8000 of 8888."""
    generator = np.random.Generator(np.random.Philox(PRIOR_SEED))
    draws = generator.standard_normal((count * 10 // 9, latent), np.float32)
    densest = np.argsort(np.square(draws).sum(1), kind="stable")[:count]
    return torch.from_numpy(draws[densest])


def clip_norm(z: Tensor, maximum: float) -> Tensor:
    """Scales rows of ``z`` (..., L) longer than ``maximum`` down to it, in place; their direction stays."""
    return z.mul_(maximum / torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(maximum))


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


Values = Callable[[], Tensor]
"""Gives values (K, N): most steps of a descent need derivatives alone."""


class Objective(Protocol):
    """What a descent minimises: a function of parameters (K, N, P)."""

    def differentiate(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Values, Tensor]:
        """Values (K, N), when called for, and derivatives (K, N, P) at ``p`` after ``taken`` steps, for images as rows
        ``x`` (N, D) or (K, N, D)."""

    def result(self, decoder: FoldedDecoder, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Values (K, N) and decoded images (K, N, D) at the end."""

    def confine(self, p: Tensor) -> None:
        """Moves parameters back into the region that is searched, in place."""


@dataclass(frozen=True)
class AtPoint:
    """The energy at a latent; the parameters are the latent.

    Attributes:
        penalty: what the energy has besides the squared error.
        max_norm: latents stay in the ball of this radius.
        slack: per image (N, 1), how much of each pixel's error costs nothing.
    """

    penalty: Penalty
    max_norm: float = torch.inf
    slack: Tensor | None = None

    def differentiate(self, decoder: FoldedDecoder, x: Tensor, p: Tensor, taken: int) -> tuple[Values, Tensor]:
        """See `Objective`."""
        error, gradient = decoder.differentiate(x, p, self.penalty, self.slack)
        return partial(energy, error, self.penalty, p), gradient

    def result(self, decoder: FoldedDecoder, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        decoded = decoder.decode(p)
        return energy(excess(decoded - x, self.slack), self.penalty, p), decoded

    def confine(self, p: Tensor) -> None:
        """See `Objective`."""
        if self.max_norm < torch.inf:
            clip_norm(p, self.max_norm)


@dataclass(frozen=True)
class Variational:
    """One draw's energy of latents z ~ N(mu, sigma^2), by the reparameterisation trick; the parameters are mu and
    log sigma, one after the other.

    Attributes:
        penalty: what the energy of a draw has besides the squared error.
        divergence: weight of KL[N(mu, sigma^2) || N(0, 1)], which is added.
        noise: one standard normal draw for each evaluation, (T, K, N, L).
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

    def result(self, decoder: FoldedDecoder, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        z, _ = self._draw(p, -1)
        decoded = decoder.decode(z)
        return self._value(excess(decoded - x, self.slack), z, p), decoded

    def confine(self, p: Tensor) -> None:
        """See `Objective`."""

    def _value(self, error: Tensor, z: Tensor, p: Tensor) -> Tensor:
        energies = energy(error, self.penalty, z)
        return energies.add_(divergence(p), alpha=self.divergence) if self.divergence else energies

    def _draw(self, p: Tensor, which: int) -> tuple[Tensor, Tensor]:
        mean, log_deviation = p.chunk(2, 2)
        spread = log_deviation.exp() * self.noise[which]
        return mean + spread, spread


def energy(error: Tensor, penalty: Penalty, z: Tensor) -> Tensor:
    """||error||^2 + penalty(z), (K, N), of errors (K, N, D) and latents (K, N, L)."""
    energies = error.square().sum(2)
    penalty.add_value(energies, z)
    return energies


def divergence(p: Tensor) -> Tensor:
    """KL[N(mu, sigma^2) || N(0, 1)], (...), of parameters mu and log sigma, (..., 2 L)."""
    mean, log_deviation = p.chunk(2, -1)
    return 0.5 * (mean.square() + (2 * log_deviation).exp() - 2 * log_deviation - 1).sum(-1)


Objectives = Callable[[slice, slice], Objective]
"""The objective for a range of classes and a range of images."""


class Descent:
    """Adam on the parameters of images under the K classes of one decoder; pairs of a class and an image may leave.

    Args:
        decoder: of the classes.
        objective: what is minimised.
        x: images as rows (N, D).
        p: the parameters to start from, (K, N, P); changed in place.
        learning_rate: Adam's.

    Attributes:
        rows: which image each class has in each of R places, (K, R) int64.
        live: which of these pairs have not left, (K, R); a class with fewer than others fills its places with such.
    """

    def __init__(
        self, decoder: FoldedDecoder, objective: Objective, x: Tensor, p: Tensor, learning_rate: float
    ) -> None:
        self.rows = torch.arange(len(x), device=x.device).expand(len(p), -1)
        self.live = torch.ones_like(self.rows, dtype=torch.bool)
        self._decoder, self._objective, self._learning_rate = decoder, objective, learning_rate
        self._x, self._p, self._gradient = x, p, p
        self._mean, self._square = torch.zeros_like(p), torch.zeros_like(p)
        self._taken = 0

    def differentiate(self) -> Values:
        """Takes the gradient at the present parameters, for `step`; the values there are (K, R)."""
        values, self._gradient = self._objective.differentiate(self._decoder, self._x, self._p, self._taken)
        return values

    def step(self) -> None:
        """One step along the last gradient."""
        self._taken += 1
        gradient = self._gradient
        self._mean.lerp_(gradient, 1 - BETA_1)
        self._square.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
        deviation = self._square.sqrt().mul_((1 - BETA_2**self._taken) ** -0.5).add_(EPSILON)
        self._p.addcdiv_(self._mean, deviation, value=-self._learning_rate / (1 - BETA_1**self._taken))
        self._objective.confine(self._p)

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

    def minimise(self, iterations: int) -> tuple[Tensor, Tensor]:
        """Values (N, K) and decoded images (N, K, D) at the last of ``iterations`` parameters."""
        for _ in range(iterations - 1):
            self.differentiate()
            self.step()
        values, decoded = self._objective.result(self._decoder, self._x, self._p)
        return values.T, decoded.transpose(0, 1)


@dataclass(frozen=True)
class Starts:
    """Where a descent may start.

    Attributes:
        parameters: (S, P).
        latents: (S, L), at which the parameters are judged: themselves, or one draw from each distribution.
        penalties: (K, S), added to the squared errors there; (1, S) if all classes have the same.
    """

    parameters: Tensor
    latents: Tensor
    penalties: Tensor


class _Group:
    """The classes ``[first, first + K)`` of one folded decoder, with their starting points decoded."""

    def __init__(self, decoder: FoldedDecoder, first: int, starts: Starts, decoded: Tensor) -> None:
        self.decoder, self.starts, self.decoded = decoder, starts.parameters, decoded
        self.classes = slice(first, first + decoder.classes)
        penalties = starts.penalties if len(starts.penalties) == 1 else starts.penalties[self.classes]
        self.offsets = (torch.linalg.vector_norm(decoded, dim=2).square() + penalties)[:, None]

    def nearest_starts(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Per class the ``count`` starting points of the lowest values, (K, count N, P), for images as rows (N, D);
        those of all images at the first place come first. And the lowest values, (K, N)."""
        # The value but for ||x||^2, which the starting points share.
        values = torch.baddbmm(self.offsets, x.expand(self.decoder.classes, -1, -1), self.decoded.mT, alpha=-2)
        if count == 1:
            lowest, rows = (found[:, None] for found in _smallest(values))
        else:
            lowest, rows = (found.mT for found in values.topk(count, 2, largest=False))
        return self.starts[rows.flatten(1)], lowest[:, 0] + x.square().sum(1)


class Inference:
    """Finds the optimal latents of images under decoders of K classes; but for rounding, no row depends on the others.

    Args:
        classes: the decoders' layers, folded.
        activation: between them.
        starts: where to start from.
        search: how hard to try.
    """

    def __init__(self, classes: Sequence[FoldedLayers], activation: Activation, starts: Starts, search: Search) -> None:
        self._search = search
        single, groups = evaluated_together(classes, activation)
        decoded = [_decoded(together, starts.latents) for together in groups]
        self._groups = _in_order(groups, starts, decoded)
        grids = [grid[c : c + 1] for grid in decoded for c in range(len(grid))]
        self._single = _in_order(single, starts, grids)

    @torch.no_grad()
    def all_classes(
        self, x: Tensor, objectives: Objectives, proposals: Tensor | None = None, restarts: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Values (N, K) and reconstructions (N, K, C, H, W) of images (N, C, H, W) under every class.

        ``proposals`` (K, N, P) are further parameters to start from where their first value is lower than that of the
        best start. From ``restarts`` starts for each image and class, the best end is taken.
        """
        return self._in_parts(self._groups, x, objectives, proposals, restarts)

    @torch.no_grad()
    def decide(self, x: Tensor, objectives: Objectives, scale: Tensor, pruning: Pruning) -> Tensor:
        """The class (N,) with the least ``scale_c`` E_c(x), scale (K,), for images (N, C, H, W).

        Hopeless classes leave the descent (without ``pruning`` none does), and so do images with one class left; the
        classes that stay are compared at the end of the descent, as in `all_classes`. The objectives must not depend on
        the images.
        """
        if not pruning:
            return (scale * self.all_classes(x, objectives)[0]).argmin(1)
        return torch.cat([self._decide(part, objectives, scale, pruning) for part in torch.split(features(x), ROWS)])

    def _decide(self, x: Tensor, objectives: Objectives, scale: Tensor, pruning: Pruning) -> Tensor:
        scale = scale[:, None]
        gaps = dict(pruning)
        energies = x.new_empty(len(scale), len(x))
        descents = []
        for group in self._groups:
            p, energies[group.classes] = group.nearest_starts(x, 1)
            objective = objectives(group.classes, slice(None))
            descents.append((group.classes, Descent(group.decoder, objective, x, p, self._search.learning_rate)))
        energies *= scale
        descents = _contested(descents, energies, gaps.pop(0))
        last = self._search.iterations - 1
        for taken in range(last + 1):
            for classes, descent in descents:
                if taken:
                    descent.step()
                values = descent.differentiate()
                if taken in gaps or taken == last:
                    known = energies[classes].gather(1, descent.rows)
                    present = torch.where(descent.live, scale[classes] * values(), known)
                    energies[classes] = energies[classes].scatter(1, descent.rows, present)
            if taken in gaps:
                descents = _contested(descents, energies, gaps[taken])
        return energies.argmin(0)

    @torch.no_grad()
    def of_class(self, x: Tensor, y: Tensor, objectives: Objectives) -> Tensor:
        """Reconstructions (N, C, H, W) of images (N, C, H, W) under the classes (N,); others cost nothing. The
        objectives must not depend on the images."""
        output = torch.empty_like(x)
        for c in torch.unique(y).tolist():
            rows = y == c
            output[rows] = self._in_parts(self._single[c : c + 1], x[rows], objectives)[1][:, 0]
        return output

    def _descent(
        self, group: _Group, objective: Objective, x: Tensor, proposals: Tensor | None = None, restarts: int = 1
    ) -> Descent:
        p, _ = group.nearest_starts(x, restarts)
        if proposals is not None:
            values = [objective.differentiate(group.decoder, x, candidates, 0)[0]() for candidates in (p, proposals)]
            p = torch.where((values[1] < values[0])[..., None], proposals, p)
        return Descent(group.decoder, objective, x.repeat(restarts, 1), p, self._search.learning_rate)

    def _in_parts(
        self,
        groups: Sequence[_Group],
        x: Tensor,
        objectives: Objectives,
        proposals: Tensor | None = None,
        restarts: int = 1,
    ) -> tuple[Tensor, Tensor]:
        values, decoded = [], []
        rows = features(x)
        for start in range(0, len(x), ROWS):
            part = slice(start, start + ROWS)
            ends = []
            for group in groups:
                proposed = None if proposals is None else proposals[group.classes, part]
                descent = self._descent(group, objectives(group.classes, part), rows[part], proposed, restarts)
                ends.append(_best(*descent.minimise(self._search.iterations), restarts))
            values.append(torch.cat([value for value, _ in ends], 1))
            decoded.append(torch.cat([reconstruction for _, reconstruction in ends], 1))
        return torch.cat(values), images(torch.cat(decoded), x.shape[-1])


def _smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least of the values (K, N, S) along the last dimension and an index of it, both (K, N).

    Parts of that dimension are compared value by value first: ``amin`` is fast there, ``min`` with its index is not.
    """
    parts = values.reshape(*values.shape[:2], math.gcd(values.shape[2], PARTS), -1)
    lowest, place = parts.amin(2).min(2)
    candidates = parts.gather(3, place[..., None, None].expand(*parts.shape[:3], 1))[..., 0]
    return lowest, candidates.argmin(2) * parts.shape[3] + place


def _contested(descents: list[tuple[slice, Descent]], energies: Tensor, gap: float) -> list[tuple[slice, Descent]]:
    """The descents, with their classes, that can still change a decision. Classes further than ``gap`` above the lowest
    of an image's scaled energies (K, N) are given up: their energies become infinite. They leave their descents, and so
    do images with one class left."""
    energies.masked_fill_(energies > energies.amin(0) + gap, torch.inf)
    contested = energies.isfinite()
    contested &= contested.sum(0) > 1
    for classes, descent in descents:
        descent.keep(descent.live & contested[classes].gather(1, descent.rows))
    return [(classes, descent) for classes, descent in descents if descent.rows.shape[1]]


def _best(values: Tensor, decoded: Tensor, restarts: int) -> tuple[Tensor, Tensor]:
    """The lowest of the values (restarts N, K), (N, K), and the images decoded there, (N, K, D)."""
    if restarts == 1:
        return values, decoded
    best = values.reshape(restarts, -1, values.shape[1]).min(0)
    candidates = decoded.reshape(restarts, -1, *decoded.shape[1:])
    return best.values, candidates.gather(0, best.indices[None, ..., None].expand(1, *candidates.shape[1:]))[0]


def _in_order(decoders: Sequence[FoldedDecoder], starts: Starts, grids: Sequence[Tensor]) -> list[_Group]:
    groups: list[_Group] = []
    for decoder, grid in zip(decoders, grids, strict=True):
        groups.append(_Group(decoder, groups[-1].classes.stop if groups else 0, starts, grid))
    return groups


@torch.no_grad()
def _decoded(decoder: FoldedDecoder, starts: Tensor) -> Tensor:
    """Images as rows (K, S, D) of starting points (S, L); written in place, since they fill most of the memory."""
    pixels = decoder.decode(starts[:1].expand(decoder.classes, -1, -1)).shape[2]
    grid = starts.new_empty(decoder.classes, len(starts), pixels)
    for part, rows in zip(torch.split(starts, ROWS), torch.split(grid, ROWS, 1), strict=True):
        rows.copy_(decoder.decode(part.expand(decoder.classes, -1, -1)))
    return grid
