"""What the harness itself costs, as ratios within one run: a cell beside the bare forward passes it makes."""

import time

import pytest
import torch
from measuring import make_cell

from bench.api import load_dataset
from bench.engine import run_cell
from bench.loading import load_trained
from bench.registry import Registry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cnn():
    dataset = load_dataset("digits")
    return dataset, load_trained("cnn", dataset, Registry(), 0, CPU).defense


@pytest.mark.parametrize(("attack", "norm"), [("boundary", "L2"), ("pointwise", "L0"), ("bim", "Linf"), ("pgd", "L2")])
def test_a_cell_beside_its_bare_passes(benchmark, report, cnn, attack, norm):
    """Seconds of the cell over seconds of as many forward and backward passes in full batches."""
    dataset, defense = cnn
    cell = make_cell(attack, norm, budget=400)
    function = Registry().get("attacks", attack).function
    result = benchmark.pedantic(lambda: run_cell(cell, defense, function, dataset, CPU), rounds=3, warmup_rounds=1)
    x, y = dataset.test.images[: cell.samples], dataset.test.labels[: cell.samples]
    forwards = int(result.records["forwards"].sum() / cell.samples)
    backwards = int(result.records["backwards"].sum() / cell.samples)
    started = time.perf_counter()
    for number in range(forwards):
        leaf = x.clone().requires_grad_(number < backwards)
        logits = defense.logits(leaf)
        if number < backwards:
            torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), leaf)
    bare = time.perf_counter() - started
    ratio = benchmark.stats.stats.min / bare
    report(f"{attack} {norm} on cnn: cell / its bare passes", f"{ratio:.2f} ({forwards + backwards} passes a sample)")


@pytest.mark.parametrize("name", ["cnn", "nearest_neighbour", "abs"])
def test_images_per_second(benchmark, report, name):
    """A forward pass of 40 digits in one thread."""
    torch.set_num_threads(1)
    dataset = load_dataset("digits")
    defense = load_trained(name, dataset, Registry(), 0, CPU).defense
    x = dataset.test.images[:40]
    benchmark(lambda: defense.logits(x))
    report(f"{name} on digits, one thread: images per second", f"{len(x) / benchmark.stats.stats.median:.0f}")
