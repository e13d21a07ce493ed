"""Sparse-RS (Croce, Andriushchenko, Singh, Flammarion & Hein 2022): random search over sets of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.random_search import Walks
from bench.contracts.cards import attack
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Positive

SCHEDULE = ((0.005, 2), (0.02, 4), (0.05, 5), (0.1, 6), (0.2, 8), (0.4, 10), (0.6, 12), (0.8, 15), (1, 20))
"""Pairs (limit, divisor): up to this share of the steps, the share of swapped pixels is divided by the divisor (the
authors' schedule)."""
TIE = 2.0**-48
"""Breaks ties between float32 draws, which are multiples of 2^-24, in images of up to 2^24 pixels."""


@attack(
    "sparse_rs",
    norms=["L0"],
    access="score",
    stochastic=True,
    budget=5000,
    citation="Croce, Andriushchenko, Singh, Flammarion & Hein 2022, Sparse-RS",
    short={"steps": 60},
    approximation_ratio={"L0": (1, 1.4)},
)
def sparse_rs(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 120,
    share: Positive = 0.3,
    density: Positive = 0.04,
    shrinkage: Positive = 0.3,
) -> Tensor:
    """Runs a random search of up to ``steps`` queries for each number of pixels k. Each sample has its own k.

    k starts at ``density`` times the image's pixels and doubles until the search succeeds. Then k is smaller than the
    closest adversarial example's L0 distance by the share ``shrinkage``. A failure halves the shrinkage, until one
    pixel less fails. A failure is no lower bound of k, because each search starts where the last one ended, with pixels
    reset or added as needed. A success therefore lets the next search try numbers that failed before. ``share`` of the
    k pixels are swapped in the first steps, then fewer.
    """
    size = x.shape[2:].numel()
    walks = Walks(oracle, y, oracle.ids, x)
    k = torch.full((len(x),), max(round(density * size), 1), device=x.device)
    shrink = torch.full((len(x),), shrinkage, dtype=torch.float64, device=x.device)
    step = torch.zeros_like(k)
    active = oracle.ids
    while len(active := oracle.working(active)):
        fresh = active[step[active] == 0]
        u = oracle.random.uniform(fresh, (2 + x.shape[1], *x.shape[2:]))
        walks.begin(fresh, with_pixels(x[fresh], walks.z[fresh], k[fresh], u))
        going = active[step[active] > 0]
        u = oracle.random.uniform(going, (1 + x.shape[1], *x.shape[2:]))
        candidate = walks.z.clone()
        candidate[going] = swapped(x[going], walks.z[going], swaps(k[going], step[going] / steps, share, size), u)
        hit = walks.query(active, candidate[active])
        step[active] += 1
        # A search that has ended does not wait for the others: otherwise most queries would be about few rows.
        ended = active[hit | (step[active] == steps)]
        step[ended] = 0

        closest = oracle.closest_distance[ended].clamp_max(size + 1)
        found, failed = closest <= size, closest > k[ended]
        finished = (failed & (k[ended] >= closest - 1)) | (closest <= 1)
        shrink[ended[found & failed]] /= 2
        smaller = torch.minimum(closest * (1 - shrink[ended]), closest - 1).long().clamp_min(1)
        k[ended] = torch.where(found, smaller, (2 * k[ended]).clamp_max(size))
        step[ended[finished]] = steps
        active = active[step[active] < steps]
    return oracle.closest(walks.z)


def swaps(k: Tensor, progress: Tensor, share: float, size: int) -> Tensor:
    """Returns how many (N,) of ``k`` (N,) changed pixels are swapped after the share ``progress`` (N,) of the steps.

    ``size`` is the number of the image's pixels.
    """
    limits, divisors = torch.tensor(SCHEDULE, dtype=torch.float64, device=k.device).T.contiguous()
    divisor = divisors[torch.bucketize(progress.double(), limits)]
    return torch.minimum((k * share / divisor).long(), size - k).clamp_min(1)


def swapped(x: Tensor, z: Tensor, count: Tensor, u: Tensor) -> Tensor:
    """Returns ``z`` with ``count`` (N,) of its changed pixels reset to ``x`` and equally many others set to corners.

    ``u`` (N, 1 + C, H, W) holds the uniform draws of pixels and values. Where all pixels are changed, the reset pixels
    get new values.
    """
    perturbed = changed(z, x)
    out = chosen(perturbed, u[:, 0], count)
    free = ~perturbed | perturbed.flatten(1).all(1)[:, None, None] & out
    into = chosen(free, u[:, 0], count)
    return torch.where(into[:, None], corners(x, u[:, 1:]), torch.where(out[:, None], x, z))


def with_pixels(x: Tensor, z: Tensor, k: Tensor, u: Tensor) -> Tensor:
    """Returns ``z`` with ``k`` (N,) changed pixels: some are reset, or others are set to corners.

    ``u`` (N, 2 + C, H, W) holds the uniform draws of pixels and values.
    """
    kept = chosen(changed(z, x), u[:, 0], k)
    new = chosen(~kept, u[:, 1], k - kept.flatten(1).sum(1))
    return torch.where(new[:, None], corners(x, u[:, 2:]), torch.where(kept[:, None], z, x))


def corners(x: Tensor, u: Tensor) -> Tensor:
    """Returns values in {0, 1} of the shape of ``x``, from uniform draws ``u``.

    A pixel that would equal the pixel of ``x`` takes the opposite values.
    """
    drawn = (u < 0.5).to(x.dtype)
    return torch.where((drawn == x).all(1, keepdim=True), 1 - drawn, drawn)


def chosen(candidates: Tensor, u: Tensor, count: Tensor) -> Tensor:
    """Marks ``count`` (N,) of the True pixels of ``candidates`` (N, H, W), or all if they are fewer.

    ``u`` (N, H, W) holds the uniform draws.
    """
    keys = u.masked_fill(~candidates, 2.0).flatten(1).double()
    # Distinct keys, because the order of equal draws would depend on the other rows.
    keys += TIE * torch.arange(keys.shape[1], device=u.device)
    most = max(count.tolist(), default=0)
    first = keys.topk(most, dim=1, largest=False).indices
    marked = torch.zeros_like(keys, dtype=torch.bool)
    marked.scatter_(1, first, torch.arange(most, device=u.device) < count[:, None])
    return marked.reshape(u.shape) & candidates


def changed(z: Tensor, x: Tensor) -> Tensor:
    """True (N, H, W) for pixels that differ in any channel."""
    return (z != x).any(1)
