"""Inference by optimisation in the latent space of class-conditional decoders (Schott et al. 2019, section 3).

For each class c it finds z minimising the energy E_c(x, z) = ||x - G_c(z)||^2 + variance ||z||^2. But for a constant,
that is -2 variance times the lower bound of eq. 3 on log p(x|c) with a posterior of width 1; the likelihood's variance
is 1/2 in the paper. The search starts from the best of many draws from the prior and takes a fixed number of steps of
Adam.

`Descent` asks its decoder for two things only, ``decode(z)`` and ``energy(x, z, variance)`` with its gradient. Another
objective over the same latents (E-ABS's energy less beta log D(z)), or over the mean and deviation of z with the noise
held fixed (its variational inference), is another object with these two methods; the encoder's proposal is one more
starting point. Grid, pruning and bookkeeping stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defenses.abs.decoders import FoldedDecoder, energy, features, fold, images
from defenses.abs.vae import Decoder

PRIOR_SEED = 2019
MAX_NORM = 5.0
"""Latents stay in the ball of this radius, where N(0, 1) has its mass, as in the authors' code."""
ROWS = 100
"""Images or latents that are decoded at once at most: bounds the memory and keeps activations in the cache."""
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Search:
    """How hard inference tries.

    Attributes:
        starts: draws from the prior to start from, the same for every class and image.
        iterations: evaluations in the descent; the last one takes no step.
        learning_rate: Adam's.
        variance: of the likelihood p(x|z, c), in squared pixel intensity.
        pruning: pairs (steps taken, gap) for `Inference.decide`: a class whose scaled energy then lies further than the
            gap above the lowest one is given up. Empty where no gaps were measured: decisions then cost what logits do.
    """

    starts: int
    iterations: int
    learning_rate: float
    variance: float
    pruning: tuple[tuple[int, float], ...] = ()


def prior_draws(count: int, latent: int) -> Tensor:
    """The ``count`` densest of 10/9 as many draws from N(0, 1), (count, latent): the authors keep 8000 of 8888."""
    generator = np.random.Generator(np.random.Philox(PRIOR_SEED))
    draws = generator.standard_normal((count * 10 // 9, latent), np.float32)
    densest = np.argsort(np.square(draws).sum(1), kind="stable")[:count]
    return torch.from_numpy(draws[densest])


def clip_norm(z: Tensor, maximum: float) -> Tensor:
    """Scales rows of ``z`` (..., L) longer than ``maximum`` down to it, in place; their direction stays."""
    return z.mul_(maximum / z.norm(dim=-1, keepdim=True).clamp_min(maximum))


class Descent:
    """Adam on the latents of images under the K classes of one decoder; images may leave.

    Args:
        decoder: of the classes.
        x: images as rows (N, D).
        z: the latents to start from, (K, N, L); changed in place.
        search: step size and the likelihood's variance.

    Attributes:
        rows: of the images that are left, int64.
    """

    def __init__(self, decoder: FoldedDecoder, x: Tensor, z: Tensor, search: Search) -> None:
        self.rows = torch.arange(len(x), device=x.device)
        self._decoder, self._search = decoder, search
        self._x, self._z, self._gradient = x, z, z
        self._mean, self._square = torch.zeros_like(z), torch.zeros_like(z)
        self._taken = 0

    def evaluate(self) -> Tensor:
        """Energies (K, N) at the present latents; their gradient is kept for `step`."""
        energies, self._gradient = self._decoder.energy(self._x, self._z, self._search.variance)
        return energies

    def step(self) -> None:
        """One step along the gradient of the last evaluation."""
        self._taken += 1
        gradient = self._gradient
        self._mean.lerp_(gradient, 1 - BETA_1)
        self._square.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
        deviation = self._square.sqrt().mul_((1 - BETA_2**self._taken) ** -0.5).add_(EPSILON)
        self._z.addcdiv_(self._mean, deviation, value=-self._search.learning_rate / (1 - BETA_1**self._taken))
        clip_norm(self._z, MAX_NORM)

    def keep(self, kept: Tensor) -> None:
        """Drops the images of which ``kept`` (N,) is False."""
        if kept.all():
            return
        self.rows, self._x = self.rows[kept], self._x[kept]
        self._z, self._gradient = self._z[:, kept], self._gradient[:, kept]
        self._mean, self._square = self._mean[:, kept], self._square[:, kept]

    def result(self) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and decoded images (N, K, D) at the present latents."""
        decoded = self._decoder.decode(self._z)
        return energy(self._x - decoded, self._z, self._search.variance).T, decoded.transpose(0, 1)


class _Group:
    """The classes of one folded decoder, with their starting points decoded."""

    def __init__(self, decoder: FoldedDecoder, starts: Tensor, decoded: Tensor, search: Search) -> None:
        self.decoder, self.starts, self.decoded, self.search = decoder, starts, decoded, search
        lengths = torch.linalg.vector_norm(decoded, dim=2)
        self.offsets = (lengths.square() + search.variance * starts.square().sum(1))[:, None]

    def nearest_start(self, x: Tensor) -> Tensor:
        """Per class the starting point of the lowest energy, (K, N, L), for images as rows (N, D)."""
        # The energy but for ||x||^2, which the starting points share.
        energies = torch.baddbmm(self.offsets, x.expand(self.decoder.classes, -1, -1), self.decoded.mT, alpha=-2)
        return self.starts[energies.argmin(2)]

    def descent(self, x: Tensor) -> Descent:
        """The descent of images as rows (N, D) from their nearest starts."""
        return Descent(self.decoder, x, self.nearest_start(x), self.search)

    def minimise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and decoded images (N, K, D) at the end of the descent for images as rows (N, D)."""
        descent = self.descent(x)
        for _ in range(self.search.iterations - 1):
            descent.evaluate()
            descent.step()
        return descent.result()


class Inference:
    """Finds the optimal latents of images under decoders of K classes; but for rounding, no row depends on the others.

    Args:
        decoder: in evaluation mode; its weights are copied.
        latent: dimension of the latent space.
        search: how hard to try.
    """

    def __init__(self, decoder: Decoder, latent: int, search: Search) -> None:
        self._search = search
        device = next(decoder.parameters()).device
        starts = prior_draws(search.starts, latent).to(device)
        single, groups = fold(decoder)
        decoded = [_decoded(group, starts) for group in groups]
        self._groups = [_Group(group, starts, grid, search) for group, grid in zip(groups, decoded, strict=True)]
        grids = [grid[c : c + 1] for grid in decoded for c in range(len(grid))]
        self._single = [_Group(alone, starts, grid, search) for alone, grid in zip(single, grids, strict=True)]

    @torch.no_grad()
    def all_classes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and reconstructions (N, K, C, H, W) of images (N, C, H, W) under every class."""
        return _in_parts(self._groups, x)

    @torch.no_grad()
    def decide(self, x: Tensor, scale: Tensor) -> Tensor:
        """The class (N,) with the least ``scale_c`` E_c(x), scale (K,), for images (N, C, H, W).

        Hopeless classes leave the descent (`Search.pruning`), and so do images with one class left; the classes that
        stay are compared at the end of the descent, as in `all_classes`.
        """
        if not self._search.pruning:
            return (scale * self.all_classes(x)[0]).argmin(1)
        return torch.cat([self._decide(part, scale) for part in torch.split(features(x), ROWS)])

    def _decide(self, x: Tensor, scale: Tensor) -> Tensor:
        descents = {c: group.descent(x) for c, group in enumerate(self._single)}
        energies = x.new_empty(len(x), len(descents))
        gaps = dict(self._search.pruning)
        for taken in range(self._search.iterations):
            for c, descent in descents.items():
                if taken:
                    descent.step()
                energies[descent.rows, c] = scale[c] * descent.evaluate()[0]
            if taken in gaps:
                energies.masked_fill_(energies > energies.amin(1, keepdim=True) + gaps[taken], torch.inf)
                contested = energies.isfinite()
                contested &= contested.sum(1, keepdim=True) > 1
                for c, descent in descents.items():
                    descent.keep(contested[descent.rows, c])
                descents = {c: descent for c, descent in descents.items() if len(descent.rows)}
        return energies.argmin(1)

    @torch.no_grad()
    def of_class(self, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions (N, C, H, W) of images (N, C, H, W) under the classes (N,); others cost nothing."""
        output = torch.empty_like(x)
        for c in torch.unique(y).tolist():
            rows = y == c
            output[rows] = _in_parts(self._single[c : c + 1], x[rows])[1][:, 0]
        return output


@torch.no_grad()
def _decoded(decoder: FoldedDecoder, starts: Tensor) -> Tensor:
    """Images as rows (K, S, D) of starting points (S, L); written in place, since they fill most of the memory."""
    pixels = decoder.decode(starts[:1].expand(decoder.classes, -1, -1)).shape[2]
    grid = starts.new_empty(decoder.classes, len(starts), pixels)
    for part, rows in zip(torch.split(starts, ROWS), torch.split(grid, ROWS, 1), strict=True):
        rows.copy_(decoder.decode(part.expand(decoder.classes, -1, -1)))
    return grid


def _in_parts(groups: Sequence[_Group], x: Tensor) -> tuple[Tensor, Tensor]:
    parts = [[group.minimise(part) for group in groups] for part in torch.split(features(x), ROWS)]
    energies = torch.cat([torch.cat([energies for energies, _ in part], 1) for part in parts])
    decoded = torch.cat([torch.cat([decoded for _, decoded in part], 1) for part in parts])
    return energies, images(decoded, x.shape[-1])
