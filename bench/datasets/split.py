"""A split of a dataset: images and labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

Part = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) float32 in [0, 1] and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    @cached_property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)
