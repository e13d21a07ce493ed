"""What plugins may not leave changed behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_defaults() -> Iterator[None]:
    """Sets torch's default type and device, and whether gradients are recorded, back to what they were before."""
    import torch  # late: who lists plugins without running any needs no torch

    dtype, device, recorded = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            # A default device, even the CPU, slows down every tensor that is made.
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(recorded)
