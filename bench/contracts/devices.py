"""What differs on a GPU: float arithmetic, the size of a pass, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

GPU_BATCHES = 16
"""On a GPU a pass holds up to 16 times the card's batch size. A pass of one batch would leave the GPU idle."""


def exact_float32() -> None:
    """Makes a GPU compute float32 in full precision and deterministically.

    By default torch's convolutions round to the ten bits of TF32. Their algorithms also sum in no fixed order.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def fast_float32() -> Iterator[None]:
    """Lets a GPU round products to TF32 and use the fastest algorithms. Restores `exact_float32` afterwards."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        exact_float32()


def rows_per_pass(batch_size: int, device: torch.device) -> int:
    """Returns the maximum number of rows in one pass of an attack. ``batch_size`` is that of the defense's card."""
    return batch_size * GPU_BATCHES if device.type == "cuda" else batch_size


@contextmanager
def recording(device: torch.device, others: torch.cuda.CUDAGraph | None = None) -> Iterator[torch.cuda.CUDAGraph]:
    """Records the GPU work of its body as a CUDA graph. The graph shares the memory pool of ``others``."""
    graph = torch.cuda.CUDAGraph()
    pool = None if others is None else others.pool()
    new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
    # By default a graph records the current device.
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=new_stream(device)):
        yield graph
