"""A local plugin file for tests: a classifier that answers every kind of access, fast."""

import torch

from bench import attack, defense
from bench.conformance.checks import ClassMeans


@defense("class_means", datasets=["digits"], batch_size=4, citation="this test")
def class_means(dataset):
    return ClassMeans(dataset)


@attack("crash", norms=["L2", "Linf"], access="decision", budget=10)
def crash(oracle, x, y):
    raise RuntimeError("as it happens")


@attack("die", norms=["L2"], access="decision", budget=10)
def die(oracle, x, y):
    import os

    os._exit(9)


@attack("fails_on_demand", norms=["L2"], access="decision", budget=10)
def fails_on_demand(oracle, x, y):
    """Inverts the images; fails on those of sevens while the environment asks for it."""
    import os

    if "ASSAY_TEST_FAILS" in os.environ and (y == 7).any():
        raise RuntimeError("on demand")
    return 1 - x


@attack("slow_noise", norms=["L2"], access="decision", budget=100, stochastic=True)
def slow_noise(oracle, x, y):
    import time

    time.sleep(0.5)
    last = x
    for scale in (0.1, 0.3, 1.0):
        last = (x + scale * oracle.random.normal(oracle.ids, x.shape[1:])).clamp(0, 1)
        oracle.decision(last, oracle.ids)
    return oracle.closest(last)


@defense("moody", datasets=["digits"])
def moody() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


@defense("quantized", datasets=["digits"], citation="this test")
def quantized(dataset):
    means = ClassMeans(dataset)
    return Quantized(means)


class Quantized(torch.nn.Module):
    """Masks its gradients: three shades of gray are all that it sees."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.logits((2 * x).round() / 2).float()


@attack("closer", norms=["L2"], access="decision", budget=10, refines=True)
def closer(oracle, x, y):
    """Goes from what other attacks found a tenth of the way to the clean image, once."""
    start, found = oracle.starts
    oracle.decision(start, oracle.ids)
    nearer = x + 0.9 * (start - x)
    oracle.decision(nearer, oracle.ids)
    assert found.all()
    return oracle.closest(start)
