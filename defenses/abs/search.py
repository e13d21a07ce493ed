"""Inference by optimization in the latent space of class-conditional decoders (Schott et al. 2019, section 3; Ju &
Wagner 2020, section 3.3).

For each class c, inference finds the latent z that minimizes the energy E_c(x, z) = ||x - G_c(z)||^2 + penalty(z). A
variational search finds the normal distribution of z that minimizes the mean energy. The search starts from the best of
many draws from the prior and takes a fixed number of steps of Adam (`defenses.abs.descent`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from defenses.abs.built import Kernel
from defenses.abs.decoders import (
    Activation,
    FoldedLayers,
    compiled,
    evaluated_together,
    features,
    images,
)
from defenses.abs.descent import Descent, Objective, Objectives
from defenses.abs.energies import Ends, Steps
from defenses.abs.graphs import in_streams
from defenses.abs.starts import Group, Starts, decoded_starts, in_order, parts_of

UNROLLED, UNROLLED_GPU = 1000, 10_000
"""Largest numbers of evaluations that autograd differentiates at once on a CPU and on a GPU, to bound the memory. An
evaluation is one of an image under a group of classes."""

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


_Descend = Callable[[Group, Tensor, Objective, Tensor, int], Ends]


class Inference:
    """Finds the optimal latents of images under the decoders of K classes. Up to rounding, rows are independent.

    Args:
        classes: folded layers of each decoder.
        activation: activation between the layers.
        starts: starting points.
        search: effort of the search.
        kernel: runs the descents; None for torch.
    """

    def __init__(
        self,
        classes: Sequence[FoldedLayers],
        activation: Activation,
        starts: Starts,
        search: Search,
        kernel: Kernel | None = None,
    ) -> None:
        self.search = search
        self.compiled = None if kernel is None else compiled(classes, activation, kernel)
        single, groups = evaluated_together(classes, activation)
        decoded = [decoded_starts(together, starts.latents) for together in groups]
        self.groups = in_order(groups, starts, decoded)
        grids = [grid[c : c + 1] for grid in decoded for c in range(len(grid))]
        self._single = in_order(single, starts, grids)

    @torch.no_grad()
    def all_classes(self, x: Tensor, objectives: Objectives, proposals: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values (N, K) and reconstructions (N, K, C, H, W) of images (N, C, H, W) under every class.

        A descent starts at the parameters in ``proposals`` (K, N, P) if their value is lower than the value of the best
        starting point.
        """
        return self._in_parts(self.groups, x, objectives, self.search.iterations, proposals)

    @torch.no_grad()
    def minima(self, x: Tensor, objectives: Objectives, restarts: int = 1) -> tuple[Tensor, Tensor]:
        """Runs `all_classes` with `Search.longest` iterations, and keeps the best of ``restarts`` descents.

        The best is chosen for each image and class.
        """
        return self._in_parts(self.groups, x, objectives, self.search.longest, restarts=restarts)

    @torch.no_grad()
    def decide(self, x: Tensor, objectives: Objectives, scale: Tensor, pruning: Pruning) -> Tensor:
        """Classes (N,) with the least ``scale_c`` E_c(x), for images (N, C, H, W) and scales (K,).

        Hopeless classes leave the descent, as do images with only one class left. Without ``pruning`` all classes stay.
        The remaining classes are compared at the end of the descent, as in `all_classes`. The objectives must not
        depend on the images.
        """
        if not pruning:
            return (scale * self.all_classes(x, objectives)[0]).argmin(1)
        decide = self._decide if self.compiled is None else self._decide_compiled
        rows = features(x)
        return torch.cat([decide(rows[part], objectives, scale, pruning) for part in parts_of(x)])

    def _decide_compiled(self, x: Tensor, objectives: Objectives, scale: Tensor, pruning: Pruning) -> Tensor:
        assert self.compiled is not None
        found = [group.nearest_starts(x, 1) for group in self.groups]
        p, energies = torch.cat([start for start, _ in found]), torch.cat([energy for _, energy in found])
        gaps = dict(pruning)
        limits = [gaps.get(taken, torch.inf) for taken in range(self.search.iterations)]
        energy = objectives(slice(None), slice(None)).for_kernel()
        return self.compiled.decide(energy, x, p, energies, scale, limits, self.search.learning_rate).classes

    def _decide(self, x: Tensor, objectives: Objectives, scale: Tensor, pruning: Pruning) -> Tensor:
        scale = scale[:, None]
        gaps = dict(pruning)
        energies = x.new_empty(len(scale), len(x))
        descents = []
        for group in self.groups:
            p, energies[group.classes] = group.nearest_starts(x, 1)
            objective = objectives(group.classes, slice(None))
            descents.append((group.classes, Descent(group.decoder, objective, x, p, self.search.learning_rate)))
        energies *= scale
        descents = _contested(descents, energies, gaps.pop(0))
        last = self.search.iterations - 1
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
            found = self._in_parts(self._single[c : c + 1], x[rows], objectives, self.search.longest)
            output[rows] = found[1][:, 0]
        return output

    def unrolled(self, x: Tensor, objectives: Objectives, propose: Propose | None = None) -> tuple[Tensor, Tensor]:
        """Values (N, K) of `all_classes`, and their exact derivatives (N, K, C, H, W).

        Autograd differentiates every step and the proposals of ``propose``. The choice of the best start is held fixed.
        """
        size = max(1, (UNROLLED_GPU if x.is_cuda else UNROLLED) // self.search.iterations)
        values, derivatives = [], []
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            found = [self._unrolled(group, x[part], objectives(group.classes, part), propose) for group in self.groups]
            values.append(torch.cat([value for value, _ in found], 1))
            derivatives.append(torch.cat([derivative for _, derivative in found], 1))
        return torch.cat(values), torch.cat(derivatives)

    @torch.enable_grad()
    def _unrolled(
        self, group: Group, x: Tensor, objective: Objective, propose: Propose | None
    ) -> tuple[Tensor, Tensor]:
        """Values (N, K) and derivatives (N, K, C, H, W) of a group's classes."""
        classes = range(group.classes.start, group.classes.stop)
        # Each class has its own copy of the images, so that one derivative of the sum tells the classes apart.
        leaf = x.detach().expand(len(classes), *x.shape).clone().requires_grad_(True)
        rows = features(leaf.flatten(0, 1)).reshape(*leaf.shape[:2], -1)
        proposed = None
        if propose is not None:
            proposed = torch.cat([propose(own, slice(c, c + 1)) for c, own in zip(classes, leaf, strict=True)])
        p = self._start(group, rows, objective, self._by_torch, proposed)
        values = self._by_torch(group, rows, objective, p, self.search.iterations).values
        (derivative,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach().T, derivative.transpose(0, 1)

    def _start(
        self,
        group: Group,
        x: Tensor,
        objective: Objective,
        descend: _Descend,
        proposed: Tensor | None = None,
        restarts: int = 1,
    ) -> Tensor:
        """Parameters (K, ``restarts`` N, P) from which a group's descents start, for images (N, D) or (K, N, D)."""
        p, _ = group.nearest_starts(x.detach(), restarts)
        if proposed is None:
            return p
        values = [descend(group, x, objective, start, 1).values for start in (p, proposed)]
        return torch.where((values[1] < values[0])[..., None], proposed, p)

    def _by_torch(self, group: Group, x: Tensor, objective: Objective, p: Tensor, iterations: int) -> Ends:
        """Where a group's descents from parameters (K, N, P) end."""
        return Descent(group.decoder, objective, x, p, self.search.learning_rate).minimize(iterations)

    def _by_kernel(self, group: Group, x: Tensor, objective: Objective, p: Tensor, iterations: int) -> Ends:
        assert self.compiled is not None
        return self.compiled.minimize(group.classes, objective.for_kernel(), x, p, self._steps(iterations))

    @property
    def _descend(self) -> _Descend:
        return self._by_torch if self.compiled is None else self._by_kernel

    def _steps(self, evaluations: int) -> Steps:
        return Steps(self.search.learning_rate, evaluations)

    def _in_parts(
        self,
        groups: Sequence[Group],
        x: Tensor,
        objectives: Objectives,
        iterations: int,
        proposals: Tensor | None = None,
        restarts: int = 1,
    ) -> tuple[Tensor, Tensor]:
        rows = features(x)

        def end(group: Group, part: slice) -> tuple[Tensor, Tensor]:
            objective = objectives(group.classes, part)
            proposed = None if proposals is None else proposals[group.classes, part]
            p = self._start(group, rows[part], objective, self._descend, proposed, restarts)
            ends = self._descend(group, rows[part].repeat(restarts, 1), objective, p, iterations)
            return _best(ends, restarts)

        values, decoded = [], []
        for part in parts_of(x):
            ends = in_streams([partial(end, group, part) for group in groups], x.device)
            values.append(torch.cat([value for value, _ in ends], 1))
            decoded.append(torch.cat([reconstruction for _, reconstruction in ends], 1))
        return torch.cat(values), images(torch.cat(decoded), x.shape[-1])

    @torch.no_grad()
    def starts(self, x: Tensor, objectives: Objectives, proposals: Tensor | None = None) -> Tensor:
        """Parameters (K, N, P) from which `all_classes` descends."""
        rows, found = features(x), []
        for part in parts_of(x):
            of_groups = []
            for group in self.groups:
                proposed = None if proposals is None else proposals[group.classes, part]
                objective = objectives(group.classes, part)
                of_groups.append(self._start(group, rows[part], objective, self._descend, proposed))
            found.append(torch.cat(of_groups))
        return torch.cat(found, 1)

    @torch.no_grad()
    def descended(self, x: Tensor, objectives: Objectives, p: Tensor, evaluations: int) -> Ends:
        """Where the descents of all classes end that start at parameters ``p`` (K, N, P)."""
        rows, found = features(x), []
        for part in parts_of(x):
            of_groups = [
                self._descend(group, rows[part], objectives(group.classes, part), p[group.classes, part], evaluations)
                for group in self.groups
            ]
            found.append(_joined(of_groups, 0, 1))
        return _joined(found, 1, 0)

    @torch.no_grad()
    def resumed(self, x: Tensor, objectives: Objectives, ends: Ends, wanted: Tensor, evaluations: int) -> Ends:
        """Goes on from ``ends`` with few evaluations, for the ``wanted`` pairs (K, N) of a class and an image.

        The other pairs keep their ends. The objectives must not depend on the images.
        """
        rows = features(x)
        if self.compiled is not None:
            energy = objectives(slice(None), slice(None)).for_kernel()
            return self.compiled.resume(energy, rows, ends, wanted, self._steps(evaluations))
        moved = Ends(ends.values.clone(), ends.decoded.clone(), ends.p.clone())
        for c, group in enumerate(self._single):
            places = wanted[c].nonzero()[:, 0]
            if len(places):
                objective = objectives(group.classes, slice(None))
                end = self._by_torch(group, rows[places], objective, ends.p[c : c + 1, places], evaluations)
                moved.values[c, places], moved.p[c, places] = end.values[0], end.p[0]
                moved.decoded[places, c] = end.decoded[:, 0]
        return moved


def _joined(ends: Sequence[Ends], dim: int, of_decoded: int) -> Ends:
    """Joins ends along a dimension of their values and parameters, and along another one of their decoded images."""
    values, p = torch.cat([end.values for end in ends], dim), torch.cat([end.p for end in ends], dim)
    return Ends(values, torch.cat([end.decoded for end in ends], of_decoded), p)


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


def _best(ends: Ends, restarts: int) -> tuple[Tensor, Tensor]:
    """Returns the lowest values (N, K) of ``restarts`` N searches, and the images decoded there (N, K, D)."""
    values, decoded = ends.values.T, ends.decoded
    if restarts == 1:
        return values, decoded
    best = values.reshape(restarts, -1, values.shape[1]).min(0)
    candidates = decoded.reshape(restarts, -1, *decoded.shape[1:])
    return best.values, candidates.gather(0, best.indices[None, ..., None].expand(1, *candidates.shape[1:]))[0]
