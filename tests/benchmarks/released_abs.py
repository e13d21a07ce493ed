"""The released ABS in a process of its own, which imports nothing beside what inference needs."""

import re
import time
from pathlib import Path

import torch

from bench.datasets.dataset import load_dataset
from bench.plugins.registry import Registry
from bench.training.loading import load_trained


def classify(data_dir: Path, images: slice, threads: int = 1) -> tuple[float, float, float]:
    """Accuracy of the released ABS's decisions on MNIST test images, seconds from the first one on, and the process's
    peak memory in GB."""
    torch.set_num_threads(threads)
    dataset = load_dataset("mnist", data_dir)
    model = load_trained("abs:schott2019", dataset, Registry(), 0, torch.device("cpu")).defense
    x, y = dataset.test.images[images], dataset.test.labels[images]
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
