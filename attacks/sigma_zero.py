"""Sigma-zero (Cina, Villani, Pintor, Schonherr, Biggio & Pelillo 2024): gradient descent on a smooth L0 norm.

A pixel of a color image counts once, however many of its channels change. What the paper does to single values is done
here to pixels. The smooth norm uses the pixels' Euclidean lengths. The threshold uses their largest channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.annealing import cosine
from attacks.parts.gradients import per_image, wrong_odds
from bench.contracts.cards import attack
from bench.contracts.oracle import GradientOracle
from bench.contracts.parameters import Count, Positive

SIGMA = 1e-3
FIRST_THRESHOLD = 0.3
THRESHOLD_STEP = 0.01
"""Change of the threshold relative to the step."""
LAST_STEP = 0.1
"""Last step size relative to the first."""
DECAYS = (0.9, 0.999)
"""Decay rates of Adam, for the mean of the gradients and for their mean square."""


@attack(
    "sigma_zero",
    norms=["L0"],
    access="gradient",
    budget=1500,
    citation="Cina, Villani, Pintor, Schonherr, Biggio & Pelillo 2024, Sigma-zero: gradient-based optimization of "
    "L0-norm adversarial examples",
    short={"steps": 40},
    approximation_ratio={"L0": (1.1, 1.5)},
)
def sigma_zero(
    oracle: GradientOracle, x: Tensor, y: Tensor, *, steps: Count = 200, step_size: Positive = 1.0
) -> Tensor:
    """Runs algorithm 1: Adam descends the loss plus the smooth L0 norm, and changes below a threshold are undone.

    The threshold of each sample grows while the sample is adversarial and falls while it is not. The step size starts
    at ``step_size``, as a share of the pixel range, and is annealed by a cosine over ``steps``. Then `reset` undoes the
    changes that the closest adversarial example does not need. A sample with an adversarial example of a single pixel
    is finished.
    """
    z, threshold = x.clone(), torch.full((len(x),), FIRST_THRESHOLD, device=x.device)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    active = oracle.ids
    for k in range(steps):
        active = active[oracle.closest_distance[active] > 1]
        if not len(active := oracle.working(active)):
            break
        gradient, missed = descent_gradient(oracle, x[active], z[active], y[active], active)
        mean[active] = DECAYS[0] * mean[active] + (1 - DECAYS[0]) * gradient
        square[active] = DECAYS[1] * square[active] + (1 - DECAYS[1]) * gradient**2
        direction = mean[active] / (1 - DECAYS[0] ** (k + 1))
        direction = direction / ((square[active] / (1 - DECAYS[1] ** (k + 1))).sqrt() + 1e-8)
        now = step_size * (LAST_STEP + (1 - LAST_STEP) * cosine(k, steps))
        change = torch.where(missed, -THRESHOLD_STEP, THRESHOLD_STEP) * now
        threshold[active] = (threshold[active] + change).clamp(0, 1)
        z[active] = undo_small(x[active], (z[active] - now * direction).clamp(0, 1), threshold[active])
    active = oracle.working(active)
    oracle.adversarial(z[active], active)
    reset(oracle, x)
    return oracle.closest(z)


def descent_gradient(oracle: GradientOracle, x: Tensor, z: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient (N, C, H, W) to descend, and True (N,) for iterates ``z`` that are not adversarial.

    The gradient is that of the loss plus the smooth L0 norm, scaled to a largest component of one. The loss is constant
    at adversarial iterates. The loss is `wrong_odds`, because `wrong_odds` follows all likely wrong classes. The
    paper's margin follows only the likeliest one. Before the sum, the gradient of the loss is also scaled to a largest
    component of one. The balance of the two terms then does not depend on the scale of the logits. Where the gradient
    of the loss vanishes, the descent leads to the far end of each pixel's range.
    """
    uphill, logits = oracle.gradient(z, y, wrong_odds, ids)
    missed = ~oracle.reached(logits, ids)
    gradient = torch.nan_to_num(-uphill)
    vanished = ~gradient.flatten(1).any(1)
    gradient = torch.where(per_image(vanished), 2 * (x > 0.5).to(x) - 1, gradient)
    gradient = to_unit(gradient) * per_image(missed)
    return to_unit(gradient + smooth_l0_gradient(z - x)), missed


def smooth_l0_gradient(delta: Tensor) -> Tensor:
    """Returns the gradient in ``delta`` (N, C, H, W) of the mean over pixels of s / (s + sigma), where s is the pixel's
    squared length (equation 6)."""
    squared = delta.square().sum(1, keepdim=True)
    return 2 * delta * SIGMA / (squared + SIGMA).square() / delta.shape[2:].numel()


def to_unit(gradient: Tensor) -> Tensor:
    """Scales ``gradient`` to a largest component of one in each image; zeros remain."""
    return gradient / per_image(gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny))


def undo_small(x: Tensor, z: Tensor, threshold: Tensor) -> Tensor:
    """Resets pixels of ``z`` (N, C, H, W) that differ from ``x`` by less than ``threshold`` (N,) in every channel."""
    return torch.where((z - x).abs().amax(1, keepdim=True) < per_image(threshold), x, z)


def reset(oracle: GradientOracle, x: Tensor) -> None:
    """Resets pixels of each closest adversarial example, least changed first, as long as it stays adversarial.

    The changed pixels are first moved to the ends of the pixel range. This move costs no L0 distance and may allow more
    resets. The search takes one decision per changed pixel, plus one.
    """
    best = oracle.closest(x)
    ids = oracle.ids[oracle.closest_distance > 1]
    ids = oracle.working(ids)
    ids = ids[oracle.found[ids]]
    size = (best - x).abs().amax(1).flatten(1)
    order, changed = size.masked_fill(size == 0, torch.inf).argsort(1), (size > 0).sum(1)
    extreme = torch.where(best > x, 1.0, torch.where(best < x, 0.0, x))
    hit = ids[oracle.adversarial(extreme[ids], ids)]
    best[hit] = extreme[hit]
    for k in range(x.shape[2:].numel()):
        ids = ids[changed[ids] > k]
        if not len(ids := oracle.working(ids)):
            break
        pixel = order[ids, k]
        fewer = best[ids]
        rows = torch.arange(len(ids), device=x.device)
        fewer.flatten(2)[rows, :, pixel] = x[ids].flatten(2)[rows, :, pixel]
        still = oracle.adversarial(fewer, ids)
        best[ids[still]] = fewer[still]
