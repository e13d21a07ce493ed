"""A chunk: samples that are attacked and judged together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.contracts.streams import Streams


@dataclass(frozen=True)
class Chunk:
    """Images with their labels, and the samples of the dataset that they belong to.

    Attributes:
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        samples: n indices in the dataset's test set, or other numbers that tell the images' random streams apart.
        classes: number of classes.
    """

    images: Tensor
    labels: Tensor
    samples: Sequence[int]
    classes: int

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.images.device

    def select(self, rows: Tensor) -> Chunk:
        """Returns the chunk of ``rows`` (R,) int64, which may repeat."""
        samples = [self.samples[row] for row in rows.tolist()]
        return Chunk(self.images[rows], self.labels[rows], samples, self.classes)

    def showing(self, images: Tensor) -> Chunk:
        """Returns the same samples with other images (n, C, H, W)."""
        return replace(self, images=images)

    def copied(self) -> Chunk:
        """Returns a chunk with tensors of its own."""
        return replace(self, images=self.images.clone(), labels=self.labels.clone())

    def streams(self, seed: int, purpose: str) -> Streams:
        """Returns one random stream per sample, for a purpose."""
        return Streams(seed, self.samples, purpose, self.device)
