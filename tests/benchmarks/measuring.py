"""What the benchmarks share."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

import bench
from bench.cells import Cell
from bench.registry import Registry


def seconds(function: Callable, *arguments, **keywords) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - started


def make_cell(attack: str, norm: str, budget: int, samples: int = 64) -> Cell:
    """A cell of one chunk on the digits' ``cnn``."""
    card = Registry().get("attacks", attack).attack_card
    return Cell(
        dataset="digits",
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


def classify_half(data_dir: Path, half: int) -> tuple[float, float, float]:
    """Accuracy on every second test image, seconds from the first image on, and the process's peak memory in GB."""
    torch.set_num_threads(1)
    model = bench.load_defense("abs:schott2019", dataset="mnist", data_dir=data_dir)
    test = bench.load_dataset("mnist", data_dir).test
    x, y = test.images[half::2], test.labels[half::2]
    model.decide(x[:1])
    started = time.perf_counter()
    predicted = torch.cat([model.decide(part) for part in x.split(100)])
    spent = time.perf_counter() - started
    return (predicted == y).float().mean().item(), spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
