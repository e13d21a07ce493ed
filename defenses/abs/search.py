"""Inference by optimisation in the latent space of class-conditional decoders (Schott et al. 2019, section 3; Ju &
Wagner 2020, section 3.3).

For each class c it finds z minimising the energy E_c(x, z) = ||x - G_c(z)||^2 + penalty(z), or a normal distribution of
z minimising its mean. The search starts from the best of many draws from the prior and takes a fixed number of steps of
Adam (`defenses.abs.descent`).
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
"""Images or latents that are decoded at once at most on a CPU: bounds the memory and keeps activations in the cache."""
UNROLLED_ROWS, UNROLLED_ROWS_GPU = 50, 512
"""Images through whose descent autograd goes at once at most: bounds the memory."""
PARTS = 10
"""In so many parts starting points are compared, or in as many as their number can be divided into."""

Propose = Callable[[Tensor, slice], Tensor]
"""Maps images (N, C, H, W) and a range of K classes to parameters (K, N, P) that a descent may start from."""
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
        minimising: iterations where the minimum itself is asked for, as for lower bounds and reconstructions, if it
            takes more.
    """

    starts: int
    iterations: int
    learning_rate: float
    variance: float
    minimising: int = 0

    @property
    def longest(self) -> int:
        """The most iterations."""
        return max(self.iterations, self.minimising)


def prior_draws(count: int, latent: int) -> Tensor:
    """The ``count`` densest of 10/9 as many draws from N(0, 1), (count, latent): the authors keep 8000 of 8888."""
    generator = np.random.Generator(np.random.Philox(PRIOR_SEED))
    draws = generator.standard_normal((count * 10 // 9, latent), np.float32)
    densest = np.argsort(np.square(draws).sum(1), kind="stable")[:count]
    return torch.from_numpy(draws[densest])


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
    def all_classes(self, x: Tensor, objectives: Objectives, proposals: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values (N, K) and reconstructions (N, K, C, H, W) of images (N, C, H, W) under every class.

        ``proposals`` (K, N, P) are further parameters to start from where their first value is lower than that of the
        best start.
        """
        return self._in_parts(self._groups, x, objectives, self._search.iterations, proposals)

    @torch.no_grad()
    def minima(self, x: Tensor, objectives: Objectives, restarts: int = 1) -> tuple[Tensor, Tensor]:
        """`all_classes` by as many iterations as a minimum takes; the best end of ``restarts`` descents for each image
        and class."""
        return self._in_parts(self._groups, x, objectives, self._search.longest, restarts=restarts)

    @torch.no_grad()
    def decide(self, x: Tensor, objectives: Objectives, scale: Tensor, pruning: Pruning) -> Tensor:
        """The class (N,) with the least ``scale_c`` E_c(x), scale (K,), for images (N, C, H, W).

        Hopeless classes leave the descent (without ``pruning`` none does), and so do images with one class left; the
        classes that stay are compared at the end of the descent, as in `all_classes`. The objectives must not depend on
        the images.
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
        """Reconstructions (N, C, H, W) of images (N, C, H, W) under the classes (N,); others cost nothing. The
        objectives must not depend on the images."""
        output = torch.empty_like(x)
        for c in torch.unique(y).tolist():
            rows = y == c
            found = self._in_parts(self._single[c : c + 1], x[rows], objectives, self._search.longest)
            output[rows] = found[1][:, 0]
        return output

    def unrolled(self, x: Tensor, objectives: Objectives, propose: Propose | None = None) -> tuple[Tensor, Tensor]:
        """`all_classes`' values (N, K) and their exact derivatives (N, K, C, H, W): autograd goes through every step,
        and through the proposals that ``propose`` makes of images; which start is the best is held fixed.

        The decoders' activation must be one that autograd can go through, such as `RELU`.
        """
        values = x.new_empty(len(x), len(self._single))
        derivatives = x.new_empty(*values.shape, *x.shape[1:])
        size = UNROLLED_ROWS_GPU if x.is_cuda else UNROLLED_ROWS
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            # One class after the other: each keeps all it computed until it is differentiated.
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
        """Where the descents of a group's classes end for images as rows ``x`` (N, D)."""
        p, _ = group.nearest_starts(x.detach(), restarts)
        if proposed is not None:
            values = [objective.differentiate(group.decoder, x, start, 0)[0]() for start in (p, proposed)]
            p = torch.where((values[1] < values[0])[..., None], proposed, p)
        descent = Descent(group.decoder, objective, x.repeat(restarts, 1), p, self._search.learning_rate)
        return _best(*descent.minimise(iterations), restarts)

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
    size = _rows_at_once(starts)
    for part, rows in zip(torch.split(starts, size), torch.split(grid, size, 1), strict=True):
        rows.copy_(decoder.decode(part.expand(decoder.classes, -1, -1)))
    return grid
