"""A local plugin file for tests of verification: small defenses of every kind that a ledger holds."""

import torch
from torch import nn

from bench import defense
from bench.conformance.checks import ClassMeans
from bench.contracts.protocols import LowerBound


class Explained(ClassMeans):
    """Deterministic; bounds distances, reconstructs, and scores how suspicious images are."""

    bound_norms = ("L2",)

    def lower_bound(self, x, y, norm, streams):
        top = self.logits(x).topk(2).values
        right = self.logits(x).argmax(1) == y
        return LowerBound(torch.where(right, (top[:, 0] - top[:, 1]) / 100, 0.0), certificate=False)

    def detection_score(self, x):
        return x.flatten(1).sum(1)


class Noisy(nn.Module):
    """Randomized: class means of images in noise."""

    def __init__(self, dataset):
        super().__init__()
        self.plain = ClassMeans(dataset)

    def logits(self, x, rng):
        return self.plain.logits((x + 0.2 * rng.normal(x.shape[1:])).clamp(0, 1))

    def reconstruct(self, x, y):
        return self.plain.reconstruct(x, y)


@defense("explained", datasets=["digits"], batch_size=4, citation="this test")
def explained(dataset):
    return Explained(dataset)


@defense("noisy", datasets=["digits"], batch_size=16, randomized=True, citation="this test")
def noisy(dataset):
    return Noisy(dataset)
