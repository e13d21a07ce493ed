"""The Voting Folded Gaussian Attack (Hajri, Cesaire, Combey, Lamprier & Gallinari 2020): greedy, pixel by pixel.

Written from the paper's description, with these decisions. The function that is raised is the log-odds of a wrong class
instead of lowering the probability of the true one, which vanishes where the confidence rounds to one. The expected
effect of a folded Gaussian is taken to first order. A pixel that was moved is not moved again. A pixel of a colour
image counts once, so that all of its channels move that rise (or fall) to any effect.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.gradients import GradientOracle, wrong_odds
from bench.cards import attack
from bench.parameters import Count


@attack(
    "vfga",
    norms=["L0"],
    access="gradient",
    stochastic=True,
    budget=5000,
    citation="Hajri, Cesaire, Combey, Lamprier & Gallinari 2020, Stochastic sparse adversarial attacks",
)
def vfga(oracle: GradientOracle, x: Tensor, y: Tensor, *, pixels: Count = 200, draws: Count = 10) -> Tensor:
    """Moves up to ``pixels`` pixels, one by one, until the image is adversarial.

    Each time, two pixels are tried with ``draws`` random moves each: the one that is expected to raise the loss most by
    rising, and the one by falling. The best image of all is kept.
    """
    z, free = x.clone(), torch.ones(len(x), x.shape[2:].numel(), dtype=torch.bool, device=x.device)
    active = oracle.ids
    for _ in range(min(pixels, free.shape[1])):
        active = active[oracle.affordable(active)]
        if not len(active):
            break
        gradient, _ = oracle.gradient(z[active], y[active], wrong_odds, active)
        rest = oracle.affordable(active)
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
    """Scales (N, 2, C, H, W) of the moves upwards and downwards: the ``room`` there is, where the ``gradient``
    (N, C, H, W) says that the move raises the loss, else zero."""
    return torch.where(room * gradient[:, None] > 0, room, torch.zeros_like(room))


def folded_gaussian(
    oracle: GradientOracle, z: Tensor, moves: Tensor, room: Tensor, pixel: Tensor, ids: Tensor, draws: int
) -> Tensor:
    """``z`` with ``pixel`` (N, 2) moved by ``moves`` times the absolute value of Gaussian draws, clipped to ``room``.

    Returns:
        Images (N, 2, draws, C, H, W).
    """
    n, channels = z.shape[:2]
    index = pixel[:, :, None, None].expand(n, 2, channels, 1)
    scale = moves.flatten(3).gather(3, index)[..., 0]
    # Where no channel is expected to help all of them move, so that there is something to try.
    scale = torch.where(scale.any(2, keepdim=True), scale, room.flatten(3).gather(3, index)[..., 0])
    share = oracle.random.normal(ids, (2, draws, 1)).abs().clamp_max(1)
    step = share * scale[:, :, None]
    tried = z[:, None, None].expand(n, 2, draws, *z.shape[1:]).clone()
    flat = tried.flatten(4)
    target = pixel[:, :, None, None, None].expand(n, 2, draws, channels, 1)
    flat.scatter_add_(4, target, step[..., None])
    return tried.clamp(0, 1)
