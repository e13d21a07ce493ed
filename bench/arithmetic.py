"""The float arithmetic that results depend on."""

from __future__ import annotations

import torch

GPU_BATCHES = 16
"""A pass on a GPU, which a card's batch leaves idle, has so many times its rows."""


def exact_float32() -> None:
    """Makes a GPU compute float32 in full, and the same each time: by default torch's convolutions round to the ten
    bits of TF32 and take algorithms whose sums have no fixed order."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def fast_float32() -> None:
    """Lets a GPU round products to TF32 and take the fastest algorithms, for training."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True


def rows_per_pass(batch_size: int, device: torch.device) -> int:
    """Rows of one forward pass of a defense whose card says ``batch_size``."""
    return batch_size * GPU_BATCHES if device.type == "cuda" else batch_size
