"""What the benchmarks share."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.cells import Cell
from bench.datasets import load_dataset
from bench.loading import load_trained
from bench.registry import Registry


def seconds(function: Callable, *arguments, **keywords) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - started


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


def classify_half(data_dir: Path, half: int) -> tuple[float, float, float]:
    """Accuracy on every second test image, seconds from the first image on, and the process's peak memory in GB."""
    torch.set_num_threads(1)
    dataset = load_dataset("mnist", data_dir)
    model = load_trained("abs:schott2019", dataset, Registry(), 0, torch.device("cpu")).defense
    x, y = dataset.test.images[half::2], dataset.test.labels[half::2]
    model.decide(x[:1])
    started = time.perf_counter()
    predicted = torch.cat([model.decide(part) for part in x.split(100)])
    spent = time.perf_counter() - started
    return (predicted == y).float().mean().item(), spent, peak_memory()


def peak_memory() -> float:
    """The process's peak resident memory in GB (``getrusage`` would count the parent's before it started this one)."""
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) * 1024 / 1e9
