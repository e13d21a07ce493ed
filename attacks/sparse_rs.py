"""Sparse-RS (Croce, Andriushchenko, Singh, Flammarion & Hein 2022): random search over sets of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.random_search import random_search
from bench.cards import attack
from bench.oracle import Oracle
from bench.parameters import Count, Positive

SCHEDULE = ((0.005, 2), (0.02, 4), (0.05, 5), (0.1, 6), (0.2, 8), (0.4, 10), (0.6, 12), (0.8, 15), (1, 20))
"""Divisors of the share of swapped pixels, up to these shares of the steps (the authors' schedule)."""


@attack(
    "sparse_rs",
    norms=["L0"],
    access="score",
    stochastic=True,
    budget=20000,
    citation="Croce, Andriushchenko, Singh, Flammarion & Hein 2022, Sparse-RS",
)
def sparse_rs(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 500,
    share: Positive = 0.3,
    density: Positive = 0.04,
    shrinkage: Positive = 0.3,
) -> Tensor:
    """Searches with up to ``steps`` queries for each number of pixels k; k is the sample's own.

    k starts at ``density`` times the image's pixels and is doubled until the search succeeds. Then k is ``shrinkage``
    smaller than the closest adversarial's; a failure halves the shrinkage, until one pixel less fails. Failures are no
    lower bounds of k, since each search starts where the last one ended, with as many pixels as needed reset or added:
    a success lets the next search try numbers that failed before. ``share`` of the k pixels are swapped in the first
    steps, then fewer.
    """
    size = x.shape[2:].numel()
    z = x.clone()
    k = torch.full((len(x),), max(round(density * size), 1), device=x.device)
    shrink = torch.full((len(x),), shrinkage, dtype=torch.float64, device=x.device)
    active = oracle.ids
    while True:
        active = active[oracle.affordable(active)]
        if not len(active):
            return oracle.closest(z)
        u = oracle.random.uniform(active, (2 + x.shape[1], *x.shape[2:]))
        start = with_pixels(x[active], z[active], k[active], u)
        z[active] = search(oracle, x[active], y[active], active, start, steps, share)

        closest = oracle.closest_distance[active].clamp_max(size + 1)
        found, failed = closest <= size, closest > k[active]
        finished = (failed & (k[active] >= closest - 1)) | (closest <= 1)
        shrink[active[found & failed]] /= 2
        smaller = torch.minimum(closest * (1 - shrink[active]), closest - 1).long().clamp_min(1)
        k[active] = torch.where(found, smaller, (2 * k[active]).clamp_max(size))
        active = active[~finished]


def search(oracle: Oracle, x: Tensor, y: Tensor, ids: Tensor, start: Tensor, steps: int, share: float) -> Tensor:
    """Random search from ``start`` (N, C, H, W) by swaps, which keep the number of changed pixels (algorithm 1)."""
    k = changed(start, x).flatten(1).sum(1)

    def propose(step: int, rows: Tensor, z: Tensor) -> Tensor:
        wanted = (k[rows] * share_of_swaps(step / steps, share)).long()
        count = torch.minimum(wanted, x.shape[2:].numel() - k[rows]).clamp_min(1)
        u = oracle.random.uniform(ids[rows], (1 + x.shape[1], *x.shape[2:]))
        return swapped(x[rows], z, count, u)

    return random_search(oracle, y, ids, start, steps, propose)


def share_of_swaps(progress: float, share: float) -> float:
    """Share of the changed pixels that are swapped after this share of the steps."""
    return share / next(divisor for limit, divisor in SCHEDULE if progress <= limit)


def swapped(x: Tensor, z: Tensor, count: Tensor, u: Tensor) -> Tensor:
    """``z`` with ``count`` (N,) of its changed pixels reset to ``x`` and as many others set to corners.

    ``u`` (N, 1 + C, H, W) draws the pixels and values. Where all pixels are changed, the reset ones get new values.
    """
    perturbed = changed(z, x)
    out = chosen(perturbed, u[:, 0], count)
    free = ~perturbed | perturbed.flatten(1).all(1)[:, None, None] & out
    into = chosen(free, u[:, 0], count)
    return torch.where(into[:, None], corners(x, u[:, 1:]), torch.where(out[:, None], x, z))


def with_pixels(x: Tensor, z: Tensor, k: Tensor, u: Tensor) -> Tensor:
    """``z`` with ``k`` (N,) changed pixels: some are reset, or others set to corners; ``u`` (N, 2 + C, H, W) draws."""
    kept = chosen(changed(z, x), u[:, 0], k)
    new = chosen(~kept, u[:, 1], k - kept.flatten(1).sum(1))
    return torch.where(new[:, None], corners(x, u[:, 2:]), torch.where(kept[:, None], z, x))


def corners(x: Tensor, u: Tensor) -> Tensor:
    """Values in {0, 1} drawn by ``u``, shaped as ``x``; pixels that would be as in ``x`` take the opposite ones."""
    drawn = (u < 0.5).to(x.dtype)
    return torch.where((drawn == x).all(1, keepdim=True), 1 - drawn, drawn)


def chosen(candidates: Tensor, u: Tensor, count: Tensor) -> Tensor:
    """``count`` (N,) of the True pixels of ``candidates`` (N, H, W), all if they are fewer; ``u`` (N, H, W) draws."""
    order = u.masked_fill(~candidates, 2.0).flatten(1).argsort(dim=1, stable=True)
    position = torch.arange(order.shape[1], device=u.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, position)
    return (rank < count[:, None]).reshape(u.shape) & candidates


def changed(z: Tensor, x: Tensor) -> Tensor:
    """True (N, H, W) for pixels that differ in any channel."""
    return (z != x).any(1)
