"""The nearest-neighbor baseline of Schott et al. 2019 (appendix A.7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench import defense
from bench.contracts.norms import NormName, check_norm
from bench.contracts.protocols import LowerBound
from bench.contracts.streams import Streams
from bench.datasets.dataset import Dataset

CITATION = "Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on MNIST"


class NearestNeighbour(nn.Module):
    """A classifier whose logits are minus the smallest L2 distance to the training images of each class.

    Args:
        images: training images (M, C, H, W).
        labels: their classes (M,).
        classes: number K of classes. Each class needs at least one image.
    """

    images: Tensor
    counts: Tensor
    bound_norms: tuple[NormName, ...] = ("L2",)

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        super().__init__()
        by_class = labels.argsort(stable=True)
        self.register_buffer("images", images.flatten(1)[by_class])
        self.register_buffer("counts", labels.bincount(minlength=classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W). Autograd differentiates them, with gradient 0 at distance 0."""
        rows = x.flatten(1)
        distances: Tensor = torch.linalg.vector_norm(rows[:, None] - self.images[self.nearest(rows)], dim=2)
        return -distances

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        output: Tensor = self(x)
        return output

    def lower_bound(self, x: Tensor, y: Tensor, norm: NormName, streams: Streams) -> LowerBound:
        """Certified L2 radii min_c (d_c - d_y) / 2, (N,). The distances d_c are 1-Lipschitz in the image."""
        check_norm(norm, self.bound_norms)
        distances = -self(x)
        own = distances.gather(1, y[:, None])
        nearest = distances.scatter(1, y[:, None], torch.inf).amin(1)
        return LowerBound((nearest - own[:, 0]) / 2, certificate=True)

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Indices (N, K) into ``images`` of the nearest training image of each class, for images as rows (N, D).

        Compares ||b||^2 - 2 a.b. Cancellation can swap images whose distances agree up to rounding. Therefore `forward`
        recomputes the distance to the chosen image by subtraction.
        """
        indices, start = [], 0
        for part in torch.split(self.images, self.counts.tolist()):
            energies = torch.addmm(part.square().sum(1), rows, part.T, alpha=-2)
            indices.append(energies.argmin(1) + start)
            start += len(part)
        return torch.stack(indices, 1)


@defense("nearest_neighbour", datasets=["digits", "mnist", "fashion_mnist"], citation=CITATION)
def nearest_neighbour(dataset: Dataset) -> NearestNeighbour:
    """The nearest-neighbor classifier with all training images as prototypes."""
    return NearestNeighbour(dataset.train.images, dataset.train.labels, dataset.classes)
