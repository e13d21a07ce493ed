"""What the harness itself costs: the share of a cell's time that is not the net's."""

import time
from collections.abc import Callable

import pytest
import torch
from measuring import finish, make_cell, seconds
from torch.profiler import ProfilerActivity, profile

from bench.api import load_dataset
from bench.engine.cell import Adversary, Target, run_cell
from bench.plugins.registry import Registry
from bench.training.loading import load_trained


@pytest.fixture(scope="module", params=["digits", "mnist"])
def cnn(request, device):
    if request.param == "mnist":
        dataset = load_dataset("mnist", request.getfixturevalue("data_dir"))
    else:
        dataset = load_dataset("digits")
    return dataset, load_trained("cnn", dataset, Registry(), 0, device).defense


class Stopwatch:
    """Adds up the seconds of calls, until their device has done what they asked."""

    def __init__(self, device: torch.device) -> None:
        self.total, self.device = 0.0, device

    def around(self, function: Callable) -> Callable:
        def timed(*arguments, **keywords):
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            finish(self.device)
            self.total += time.perf_counter() - started
            return result

        return timed


@pytest.mark.parametrize(
    ("attack", "norm"), [("boundary", "L2"), ("pointwise", "L0"), ("bim", "Linf"), ("pgd", "L2"), ("deepfool", "L2")]
)
def test_share_of_a_cell_outside_the_passes(benchmark, report, monkeypatch, cnn, device, attack, norm):
    """What of a cell's time is spent neither in the net's forward nor in its backward passes."""
    dataset, defense = cnn
    torch.set_num_threads(1)
    cell = make_cell(attack, norm, budget=400, dataset=dataset.name)
    function = Registry().get("attacks", attack).function
    run_cell(cell, Target(defense), Adversary(function), dataset, device)
    passes = Stopwatch(device)
    monkeypatch.setattr(defense, "logits", passes.around(defense.logits))
    monkeypatch.setattr(torch.autograd, "grad", passes.around(torch.autograd.grad))
    benchmark.pedantic(lambda: run_cell(cell, Target(defense), Adversary(function), dataset, device), rounds=1)
    report(
        f"{attack} {norm} on {dataset.name}'s cnn, batch 64, {device.type}: share of the time outside the net's passes",
        f"{1 - passes.total / benchmark.stats.stats.total:.0%}",
    )


@pytest.mark.parametrize(("attack", "norm"), [("boundary", "L2"), ("pointwise", "L0")])
def test_share_of_a_cell_in_python(report, cnn, device, attack, norm):
    """What of a cell's time is spent in no operation of torch; the profiler's own cost, some per cent, counts here."""
    dataset, defense = cnn
    torch.set_num_threads(1)
    cell = make_cell(attack, norm, budget=400, dataset=dataset.name)
    function = Registry().get("attacks", attack).function
    run_cell(cell, Target(defense), Adversary(function), dataset, device)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        spent = seconds(run_cell, cell, defense, function, dataset, device)
    operations = sum(event.self_cpu_time_total for event in profiled.key_averages()) / 1e6
    report(
        f"{attack} {norm} on {dataset.name}'s cnn, batch 64, {device.type}: share of the time in Python (profiled)",
        f"{1 - operations / spent:.0%}",
    )


@pytest.mark.parametrize("name", ["cnn", "nearest_neighbour", "abs"])
def test_images_per_second(benchmark, report, device, name):
    """A forward pass of 40 digits, on a CPU in one thread."""
    torch.set_num_threads(1)
    dataset = load_dataset("digits")
    defense = load_trained(name, dataset, Registry(), 0, device).defense
    x = dataset.test.images[:40].to(device)

    def classify() -> None:
        defense.logits(x)
        finish(device)

    benchmark(classify)
    report(f"{name} on digits, {device.type}: images per second", f"{len(x) / benchmark.stats.stats.median:.0f}")
