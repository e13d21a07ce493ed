"""Gaps at which hopeless classes are given up, measured on a trained model.

A class that wins in the end may lag behind during the descent. The gap at a step is a multiple of the largest lag of a
winner there, on clean images, noisy ones, noise, and points at the decision boundary, where lags are largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.contracts.streams import Streams
from bench.datasets.split import Split
from defenses.abs.decoders import features
from defenses.abs.descent import Descent, Objectives
from defenses.abs.search import Inference, Pruning
from defenses.abs.starts import parts_of

IMAGES = 200
"""Number of probes of each kind, at most."""
SAFETY = 1.6
"""Factor between the largest lag and the gap."""
CHECKED = (0.0, 0.06, 0.12, 0.16, 0.22, 0.3, 0.42, 0.6, 0.8)
"""Shares of the evaluations after which classes are compared."""
BISECTIONS = 12
NOISE = 0.3
"""Standard deviation of the noise on noisy images."""


def measured_gaps(
    data: Split, seen: Callable[[Tensor], Tensor], inference: Inference, objectives: Objectives, scale: Tensor
) -> Pruning:
    """Returns the gaps of a model.

    Args:
        data: images that the gaps are measured on.
        seen: maps images to what the model sees.
        inference: the model's inference.
        objectives: its objectives, which do not depend on the images.
        scale: factors (K,) of its energies.
    """
    device = scale.device

    def decide(x: Tensor) -> Tensor:
        return (scale * inference.all_classes(seen(x), objectives)[0]).argmin(1)

    x = probes(data.images[: 2 * IMAGES].to(device), decide)
    steps = sorted({int(share * inference.search.iterations) for share in CHECKED})
    lags = torch.cat(
        [_lags(inference, rows, objectives, scale, steps) for rows in (seen(x)[p] for p in parts_of(x))], 1
    )
    return tuple((step, float(f"{SAFETY * lag:.3g}")) for step, lag in zip(steps, lags.amax(1).tolist(), strict=True))


def probes(images: Tensor, decide: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns images (M, C, H, W) of several kinds.

    They are the first half of ``images``, as they are and with noise, uniform noise, and the points where the decision
    changes on the way from the first half to the second and to the noise.
    """
    half = len(images) // 2
    clean, others = images[:half], images[half : 2 * half]
    rng = Streams(0, range(half), "gaps", clean.device).rows(torch.arange(half, device=clean.device))
    noisy = (clean + NOISE * rng.normal(clean.shape[1:])).clamp(0, 1)
    uniform = rng.uniform(clean.shape[1:])
    boundary = [_boundary(clean, end, decide) for end in (others, uniform)]
    return torch.cat([clean, noisy, uniform, *boundary])


def _boundary(start: Tensor, end: Tensor, decide: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns a point on each segment between two images where the decision changes, for segments that have one."""
    own = decide(start)
    changing = decide(end) != own
    start, end, own = start[changing], end[changing], own[changing]
    low, high = start.new_zeros(len(start), 1, 1, 1), start.new_ones(len(start), 1, 1, 1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        kept = (decide(torch.lerp(start, end, middle)) == own).reshape(-1, 1, 1, 1)
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    return torch.lerp(start, end, high)


@torch.no_grad()
def _lags(inference: Inference, seen: Tensor, objectives: Objectives, scale: Tensor, steps: Sequence[int]) -> Tensor:
    """Returns by how much the winners' scaled energies exceed the lowest ones after some steps, (len(steps), N)."""
    x, last = features(seen), inference.search.iterations - 1
    known: dict[int, list[Tensor]] = {step: [] for step in {*steps, last}}
    for group in inference.groups:
        p, energies = group.nearest_starts(x, 1)
        descent = Descent(group.decoder, objectives(group.classes, slice(None)), x, p, inference.search.learning_rate)
        factors = scale[group.classes, None]
        if 0 in known:
            known[0].append(factors * energies)
        for taken in range(last + 1):
            if taken:
                descent.step()
            values = descent.differentiate()
            if taken and taken in known:
                known[taken].append(factors * values())
    traced = {step: torch.cat(values) for step, values in known.items()}
    winners = traced[last].argmin(0)[None]
    return torch.stack([(traced[step].gather(0, winners) - traced[step].amin(0))[0] for step in steps])
