"""Inference by optimization in the latent space of class-conditional decoders (Schott et al. 2019, section 3; Ju &
Wagner 2020, section 3.3).

For each class c, inference finds the latent z that minimizes the energy E_c(x, z) = ||x - G_c(z)||^2 + penalty(z). A
variational search finds the normal distribution of z that minimizes the mean energy. The search starts from the best of
many draws from the prior and takes a fixed number of steps of Adam (`defenses.abs.descent`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from defenses.abs.decoders import Activation, FoldedDecoder, FoldedLayers, evaluated_together, features, images
from defenses.abs.descent import Descent, Objective, Objectives
from defenses.abs.graphs import MOST_ROWS, in_streams

PRIOR_SEED = 2019
ROWS = 100
"""Largest number of images or latents decoded at once on a CPU, to bound the memory and keep activations in cache."""
UNROLLED_ROWS, UNROLLED_ROWS_GPU = 50, 512
"""Largest numbers of images differentiated at once by autograd on a CPU and on a GPU, to bound the memory."""
PARTS = 10
"""Number of parts in which starting points are compared, or its greatest common divisor with their number."""

Propose = Callable[[Tensor, slice], Tensor]
"""Maps images (N, C, H, W) and a range of K classes to parameters (K, N, P) at which a descent may start."""
Pruning = tuple[tuple[int, float], ...]
"""Pairs (steps taken, gap), the first for 0 steps. After these steps, a class is given up if its scaled energy exceeds
the lowest one by more than the gap."""


@dataclass(frozen=True)
class Search:
    """Effort of inference.

    Attributes:
        starts: number of starting points drawn from the prior, the same for every class and image.
        iterations: evaluations in the descent. The last one takes no step.
        learning_rate: learning rate of Adam.
        variance: variance of the likelihood p(x|z, c), in squared pixel intensity.
        minimizing: iterations for lower bounds and reconstructions, which need the minimum itself. Smaller numbers than
            ``iterations`` have no effect.
    """

    starts: int
    iterations: int
    learning_rate: float
    variance: float
    minimizing: int = 0

    @property
    def longest(self) -> int:
        """The larger of the two numbers of iterations, used for lower bounds and reconstructions."""
        return max(self.iterations, self.minimizing)


def prior_draws(count: int, latent: int) -> Tensor:
    """Draws from N(0, 1) and keeps the ``count`` densest of 10/9 as many draws, (count, latent).

    The authors keep 8000 of 8888.
    """
    generator = np.random.Generator(np.random.Philox(PRIOR_SEED))
    draws = generator.standard_normal((count * 10 // 9, latent), np.float32)
    densest = np.argsort(np.square(draws).sum(1), kind="stable")[:count]
    return torch.from_numpy(draws[densest])


@dataclass(frozen=True)
class Starts:
    """Starting points of a descent.

    Attributes:
        parameters: initial parameters (S, P).
        latents: points (S, L) at which the parameters are evaluated: themselves, or one draw from each distribution.
        penalties: terms (K, S) added to the squared errors at the latents, or (1, S) if all classes share them.
    """

    parameters: Tensor
    latents: Tensor
    penalties: Tensor


class _Group:
    """The classes ``[first, first + K)`` of one folded decoder, with decoded starting points."""

    def __init__(self, decoder: FoldedDecoder, first: int, starts: Starts, decoded: Tensor) -> None:
        self.decoder, self.starts, self.decoded = decoder, starts.parameters, decoded
        self.classes = slice(first, first + decoder.classes)
        penalties = starts.penalties if len(starts.penalties) == 1 else starts.penalties[self.classes]
        self.offsets = (torch.linalg.vector_norm(decoded, dim=2).square() + penalties)[:, None]

    def nearest_starts(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Parameters (K, count N, P) of the starting points with the lowest values, and the lowest values (K, N).

        The images are rows (N, D). Each class and image has ``count`` starting points. The best starting points of all
        images come first, then the second best, and so on.
        """
        # Without ||x||^2, because it is the same for all starting points.
        values = torch.baddbmm(self.offsets, x.expand(self.decoder.classes, -1, -1), self.decoded.mT, alpha=-2)
        if count == 1:
            lowest, rows = (found[:, None] for found in _smallest(values))
        else:
            lowest, rows = (found.mT for found in values.topk(count, 2, largest=False))
        return self.starts[rows.flatten(1)], lowest[:, 0] + x.square().sum(1)


class Inference:
    """Finds the optimal latents of images under the decoders of K classes. Up to rounding, rows are independent.

    Args:
        classes: folded layers of each decoder.
        activation: activation between the layers.
        starts: starting points.
        search: effort of the search.
    """

    def __init__(self, classes: Sequence[FoldedLayers], activation: Activation, starts: Starts, search: Search) -> None:
        self._search = search
        single, groups = evaluated_together(classes, activation)
        decoded = [_decoded(together, starts.latents) for together in groups]
        self._groups = _in_order(groups, starts, decoded)
        grids = [grid[c : c + 1] for grid in decoded for c in range(len(grid))]
        self._single = _in_order(single, starts, grids)

    @torch.no_grad()
    def all_classes(self, x: Tensor, objectives: Objectives, proposals: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values (N, K) and reconstructions (N, K, C, H, W) of images (N, C, H, W) under every class.

        A descent starts at the parameters in ``proposals`` (K, N, P) if their value is lower than the value of the best
        starting point.
        """
        return self._in_parts(self._groups, x, objectives, self._search.iterations, proposals)

    @torch.no_grad()
    def minima(self, x: Tensor, objectives: Objectives, restarts: int = 1) -> tuple[Tensor, Tensor]:
        """Runs `all_classes` with `Search.longest` iterations, and keeps the best of ``restarts`` descents.

        The best is chosen for each image and class.
        """
        return self._in_parts(self._groups, x, objectives, self._search.longest, restarts=restarts)

    @torch.no_grad()
    def decide(self, x: Tensor, objectives: Objectives, scale: Tensor, pruning: Pruning) -> Tensor:
        """Classes (N,) with the least ``scale_c`` E_c(x), for images (N, C, H, W) and scales (K,).

        Hopeless classes leave the descent, as do images with only one class left. Without ``pruning`` all classes stay.
        The remaining classes are compared at the end of the descent, as in `all_classes`. The objectives must not
        depend on the images.
        """
        if not pruning:
            return (scale * self.all_classes(x, objectives)[0]).argmin(1)
        parts = torch.split(features(x), _rows_at_once(x))
        return torch.cat([self._decide(part, objectives, scale, pruning) for part in parts])

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
        """Reconstructions (N, C, H, W) of images (N, C, H, W) under their classes ``y`` (N,).

        Other classes are not evaluated. The objectives must not depend on the images.
        """
        output = torch.empty_like(x)
        for c in torch.unique(y).tolist():
            rows = y == c
            found = self._in_parts(self._single[c : c + 1], x[rows], objectives, self._search.longest)
            output[rows] = found[1][:, 0]
        return output

    def unrolled(self, x: Tensor, objectives: Objectives, propose: Propose | None = None) -> tuple[Tensor, Tensor]:
        """Values (N, K) of `all_classes`, and their exact derivatives (N, K, C, H, W).

        Autograd differentiates every step and the proposals of ``propose``. The choice of the best start is held fixed.
        Autograd must support the decoders' activation, as it supports `RELU`.
        """
        values = x.new_empty(len(x), len(self._single))
        derivatives = x.new_empty(*values.shape, *x.shape[1:])
        size = UNROLLED_ROWS_GPU if x.is_cuda else UNROLLED_ROWS
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            # One class at a time, because autograd keeps all intermediate results of a class until its derivative is
            # taken.
            for group in self._single:
                with torch.enable_grad():
                    leaf = x[part].detach().requires_grad_(True)
                    proposed = None if propose is None else propose(leaf, group.classes)
                    objective = objectives(group.classes, part)
                    value, _ = self._end(group, features(leaf), objective, self._search.iterations, proposed)
                    (derivative,) = torch.autograd.grad(value.sum(), leaf)
                values[part, group.classes] = value.detach()
                derivatives[part, group.classes] = derivative[:, None]
        return values, derivatives

    def _end(
        self,
        group: _Group,
        x: Tensor,
        objective: Objective,
        iterations: int,
        proposed: Tensor | None = None,
        restarts: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Values (N, K) and decoded images (N, K, D) at the end of a group's descents, for images ``x`` (N, D)."""
        p, _ = group.nearest_starts(x.detach(), restarts)
        if proposed is not None:
            values = [objective.differentiate(group.decoder, x, start, 0)[0]() for start in (p, proposed)]
            p = torch.where((values[1] < values[0])[..., None], proposed, p)
        descent = Descent(group.decoder, objective, x.repeat(restarts, 1), p, self._search.learning_rate)
        return _best(*descent.minimize(iterations), restarts)

    def _in_parts(
        self,
        groups: Sequence[_Group],
        x: Tensor,
        objectives: Objectives,
        iterations: int,
        proposals: Tensor | None = None,
        restarts: int = 1,
    ) -> tuple[Tensor, Tensor]:
        values, decoded = [], []
        rows = features(x)
        size = _rows_at_once(x)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            jobs = [
                partial(
                    self._end,
                    group,
                    rows[part],
                    objectives(group.classes, part),
                    iterations,
                    None if proposals is None else proposals[group.classes, part],
                    restarts,
                )
                for group in groups
            ]
            ends = in_streams(jobs, x.device)
            values.append(torch.cat([value for value, _ in ends], 1))
            decoded.append(torch.cat([reconstruction for _, reconstruction in ends], 1))
        return torch.cat(values), images(torch.cat(decoded), x.shape[-1])


def _rows_at_once(x: Tensor) -> int:
    return MOST_ROWS if x.is_cuda else ROWS


def _smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of values (K, N, S) along the last dimension, and its index, both (K, N).

    Parts of this dimension are first compared elementwise, because ``amin`` is fast there and ``min`` with its index is
    slow.
    """
    parts = values.reshape(*values.shape[:2], math.gcd(values.shape[2], PARTS), -1)
    lowest, place = parts.amin(2).min(2)
    candidates = parts.gather(3, place[..., None, None].expand(*parts.shape[:3], 1))[..., 0]
    return lowest, candidates.argmin(2) * parts.shape[3] + place


def _contested(descents: list[tuple[slice, Descent]], energies: Tensor, gap: float) -> list[tuple[slice, Descent]]:
    """Returns the descents, with their classes, that can still change a decision.

    A class is given up if its scaled energy exceeds the lowest of the image's energies (K, N) by more than ``gap``. Its
    energy becomes infinite, and it leaves its descent. Images with only one class left also leave.
    """
    energies.masked_fill_(energies > energies.amin(0) + gap, torch.inf)
    contested = energies.isfinite()
    contested &= contested.sum(0) > 1
    for classes, descent in descents:
        descent.keep(descent.live & contested[classes].gather(1, descent.rows))
    return [(classes, descent) for classes, descent in descents if descent.rows.shape[1]]


def _best(values: Tensor, decoded: Tensor, restarts: int) -> tuple[Tensor, Tensor]:
    """Returns the lowest of the values (restarts N, K), shape (N, K), and the images decoded there, (N, K, D)."""
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
    """Decodes starting points (S, L) to rows (K, S, D), in place because these rows take most of the memory."""
    pixels = decoder.decode(starts[:1].expand(decoder.classes, -1, -1)).shape[2]
    grid = starts.new_empty(decoder.classes, len(starts), pixels)
    size = _rows_at_once(starts)
    for part, rows in zip(torch.split(starts, size), torch.split(grid, size, 1), strict=True):
        rows.copy_(decoder.decode(part.expand(decoder.classes, -1, -1)))
    return grid
