"""The Pointwise attack (Schott et al. 2019, section 5): undoes salt and pepper noise, pixel by pixel.

Two steps before the paper's walk over pixels save queries. First, squares of pixels are reset. Second, a single
repetition chooses among a few draws of noise. The reference takes the closest of a thousand draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.parts.lines import bisect
from attacks.parts.starts import densest, first_hit
from bench.contracts.cards import attack
from bench.contracts.norms import check_norm
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Natural

CITATION = "Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on MNIST"

LINE_BISECTIONS = 6
"""Halvings of the segment to the clean image before the pixels move singly, for the L2 norm."""
STARTS = 5
"""Draws of noise for a single repetition. After each size of squares, the closer half is kept until one is left."""
BOTTOM = 0.9
"""Further draws climb from this share of the first draw's density."""
SQUARES = (2, 4, 8)
"""Divisors of the image's side that give the squares to reset before single pixels. Much of the noise lies where a
network hardly looks, and neighboring pixels are reset together."""


@attack(
    "pointwise",
    norms=["L0", "L2"],
    access="decision",
    stochastic=True,
    budget=5000,
    citation=CITATION,
    only={"L2": ["binary_search_steps"]},
    approximation_ratio={"L0": (2, 4), "L2": (2.8, 4)},
)
def pointwise(
    oracle: Oracle, x: Tensor, y: Tensor, *, num_scales: Count = 50, binary_search_steps: Natural = 10
) -> Tensor:
    """Runs one repetition of Pointwise, from the best draw of salt and pepper noise on ``num_scales`` densities.

    See `undo`.
    """
    return _pointwise(oracle, x, 1, STARTS, num_scales, binary_search_steps)


@attack(
    "pointwise_10x",
    norms=["L0", "L2"],
    access="decision",
    stochastic=True,
    budget=50000,
    citation=CITATION,
    only={"L2": ["binary_search_steps"]},
    short={"repetitions": 3},
    approximation_ratio={"L0": (1.2, 2), "L2": (2.3, 3)},
)
def pointwise_10x(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    repetitions: Count = 10,
    num_scales: Count = 50,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs ``repetitions`` of Pointwise side by side, each from one draw of noise, and returns the best results."""
    return _pointwise(oracle, x, repetitions, 1, num_scales, binary_search_steps)


def _pointwise(
    oracle: Oracle, x: Tensor, repetitions: int, starts: int, num_scales: int, binary_search_steps: int
) -> Tensor:
    check_norm(oracle.threat.norm.name, ("L0", "L2"))
    ids = oracle.ids.repeat(repetitions)
    top = torch.ones(len(ids), device=ids.device)
    noisy, density = first_hit(oracle, x[ids], ids, torch.zeros_like(top), top, num_scales)
    found = torch.isfinite(density)
    ids, top, noisy, bottom = ids[found], top[found], noisy[found], BOTTOM * density[found]
    clean = x[ids]
    further = [first_hit(oracle, clean, ids, bottom, top, num_scales)[0] for _ in range(starts - 1)]
    draws = torch.stack([noisy, *further])
    for fraction in SQUARES:
        rows = torch.arange(len(ids), device=ids.device).repeat(len(draws))
        side = math.ceil(max(x.shape[2:]) / fraction)
        reset = undo_squares(oracle, clean[rows], draws.flatten(0, 1), ids[rows], side)
        draws = _closer_half(oracle, clean, reset.reshape(draws.shape))
    z = undo(oracle, clean, draws[0], ids, binary_search_steps=0)
    if oracle.threat.norm.name == "L2":
        # Otherwise the first pixels to move would use up all that can be gained.
        z = bisect(oracle, clean, z, ids, LINE_BISECTIONS)
        undo(oracle, clean, z, ids, binary_search_steps=binary_search_steps)
    return oracle.closest(densest(oracle, x))


def _closer_half(oracle: Oracle, x: Tensor, draws: Tensor) -> Tensor:
    """Returns the closer half of each image's ``draws`` (S, R, C, H, W), closest first.

    A draw that equals the clean image found nothing and counts as farthest.
    """
    distance = torch.stack([oracle.threat.distance(draw, x) for draw in draws])
    kept = distance.masked_fill(distance == 0, torch.inf).argsort(dim=0, stable=True)[: max(1, len(draws) // 2)]
    return draws[kept, torch.arange(len(x), device=x.device)]


def undo_squares(oracle: Oracle, x: Tensor, adversarial: Tensor, ids: Tensor, side: int) -> Tensor:
    """Resets squares of ``adversarial`` (R, C, H, W) to the clean ``x`` where the image stays adversarial.

    One pass, in random order, visits squares of ``side`` pixels on a randomly shifted grid. Only squares with a part of
    the changed pixels are visited. A square with all of the changed pixels would give the clean image.
    """
    z = adversarial.clone()
    if side == 1 or not len(z):
        return z
    shift = (side * oracle.random.uniform(ids, (2,))).long()
    row, column = (
        (torch.arange(size, device=ids.device) + shift[:, axis, None]) // side for axis, size in enumerate(x.shape[2:])
    )
    width = x.shape[3] // side + 2
    square = row[:, :, None] * width + column[:, None, :]
    changed = (z != x).any(1)
    held = torch.zeros(len(z), (x.shape[2] // side + 2) * width, device=ids.device)
    held = held.scatter_add(1, square.flatten(1), changed.flatten(1).to(held))
    partial = (held > 0) & (held < held.sum(1, keepdim=True))
    order, partial = _in_random_order(oracle, partial, ids)
    for chosen, there in zip(order.T, partial.T, strict=True):
        rows = there.nonzero()[:, 0]
        if not len(rows := oracle.working(rows, ids)):
            return z
        inside = (square[rows] == chosen[rows, None, None])[:, None]
        reset = torch.where(inside, x[rows], z[rows])
        hit = oracle.adversarial(reset, ids[rows])
        z[rows[hit]] = reset[hit]
    return z


def _in_random_order(oracle: Oracle, wanted: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the places (R, M) of the True entries of each row of ``wanted`` (R, P), in random order.

    M is the largest number of True entries in a row. Shorter rows are filled up with other places. Also returns True
    (R, M) for places of True entries.
    """
    order = oracle.random.permutation(ids, wanted.shape[1])
    wanted = wanted.gather(1, order)
    first = wanted.byte().argsort(dim=1, descending=True, stable=True)[:, : max(wanted.sum(1).tolist(), default=0)]
    return order.gather(1, first), wanted.gather(1, first)


def undo(oracle: Oracle, x: Tensor, adversarial: Tensor, ids: Tensor, *, binary_search_steps: int) -> Tensor:
    """Moves single pixels of ``adversarial`` (R, C, H, W) back towards the clean ``x``, keeping the image adversarial.

    Each changed pixel, in random order, is reset if possible. Otherwise the pixel moves as far back as
    ``binary_search_steps`` halvings allow. The walk ends when no changed pixel can be moved. With
    ``binary_search_steps = 0`` this is the L0 phase.

    The smallest step that the binary search could end with is queried first. Most pixels of a nearly finished image
    cannot take this step. Then the reset and the halvings cannot succeed either.
    """
    z = adversarial.clone()
    smallest = 0.5**binary_search_steps
    order, changed = _in_random_order(oracle, (z != x).any(1).flatten(1), ids)
    untried = changed.clone()
    position = torch.full((len(ids),), -1, device=ids.device)
    # Shares of the way back of the row's pixel: adversarial at ``best``, not adversarial at ``worst``.
    best = torch.zeros(len(ids), device=ids.device)
    worst = torch.ones_like(best)
    asked = torch.zeros_like(position)
    rows = torch.arange(len(ids), device=ids.device)
    while True:
        rows = rows[untried.any(1)[rows]]
        if not len(rows := oracle.working(rows, ids)):
            return z
        fresh = rows[asked[rows] == 0]
        position[fresh] = next_in_cycle(untried[fresh], position[fresh])
        pixel = order[rows, position[rows]]
        share = torch.where(
            asked[rows] == 0, smallest, torch.where(asked[rows] == 1, 1.0, (best[rows] + worst[rows]) / 2)
        )
        moved = z[rows]
        set_pixels(moved, pixel, moved_back(z, x, rows, pixel, share))
        hit = oracle.adversarial(moved, ids[rows])
        best[rows], worst[rows] = torch.where(hit, share, best[rows]), torch.where(hit, worst[rows], share)
        asked[rows] += 1

        over = (best[rows] == 1) | (best[rows] == 0) | (asked[rows] == binary_search_steps + 2)
        finished, pixel = rows[over], pixel[over]
        before, after = z.flatten(2)[finished, :, pixel], moved_back(z, x, finished, pixel, best[finished])
        set_pixels(z, pixel, after, finished)
        progress = finished[(after != before).any(1)]
        changed[finished, position[finished]] = best[finished] < 1
        untried[finished, position[finished]] = False
        untried[progress] = changed[progress]
        best[finished], worst[finished], asked[finished] = 0.0, 1.0, 0


def next_in_cycle(candidates: Tensor, position: Tensor) -> Tensor:
    """Returns the index (N,) of the first True of ``candidates`` (N, P) after ``position`` (N,), wrapping around."""
    later = candidates & (torch.arange(candidates.shape[1], device=position.device) > position[:, None])
    # 2 for later candidates, 1 for earlier ones: ``argmax`` returns the first of equals.
    return (candidates.byte() + later).argmax(1)


def moved_back(z: Tensor, x: Tensor, rows: Tensor, pixel: Tensor, share: Tensor) -> Tensor:
    """Returns one pixel (N, C) of each of the ``rows`` of ``z`` (R, C, H, W), moved back towards ``x``.

    ``share`` (N,) is the share of the way back, and 1 is exact.
    """
    start, target = z.flatten(2)[rows, :, pixel], x.flatten(2)[rows, :, pixel]
    return torch.lerp(start, target, share[:, None])


def set_pixels(z: Tensor, pixel: Tensor, values: Tensor, rows: Tensor | None = None) -> None:
    """Sets one pixel of each of the ``rows`` of ``z`` (R, C, H, W), by default of all rows, to ``values`` (N, C)."""
    rows = torch.arange(len(z), device=z.device) if rows is None else rows
    z.flatten(2)[rows, :, pixel] = values
