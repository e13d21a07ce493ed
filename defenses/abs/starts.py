"""Starting points of inference: many draws from the prior, decoded once, of which each image takes the nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defenses.abs.decoders import FoldedDecoder
from defenses.abs.graphs import MOST_ROWS

PRIOR_SEED = 2019
ROWS = 100
"""Largest number of images or latents decoded at once on a CPU, to bound the memory and keep activations in cache."""
PARTS = 10
"""Number of parts in which starting points are compared, or its greatest common divisor with their number."""


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


class Group:
    """The classes ``[first, first + K)`` of one folded decoder, with decoded starting points."""

    def __init__(self, decoder: FoldedDecoder, first: int, starts: Starts, decoded: Tensor) -> None:
        self.decoder, self.starts, self.decoded = decoder, starts.parameters, decoded
        self.classes = slice(first, first + decoder.classes)
        penalties = starts.penalties if len(starts.penalties) == 1 else starts.penalties[self.classes]
        self.offsets = (torch.linalg.vector_norm(decoded, dim=2).square() + penalties)[:, None]

    def nearest_starts(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Parameters (K, count N, P) of the starting points with the lowest values, and the lowest values (K, N).

        The images are rows, (N, D) or (K, N, D). Each class and image has ``count`` starting points. The best starting
        points of all images come first, then the second best, and so on.
        """
        # Without ||x||^2, because it is the same for all starting points.
        values = torch.baddbmm(self.offsets, x.expand(self.decoder.classes, -1, -1), self.decoded.mT, alpha=-2)
        if count == 1:
            lowest, rows = (found[:, None] for found in _smallest(values))
        else:
            lowest, rows = (found.mT for found in values.topk(count, 2, largest=False))
        return self.starts[rows.flatten(1)], lowest[:, 0] + x.square().sum(-1)


def parts_of(x: Tensor) -> list[slice]:
    """Returns the ranges of rows (N, ...) that are decoded at once."""
    size = MOST_ROWS if x.is_cuda else ROWS
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of values (K, N, S) along the last dimension, and its index, both (K, N).

    Parts of this dimension are first compared elementwise, because ``amin`` is fast there and ``min`` with its index is
    slow.
    """
    parts = values.reshape(*values.shape[:2], math.gcd(values.shape[2], PARTS), -1)
    lowest, place = parts.amin(2).min(2)
    candidates = parts.gather(3, place[..., None, None].expand(*parts.shape[:3], 1))[..., 0]
    return lowest, candidates.argmin(2) * parts.shape[3] + place


def in_order(decoders: Sequence[FoldedDecoder], starts: Starts, grids: Sequence[Tensor]) -> list[Group]:
    """Returns the groups of consecutive decoders, with their decoded starting points (K, S, D)."""
    groups: list[Group] = []
    for decoder, grid in zip(decoders, grids, strict=True):
        groups.append(Group(decoder, groups[-1].classes.stop if groups else 0, starts, grid))
    return groups


@torch.no_grad()
def decoded_starts(decoder: FoldedDecoder, starts: Tensor) -> Tensor:
    """Decodes starting points (S, L) to rows (K, S, D), in place because these rows take most of the memory."""
    pixels = decoder.decode(starts[:1].expand(decoder.classes, -1, -1)).shape[2]
    grid = starts.new_empty(decoder.classes, len(starts), pixels)
    for part in parts_of(starts):
        grid[:, part] = decoder.decode(starts[part].expand(decoder.classes, -1, -1))
    return grid
