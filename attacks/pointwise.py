"""The Pointwise attack (Schott et al. 2019, section 5): undo salt and pepper noise, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.noise import first_hit
from bench.cards import attack
from bench.oracle import Oracle

CITATION = "Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on MNIST"


@attack("pointwise", norms=["L0", "L2"], access="decision", stochastic=True, budget=5000, citation=CITATION)
def pointwise(oracle: Oracle, x: Tensor, y: Tensor, *, rungs: int = 100, bisections: int = 10) -> Tensor:
    """One repetition of Pointwise from salt and pepper noise on ``rungs`` densities; see `undo`."""
    return _pointwise(oracle, x, y, 1, rungs, bisections)


@attack("pointwise_10x", norms=["L0", "L2"], access="decision", stochastic=True, budget=50000, citation=CITATION)
def pointwise_10x(
    oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: int = 10, rungs: int = 100, bisections: int = 10
) -> Tensor:
    """The best of several repetitions of Pointwise, which run side by side."""
    return _pointwise(oracle, x, y, repetitions, rungs, bisections)


def _pointwise(oracle: Oracle, x: Tensor, y: Tensor, repetitions: int, rungs: int, bisections: int) -> Tensor:
    ids = oracle.ids.repeat(repetitions)
    start, density = first_hit(oracle, x[ids], y[ids], ids, torch.ones(len(ids)).to(x), rungs, only_closer=False)
    rows = torch.isfinite(density)
    ids, noisy = ids[rows], start[rows]
    reset = undo(oracle, x[ids], y[ids], noisy, ids, bisections=0)
    if oracle.threat.norm == "L2":
        undo(oracle, x[ids], y[ids], reset, ids, bisections=bisections)
    return oracle.closest(start[: len(x)])


def undo(oracle: Oracle, x: Tensor, y: Tensor, adversarial: Tensor, ids: Tensor, *, bisections: int) -> Tensor:
    """Moves single pixels of ``adversarial`` (R, C, H, W) back towards the clean ``x`` while it stays adversarial.

    In a random order, each changed pixel is reset, or else moved as far as ``bisections`` halvings of the way back
    show to be possible; until no changed pixel can be moved. With ``bisections = 0`` this is the L0 phase.

    The smallest step that the bisection could end with is asked about first: most pixels of a nearly finished image
    cannot take it, and then neither the reset nor the halvings can succeed.
    """
    z = adversarial.clone()
    smallest = 0.5**bisections
    order = oracle.random.permutation(ids, x.shape[2:].numel())
    changed = (z != x).any(1).flatten(1)
    untried = changed.clone()
    position = torch.full((len(ids),), -1, device=ids.device)
    pixel = torch.zeros_like(position)
    # The search on the row's pixel: moved this share of the way back it is adversarial (best), is not (worst).
    best = torch.zeros(len(ids), device=ids.device)
    worst = torch.ones_like(best)
    asked = torch.zeros_like(position)
    rows = torch.arange(len(ids), device=ids.device)
    while True:
        rows = rows[untried[rows].any(1)]
        rows = rows[oracle.affordable(ids[rows])]
        if not len(rows):
            return z
        fresh = rows[asked[rows] == 0]
        position[fresh] = next_in_cycle(untried[fresh].gather(1, order[fresh]), position[fresh])
        pixel[fresh] = order[fresh, position[fresh]]
        share = torch.where(
            asked[rows] == 0, smallest, torch.where(asked[rows] == 1, 1.0, (best[rows] + worst[rows]) / 2)
        )
        moved = move_pixel(z[rows], x[rows], pixel[rows], share)
        hit = oracle.decision(moved, ids[rows]) != y[rows]
        best[rows], worst[rows] = torch.where(hit, share, best[rows]), torch.where(hit, worst[rows], share)
        asked[rows] += 1

        finished = rows[(best[rows] == 1) | (best[rows] == 0) | (asked[rows] == bisections + 2)]
        after = move_pixel(z[finished], x[finished], pixel[finished], best[finished])
        progress = finished[(after != z[finished]).flatten(1).any(1)]
        z[finished] = after
        changed[finished, pixel[finished]] = best[finished] < 1
        untried[finished, pixel[finished]] = False
        untried[progress] = changed[progress]
        best[finished], worst[finished], asked[finished] = 0.0, 1.0, 0


def next_in_cycle(candidates: Tensor, position: Tensor) -> Tensor:
    """Index (N,) of the first True of each row of ``candidates`` (N, P) after ``position`` (N,), wrapping around."""
    size = candidates.shape[1]
    index = torch.arange(size, device=position.device)
    steps = (index - position[:, None] - 1) % size
    return steps.masked_fill(~candidates, size).argmin(1)


def move_pixel(z: Tensor, x: Tensor, pixel: Tensor, share: Tensor) -> Tensor:
    """``z`` (N, C, H, W) with one pixel of each image moved by ``share`` (N,) of its way back to ``x``; 1 is exact."""
    moved = z.clone()
    rows = torch.arange(len(z), device=z.device)
    flat, target = moved.flatten(2), x.flatten(2)
    flat[rows, :, pixel] = torch.lerp(flat[rows, :, pixel], target[rows, :, pixel], share[:, None])
    return moved
