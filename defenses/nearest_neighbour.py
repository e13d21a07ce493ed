"""The nearest-neighbour baseline of Schott et al. 2019 (appendix A.7): minus the distance to the nearest image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench import defense
from bench.datasets import Dataset
from bench.norms import Norm, check_norm
from bench.protocols import LowerBound
from bench.randomness import Streams

CITATION = "Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on MNIST"


class NearestNeighbour(nn.Module):
    """Logits are minus the smallest L2 distance per class to the training images.

    Args:
        images: training images (M, C, H, W).
        labels: their classes (M,).
        classes: number of classes K; each needs an image.
    """

    images: Tensor
    counts: Tensor
    bound_norms: tuple[Norm, ...] = ("L2",)

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        super().__init__()
        by_class = labels.argsort(stable=True)
        self.register_buffer("images", images.flatten(1)[by_class])
        self.register_buffer("counts", labels.bincount(minlength=classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W); differentiable, with gradient 0 at distance 0."""
        rows = x.flatten(1)
        distances: Tensor = torch.linalg.vector_norm(rows[:, None] - self.images[self.nearest(rows)], dim=2)
        return -distances

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        output: Tensor = self(x)
        return output

    def lower_bound(self, x: Tensor, y: Tensor, norm: Norm, streams: Streams) -> LowerBound:
        """min_c (d_c - d_y) / 2 (N,), a certificate: distances are 1-Lipschitz in the image."""
        check_norm(norm, self.bound_norms)
        distances = -self(x)
        own = distances.gather(1, y[:, None])
        nearest = distances.scatter(1, y[:, None], torch.inf).amin(1)
        return LowerBound((nearest - own[:, 0]) / 2, certificate=True)

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Indices (N, K) into ``images`` of the nearest one per class to images as rows (N, D).

        Compares ||b||^2 - 2 a.b, whose cancellation can swap images that are equally near but for rounding; `forward`
        computes the distance to the one chosen by subtraction.
        """
        indices, start = [], 0
        for part in torch.split(self.images, self.counts.tolist()):
            energies = torch.addmm(part.square().sum(1), rows, part.T, alpha=-2)
            indices.append(energies.argmin(1) + start)
            start += len(part)
        return torch.stack(indices, 1)


@defense("nearest_neighbour", datasets=["digits", "mnist", "fashion_mnist"], citation=CITATION)
def nearest_neighbour(dataset: Dataset) -> NearestNeighbour:
    """All training images as prototypes."""
    return NearestNeighbour(dataset.train.images, dataset.train.labels, dataset.classes)
