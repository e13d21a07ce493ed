"""The Square Attack (Andriushchenko, Croce, Flammarion & Hein 2020): random search with squares that fill the ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.parts.epsilon_search import smallest_epsilon
from attacks.parts.gradients import length, per_image
from attacks.parts.random_search import random_search
from bench.contracts.cards import attack
from bench.contracts.norms import Norm, check_norm, of_norm
from bench.contracts.norms.l2 import L2
from bench.contracts.norms.linf import Linf
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Natural, Positive

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the steps after which the squares' area is halved (section 5)."""
TILES = 5
"""Tiles along the shorter edge of the first L2 perturbation."""
SMALLEST_L2_EDGE = 2
"""Smallest edge of L2 squares in pixels. The paper's 3 is too coarse for small images. With 1, the old and the new
pattern would cancel."""
RESCALINGS = 3
"""Rounds that give an L2 perturbation back the length that clipping to [0, 1] took from it."""


@attack(
    "square",
    norms=["L2", "Linf"],
    access="score",
    kinds=["minimal", "bounded"],
    stochastic=True,
    budget=10000,
    citation="Andriushchenko, Croce, Flammarion & Hein 2020, Square Attack",
    only={"minimal": ["epsilon", "binary_search_steps", "search_steps"], "bounded": ["steps"]},
    short={"steps": 1000, "search_steps": 60, "binary_search_steps": 6},
    approximation_ratio={"L2": (1.2, 1.5), "Linf": (1.06, 1.8)},
)
def square(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 5000,
    share: Positive = 0.8,
    search_steps: Count = 200,
    epsilon: Positive = 0.3,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Makes up to ``steps`` queries in a given ball, or ``search_steps`` in each ball of an epsilon search.

    ``share`` is the first squares' share of the image's pixels. The search for the smallest epsilon starts at
    ``epsilon``. Each further ball of a sample starts from the end of the last one, brought to the new radius, to save
    most of the queries.
    """
    norm = oracle.threat.norm
    last = x.clone()

    def run(ids: Tensor, radii: Tensor, queries: int = search_steps) -> Tensor:
        clean, radii = x[ids], radii.to(x.dtype)
        fresh = per_image((last[ids] == clean).flatten(1).all(1))
        first = torch.where(fresh, first_point(oracle, clean, ids, radii), last[ids])

        def propose(step: int, rows: Tensor, z: Tensor) -> Tensor:
            edge = edge_of_squares(step / queries, share, *x.shape[2:])
            u = oracle.random.uniform(ids[rows], (5 + x.shape[1],))
            return of_norm(norm.name, L2=l2_step, Linf=linf_step)(clean[rows], z, radii[rows], edge, u)

        start = to_surface(clean, first, radii, norm)
        last[ids] = random_search(oracle, y[ids], ids, start, queries, propose)
        return last[ids]

    if oracle.threat.epsilon is None:
        return smallest_epsilon(oracle, x, run, start=epsilon, binary_search_steps=binary_search_steps)
    radii = torch.full((len(x),), oracle.threat.epsilon, dtype=torch.float64, device=x.device)
    return oracle.closest(run(oracle.ids, radii, steps))


def edge_of_squares(progress: float, share: float, height: int, width: int) -> int:
    """Returns the edge of the squares, in pixels, after the share ``progress`` of the steps.

    The first squares cover ``share`` of the image.
    """
    halvings = sum(progress > limit for limit in HALVINGS)
    edge = round(math.sqrt(share / 2**halvings * height * width))
    return min(max(edge, 1), height, width)


def to_surface(x: Tensor, z: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """Moves ``z`` from ``x`` to the surface of the ball of ``radius`` (N,), then into the box.

    For Linf, the signs give a corner. For L2, ``z`` moves along the ray, and again after clipping, as far as the box
    allows.
    """
    check_norm(norm.name, ("L2", "Linf"))
    if norm.name == "Linf":
        return norm.project(x + (z - x).sign(), x, radius)
    for _ in range(RESCALINGS + 1):
        offset = z - x
        z = (x + offset * per_image(radius / length(offset).clamp_min(1e-12))).clamp(0, 1)
    return norm.project(z, x, radius)


def first_point(oracle: Oracle, x: Tensor, ids: Tensor, radius: Tensor) -> Tensor:
    """Draws random starts (N, C, H, W) around ``x``: vertical stripes for Linf, tiles of `two_bumps` for L2."""
    norm = oracle.threat.norm.name
    check_norm(norm, ("L2", "Linf"))
    channels, height, width = x.shape[1:]
    if norm == "Linf":
        stripes = signs(oracle.random.uniform(ids, (channels, 1, width)))
        return x + per_image(radius) * stripes
    edge = max(min(height, width) // TILES, 1)
    down, across = height // edge, width // edge
    u = oracle.random.uniform(ids, (channels + 1, down, across))
    pattern = two_bumps(edge).to(x)
    turned = torch.where(u[:, :1, :, :, None, None] < 0.5, pattern.T, pattern)
    tiles = signs(u[:, 1:])[..., None, None] * turned
    tiled = tiles.transpose(3, 4).reshape(len(x), channels, down * edge, across * edge)
    top, left = (height - down * edge) // 2, (width - across * edge) // 2
    z = x.clone()
    z[:, :, top : top + down * edge, left : left + across * edge] += tiled
    return z


def linf_step(x: Tensor, z: Tensor, radius: Tensor, edge: int, u: Tensor) -> Tensor:
    """Moves a square of ``z`` to the ball's upper or lower face, in each channel (algorithm 2).

    ``u`` (N, 5 + C) holds the uniform draws. A square that is already there moves to the opposite faces, because a
    query about ``z`` would be wasted. With one channel, half of the small squares are already there.
    """
    chosen = inside(*squares(u[:, :2], edge, *x.shape[2:]), edge)
    step = per_image(radius) * signs(u[:, 5:])[:, :, None, None]
    moved = torch.where(chosen, Linf().project(x + step, x, radius), z)
    opposite = torch.where(chosen, Linf().project(x - step, x, radius), z)
    unchanged = (moved == z).flatten(1).all(1)
    return torch.where(per_image(unchanged), opposite, moved)


def l2_step(x: Tensor, z: Tensor, radius: Tensor, edge: int, u: Tensor) -> Tensor:
    """Moves the perturbation of one square of ``z`` to another square, with a new pattern (algorithm 3).

    ``u`` (N, 5 + C) holds the uniform draws of the squares, the pattern's orientation and its sign in each channel.
    """
    height, width = x.shape[2:]
    edge = min(max(edge, SMALLEST_L2_EDGE), height, width)
    offset = z - x
    at = squares(u[:, :2], edge, height, width)
    target, source = inside(*at, edge), inside(*squares(u[:, 2:4], edge, height, width), edge)
    old = torch.where(target, offset, 0.0)
    new = signs(u[:, 5:])[:, :, None, None] * placed(two_bumps(edge).to(x), *at, transpose=u[:, 4] < 0.5)
    direction = new + old / channel_length(old).clamp_min(1e-12)
    direction = direction / channel_length(direction).clamp_min(1e-12)
    unused = per_image((radius**2 - length(offset) ** 2).clamp_min(0))
    available = channel_length(torch.where(target | source, offset, 0.0)) ** 2 + unused / x.shape[1]
    offset = torch.where(target, direction * available.sqrt(), torch.where(source, 0.0, offset))
    return to_surface(x, x + offset, radius, L2())


def two_bumps(edge: int) -> Tensor:
    """The pattern eta (s, s) of L2 steps, of length one: a positive bump above a negative one (equation 2)."""
    upper = edge // 2
    pattern = torch.cat([bump(upper, edge), -bump(edge - upper, edge)])
    unit: Tensor = pattern / pattern.norm()
    return unit


def bump(height: int, width: int) -> Tensor:
    """A peak in the middle of a rectangle: the sum of 1 / (i + 1)^2 from the pixel's ring i outwards (equation 2)."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2) ** 2
    from_ring: Tensor = terms.flip(0).cumsum(0).flip(0)
    return from_ring[ring]


def squares(u: Tensor, edge: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Draws the places of squares anywhere in the image, by uniform draws ``u`` (N, 2).

    Returns the offsets of the image's rows (N, H) and columns (N, W) from the squares' upper left corners.
    """
    top, left = (u[:, :1] * (height - edge + 1)).long(), (u[:, 1:] * (width - edge + 1)).long()
    return torch.arange(height, device=u.device) - top, torch.arange(width, device=u.device) - left


def inside(rows: Tensor, columns: Tensor, edge: int) -> Tensor:
    """True (N, 1, H, W) within squares given by `squares`."""
    in_rows, in_columns = (rows >= 0) & (rows < edge), (columns >= 0) & (columns < edge)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def placed(pattern: Tensor, rows: Tensor, columns: Tensor, *, transpose: Tensor) -> Tensor:
    """Returns images (N, 1, H, W) with ``pattern`` (s, s) in the squares given by `squares`, and zero around them.

    The pattern is transposed where ``transpose`` (N,) is True.
    """
    edge = len(pattern)
    i, j = rows.clamp(0, edge - 1)[:, :, None], columns.clamp(0, edge - 1)[:, None, :]
    drawn = torch.where(transpose[:, None, None], pattern[j, i], pattern[i, j])[:, None]
    return torch.where(inside(rows, columns, edge), drawn, 0.0)


def signs(u: Tensor) -> Tensor:
    """Returns -1 or 1 for each uniform draw."""
    return 1 - 2 * (u < 0.5).to(u.dtype)


def channel_length(x: Tensor) -> Tensor:
    """Euclidean length (N, C, 1, 1) of each channel."""
    lengths: Tensor = x.norm(dim=(2, 3), keepdim=True)
    return lengths
