"""The Voting Folded Gaussian Attack (Hajri, Cesaire, Combey, Lamprier & Gallinari 2020): greedy, pixel by pixel.

Written from the paper's description, with these decisions. The attack raises the log-odds of a wrong class instead of
lowering the probability of the true class. The gradient of that probability vanishes where the confidence rounds to
one. The expected effect of a folded Gaussian is taken to first order. A pixel moves at most once. A pixel of a color
image counts once, so all of its channels that raise the loss by rising (or falling) move.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.gradients import wrong_odds
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count


@attack(
    "vfga",
    norms=["L0"],
    access="gradient",
    stochastic=True,
    budget=5000,
    citation="Hajri, Cesaire, Combey, Lamprier & Gallinari 2020, Stochastic sparse adversarial attacks",
    approximation_ratio={"L0": (1.1, 1.5)},
)
def vfga(oracle: GradientOracle, x: Tensor, y: Tensor, *, pixels: Count = 200, draws: Count = 10) -> Tensor:
    """Moves up to ``pixels`` pixels, one by one, until the image is adversarial.

    Each step tries two pixels with ``draws`` random moves each. One pixel is expected to raise the loss most by rising,
    the other by falling. The best candidate of all is kept.
    """
    z, free = x.clone(), torch.ones(len(x), x.shape[2:].numel(), dtype=torch.bool, device=x.device)
    active = oracle.ids
    for _ in range(min(pixels, free.shape[1])):
        if not len(active := oracle.working(active)):
            break
        gradient, _ = oracle.gradient(z[active], y[active], wrong_odds, active)
        rest = oracle.working(torch.arange(len(active), device=x.device), active)
        active, gradient = active[rest], torch.nan_to_num(gradient[rest])
        if not len(active):
            break
        room = torch.stack([1 - z[active], -z[active]], 1)
        moves = expected_moves(gradient, room)
        score = (moves * gradient[:, None]).sum(2).flatten(2).masked_fill(~free[active][:, None], -torch.inf)
        pixel = score.argmax(2)
        tried = folded_gaussian(oracle, z[active], moves, room, pixel, active, draws)
        asked = tried.flatten(1, 2).flatten(0, 1)
        ids = active.repeat_interleave(2 * draws)
        odds = wrong_odds(oracle.scores(asked, ids), y[ids]).reshape(len(active), 2 * draws)
        best = odds.argmax(1)
        rows = torch.arange(len(active), device=x.device)
        z[active] = tried.flatten(1, 2)[rows, best]
        free[active, pixel[rows, best // draws]] = False
        active = active[~oracle.found[active]]
    return oracle.closest(z)


def expected_moves(gradient: Tensor, room: Tensor) -> Tensor:
    """Returns the scales (N, 2, C, H, W) of the moves upwards and downwards.

    A scale is the ``room`` available where the ``gradient`` (N, C, H, W) says that the move raises the loss, else zero.
    """
    return torch.where(room * gradient[:, None] > 0, room, torch.zeros_like(room))


def folded_gaussian(
    oracle: GradientOracle, z: Tensor, moves: Tensor, room: Tensor, pixel: Tensor, ids: Tensor, draws: int
) -> Tensor:
    """Moves ``pixel`` (N, 2) of ``z`` by ``moves`` times the absolute value of Gaussian draws, clipped to ``room``.

    Returns:
        Images (N, 2, draws, C, H, W).
    """
    n, channels = z.shape[:2]
    index = pixel[:, :, None, None].expand(n, 2, channels, 1)
    scale = moves.flatten(3).gather(3, index)[..., 0]
    # If no channel is expected to help, all channels move, so that there is a candidate to try.
    scale = torch.where(scale.any(2, keepdim=True), scale, room.flatten(3).gather(3, index)[..., 0])
    share = oracle.random.normal(ids, (2, draws, 1)).abs().clamp_max(1)
    step = share * scale[:, :, None]
    tried = z[:, None, None].expand(n, 2, draws, *z.shape[1:]).clone()
    flat = tried.flatten(4)
    target = pixel[:, :, None, None, None].expand(n, 2, draws, channels, 1)
    flat.scatter_add_(4, target, step[..., None])
    return tried.clamp(0, 1)
