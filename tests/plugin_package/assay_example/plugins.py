"""A nearest-class-mean classifier, and an attack that blends images with their negative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench import attack, defense
from bench.datasets.dataset import Dataset
from bench.engine.oracle import DefenseOracle


@defense("example_linear", datasets=["digits"], citation="Fisher 1936, in its simplest form")
def example_linear(dataset: Dataset) -> nn.Module:
    """Minus the squared distance to each class's mean image, less the term that all classes share: linear in x."""
    images, labels = dataset.train.images.flatten(1), dataset.train.labels
    means = torch.stack([images[labels == c].mean(0) for c in range(dataset.classes)])
    layer = nn.Linear(images.shape[1], dataset.classes)
    with torch.no_grad():
        layer.weight.copy_(2 * means)
        layer.bias.copy_(-means.square().sum(1))
    return nn.Sequential(nn.Flatten(), layer)


@attack("example_blend", norms=["L2"], access="decision", budget=40)
def example_blend(
    oracle: DefenseOracle, x: Tensor, y: Tensor, *, steps: int = 20, binary_search_steps: int = 10
) -> Tensor:
    """The first misclassified image on the way from ``x`` to its negative ``1 - x``, refined by bisection."""

    def misclassified(share: Tensor, ids: Tensor) -> Tensor:
        blend = x[ids] + share.reshape(-1, 1, 1, 1) * (1 - 2 * x[ids])
        return oracle.decision(blend, ids) != y[ids]

    right, wrong = torch.zeros(len(x), device=x.device), torch.full((len(x),), torch.inf, device=x.device)
    for step in range(1, steps + 1):
        ids = oracle.ids[torch.isinf(wrong)]
        if len(ids):
            share = torch.full((len(ids),), step / steps, device=x.device)
            hit = misclassified(share, ids)
            wrong[ids[hit]], right[ids[~hit]] = share[hit], share[~hit]
    ids = oracle.ids[torch.isfinite(wrong)]
    for _ in range(binary_search_steps if len(ids) else 0):
        middle = (right[ids] + wrong[ids]) / 2
        hit = misclassified(middle, ids)
        wrong[ids[hit]], right[ids[~hit]] = middle[hit], middle[~hit]
    return oracle.closest(fallback=x)
