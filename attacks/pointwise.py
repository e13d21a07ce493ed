"""The Pointwise attack (Schott et al. 2019, section 5): undo salt and pepper noise, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.lines import bisect
from attacks.noise import densest, first_hit
from bench.cards import attack
from bench.oracle import Oracle

CITATION = "Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on MNIST"

LINE_BISECTIONS = 6
"""Halvings of the way to the clean image before the pixels move singly, for the L2 norm."""


@attack("pointwise", norms=["L0", "L2"], access="decision", stochastic=True, budget=5000, version=3, citation=CITATION)
def pointwise(oracle: Oracle, x: Tensor, y: Tensor, *, rungs: int = 100, bisections: int = 10) -> Tensor:
    """One repetition of Pointwise from salt and pepper noise on ``rungs`` densities; see `undo`."""
    return _pointwise(oracle, x, y, 1, rungs, bisections)


@attack(
    "pointwise_10x", norms=["L0", "L2"], access="decision", stochastic=True, budget=50000, version=3, citation=CITATION
)
def pointwise_10x(
    oracle: Oracle, x: Tensor, y: Tensor, *, repetitions: int = 10, rungs: int = 100, bisections: int = 10
) -> Tensor:
    """The best of several repetitions of Pointwise, which run side by side."""
    return _pointwise(oracle, x, y, repetitions, rungs, bisections)


def _pointwise(oracle: Oracle, x: Tensor, y: Tensor, repetitions: int, rungs: int, bisections: int) -> Tensor:
    ids = oracle.ids.repeat(repetitions)
    densities = torch.zeros(len(ids)).to(x), torch.ones(len(ids)).to(x)
    start, density = first_hit(oracle, x[ids], y[ids], ids, *densities, rungs)
    rows = torch.isfinite(density)
    ids, noisy = ids[rows], start[rows]
    reset = undo(oracle, x[ids], y[ids], noisy, ids, bisections=0)
    if oracle.threat.norm == "L2":
        # Pixels moved one by one would leave all that can be gained to the first ones.
        reset = bisect(oracle, x[ids], reset, y[ids], ids, LINE_BISECTIONS)
        undo(oracle, x[ids], y[ids], reset, ids, bisections=bisections)
    return oracle.closest(densest(oracle, x))


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
    # Both in the row's random order, but for the changed pixels, which come first: the others are left out.
    changed = (z != x).any(1).flatten(1).gather(1, order)
    columns = changed.byte().argsort(dim=1, descending=True, stable=True)
    columns = columns[:, : max(changed.sum(1).tolist(), default=0)]
    order, changed = order.gather(1, columns), changed.gather(1, columns)
    untried = changed.clone()
    position = torch.full((len(ids),), -1, device=ids.device)
    # The search on the row's pixel: moved this share of the way back it is adversarial (best), is not (worst).
    best = torch.zeros(len(ids), device=ids.device)
    worst = torch.ones_like(best)
    asked = torch.zeros_like(position)
    rows = torch.arange(len(ids), device=ids.device)
    while True:
        rows = rows[untried.any(1)[rows]]
        rows = rows[oracle.affordable(ids[rows])]
        if not len(rows):
            return z
        fresh = rows[asked[rows] == 0]
        position[fresh] = next_in_cycle(untried[fresh], position[fresh])
        pixel = order[rows, position[rows]]
        share = torch.where(
            asked[rows] == 0, smallest, torch.where(asked[rows] == 1, 1.0, (best[rows] + worst[rows]) / 2)
        )
        moved = z[rows]
        set_pixels(moved, pixel, moved_back(z, x, rows, pixel, share))
        hit = oracle.decision(moved, ids[rows]) != y[rows]
        best[rows], worst[rows] = torch.where(hit, share, best[rows]), torch.where(hit, worst[rows], share)
        asked[rows] += 1

        over = (best[rows] == 1) | (best[rows] == 0) | (asked[rows] == bisections + 2)
        finished, pixel = rows[over], pixel[over]
        before, after = z.flatten(2)[finished, :, pixel], moved_back(z, x, finished, pixel, best[finished])
        set_pixels(z, pixel, after, finished)
        progress = finished[(after != before).any(1)]
        changed[finished, position[finished]] = best[finished] < 1
        untried[finished, position[finished]] = False
        untried[progress] = changed[progress]
        best[finished], worst[finished], asked[finished] = 0.0, 1.0, 0


def next_in_cycle(candidates: Tensor, position: Tensor) -> Tensor:
    """Index (N,) of the first True of each row of ``candidates`` (N, P) after ``position`` (N,), wrapping around."""
    later = candidates & (torch.arange(candidates.shape[1], device=position.device) > position[:, None])
    # 2 for the later ones, 1 for those before; ``argmax`` gives the first of equals.
    return (candidates.byte() + later).argmax(1)


def moved_back(z: Tensor, x: Tensor, rows: Tensor, pixel: Tensor, share: Tensor) -> Tensor:
    """One pixel (N, C) of each of the ``rows`` of ``z`` (R, C, H, W), moved by ``share`` (N,) of its way back to ``x``;
    1 is exact."""
    start, target = z.flatten(2)[rows, :, pixel], x.flatten(2)[rows, :, pixel]
    return torch.lerp(start, target, share[:, None])


def set_pixels(z: Tensor, pixel: Tensor, values: Tensor, rows: Tensor | None = None) -> None:
    """Sets one pixel of each of the ``rows`` of ``z`` (R, C, H, W), of all by default, to ``values`` (N, C)."""
    rows = torch.arange(len(z), device=z.device) if rows is None else rows
    z.flatten(2)[rows, :, pixel] = values
