"""What is different on a GPU: float arithmetic, the size of a pass, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

GPU_BATCHES = 16
"""A pass on a GPU, which a card's batch leaves idle, has up to so many times its rows."""


def exact_float32() -> None:
    """Makes a GPU compute float32 in full, and the same each time: by default torch's convolutions round to the ten
    bits of TF32 and take algorithms whose sums have no fixed order."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def fast_float32() -> Iterator[None]:
    """Lets a GPU round products to TF32 and take the fastest algorithms; `exact_float32` afterwards."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        exact_float32()


def rows_per_pass(batch_size: int, device: torch.device) -> int:
    """Rows of one of an attack's passes of a defense whose card says ``batch_size``, at most."""
    return batch_size * GPU_BATCHES if device.type == "cuda" else batch_size


@contextmanager
def recording(device: torch.device, others: torch.cuda.CUDAGraph | None = None) -> Iterator[torch.cuda.CUDAGraph]:
    """Records what is started in its body as a CUDA graph, which has its memory in common with ``others``."""
    graph = torch.cuda.CUDAGraph()
    pool = None if others is None else others.pool()
    new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
    # By default a graph records the current device.
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=new_stream(device)):
        yield graph
