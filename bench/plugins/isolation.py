"""Protects global settings from changes by plugins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_defaults() -> Iterator[None]:
    """Restores torch's default dtype, its default device and its gradient mode after the body."""
    import torch  # late: listing plugins without running any needs no torch

    dtype, device, recorded = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            # A default device, even the CPU, slows down the creation of every tensor.
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(recorded)
