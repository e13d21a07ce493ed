"""What the benchmarks share."""

import time
from collections.abc import Callable

import pytest
import torch

from bench.contracts.work import Cell
from bench.plugins.registry import Registry

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def finish(device: torch.device) -> None:
    """Waits until a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable, *arguments, **keywords) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - started


def float32_peak() -> float:
    """Multiplications per second of a large matrix product in one thread."""
    a = torch.rand(2048, 2048)
    return 2048**3 / min(seconds(torch.mm, a, a) for _ in range(5))


def make_cell(attack: str, norm: str, budget: int, samples: int = 64, dataset: str = "digits") -> Cell:
    """A cell of one chunk on a ``cnn``."""
    card = Registry().get("attacks", attack).attack_card
    return Cell(
        dataset=dataset,
        defense="cnn",
        attack=attack,
        function=attack,
        norm=norm,
        epsilon=None,
        access=card.access,
        parameters=card.parameters,
        budget=budget,
        seed=0,
        samples=samples,
        chunk=samples,
        batch_size=samples,
        timeout=None,
        state={},
    )
