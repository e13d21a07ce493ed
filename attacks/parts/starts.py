"""Adversarial examples from which attacks start: other attacks', training images of other classes, and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.gradients import length, per_image
from attacks.parts.lines import bisect
from bench.contracts.oracle import GradientOracle, Oracle

CLASS_BISECTIONS = 5
NOISE_TRIES = 50


def handed_over(oracle: GradientOracle) -> tuple[Tensor, Tensor]:
    """Returns what other attacks found (n, C, H, W), and True (n,) where it is adversarial; else the clean images.

    It is queried, and thus remembered: an attack that starts there never ends farther.
    """
    start, there = (each.clone() for each in oracle.starts)
    found = torch.zeros_like(there)
    if len(ids := oracle.working(oracle.ids[there])):
        found[ids] = oracle.adversarial(start[ids], ids)
    return start, found


def starting_points(oracle: Oracle, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns an adversarial example for each sample (n, C, H, W), and True (n,) where one was found.

    A sample starts from what other attacks found. Without that, the nearest training image of each other class is moved
    towards the clean image by binary search. The sample starts from the result that gets nearest, because the walk
    seldom changes the class. Where no training image is adversarial, the sample starts from uniform noise.
    """
    images, labels = oracle.pool
    start, found = handed_over(oracle)
    without = ~found
    nearest = torch.full((len(x),), torch.inf, device=x.device)
    for label in range(oracle.classes):
        ids = oracle.ids[without & (y != label)]
        ids = oracle.working(ids)
        others = images[labels == label]
        if not len(ids) or not len(others):
            continue
        other = torch.stack([others[length(others - image).argmin()] for image in x[ids]])
        adversarial = oracle.adversarial(other, ids)
        ids, other = ids[adversarial], other[adversarial]
        bisected = bisect(oracle, x[ids], other, ids, CLASS_BISECTIONS)
        distance = length(bisected - x[ids])
        nearer = distance < nearest[ids]
        ids = ids[nearer]
        start[ids], nearest[ids], found[ids] = bisected[nearer], distance[nearer], True
    for _ in range(NOISE_TRIES):
        ids = oracle.ids[~found]
        if not len(ids := oracle.working(ids)):
            break
        start[ids] = oracle.random.uniform(ids, x.shape[1:])
        found[ids] = oracle.adversarial(start[ids], ids)
    return start, found


def noisy_starting_points(oracle: Oracle, x: Tensor, num_scales: int) -> tuple[Tensor, Tensor]:
    """Returns salt and pepper noise (n, C, H, W) on ``x``, and True (n,) where it is adversarial.

    A sample starts from what other attacks found, instead. The density climbs ``num_scales`` even steps up to 1. A
    sample without a hit gets noise on every pixel.
    """
    start, found = handed_over(oracle)
    ids = oracle.ids[~found]
    one = torch.ones(len(ids), device=x.device)
    start[ids], density = first_hit(oracle, x[ids], ids, torch.zeros_like(one), one, num_scales)
    found[ids] = torch.isfinite(density)
    return torch.where(per_image(found), start, densest(oracle, x)), found


def first_hit(
    oracle: Oracle,
    x: Tensor,
    ids: Tensor,
    bottom: Tensor,
    top: Tensor,
    num_scales: int,
    *,
    at_once: int = 1,
    only_closer: bool = False,
) -> tuple[Tensor, Tensor]:
    """Climbs ``num_scales`` densities from ``bottom`` (R,) to ``top`` (R,), with fresh noise at each, until a hit.

    Args:
        oracle: answers the queries.
        x: clean images (R, C, H, W).
        ids: samples (R,) of ``x``; a sample may have several rows, each with a climb of its own.
        bottom: density below the lowest one tried in each row, in [0, 1).
        top: highest density of each row, in (0, 1].
        num_scales: number of densities.
        at_once: number of densities per query.
        only_closer: skips noise at or beyond the sample's closest adversarial example so far.

    Returns:
        The noisy image (R, C, H, W) and the density (R,) of each adversarial row, else the clean image and infinity.
    """
    first, density = x.clone(), torch.full_like(top, torch.inf)
    climbing = torch.arange(len(ids), device=ids.device)
    for steps in torch.split(torch.arange(1, num_scales + 1).to(top), at_once):
        climbing = climbing[~torch.isfinite(density[climbing])]
        if not len(climbing := oracle.working(climbing, ids)):
            break
        rows = climbing.repeat(len(steps))
        now = torch.lerp(bottom[rows], top[rows], steps.repeat_interleave(len(climbing)) / num_scales)
        noisy = salted(x[rows], now, oracle.random.uniform(ids[rows], x.shape[2:]))
        distance = oracle.threat.distance(noisy, x[rows])
        worth = distance > 0
        if only_closer:
            worth &= distance < oracle.closest_distance[ids[rows]]
        if not worth.any():
            continue
        rows, now, noisy = rows[worth], now[worth], noisy[worth]
        hit = oracle.adversarial(noisy, ids[rows])
        density.scatter_reduce_(0, rows[hit], now[hit], "amin")
        lowest = hit & (now == density[rows])
        first[rows[lowest]] = noisy[lowest]
    return first, density


def densest(oracle: Oracle, x: Tensor) -> Tensor:
    """Returns ``x`` (n, C, H, W) with salt and pepper on every pixel, the candidate where no hit was found."""
    return salted(x, torch.ones(len(x), device=x.device), oracle.random.uniform(oracle.ids, x.shape[2:]))


def salted(x: Tensor, density: Tensor, u: Tensor) -> Tensor:
    """Sets the share ``density`` (N,) of the pixels of ``x`` (N, C, H, W) to white or to black, half of them each.

    The uniform draws ``u`` (N, H, W) choose the pixels.
    """
    half = per_image(density / 2)
    u = u[:, None]
    return torch.where(u >= 1 - half, 1.0, torch.where(u < half, 0.0, x))
