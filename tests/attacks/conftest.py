"""Problems that the attacks are measured on."""

import pytest
import torch
from attack_problems import Problem, SmallNet, linear_problem, prototype_problem

from bench.datasets import load_dataset


@pytest.fixture(scope="session")
def linear():
    return linear_problem()


@pytest.fixture(scope="session")
def prototypes():
    return prototype_problem()


@pytest.fixture(scope="session")
def small_net():
    """A net trained for a few seconds on digits, and 40 test images that it classifies correctly."""
    data = load_dataset("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallNet()
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(12):
            for rows in torch.randperm(len(data.train.images)).split(64):
                loss = torch.nn.functional.cross_entropy(net(data.train.images[rows]), data.train.labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    net.eval().requires_grad_(False)
    correct = (net.logits(data.test.images).argmax(1) == data.test.labels).nonzero()[:40, 0]
    pool = (data.train.images[:500], data.train.labels[:500])
    return Problem(net, data.test.images[correct], data.test.labels[correct], 10, pool)


@pytest.fixture(scope="session")
def problems(linear, prototypes, small_net):
    return {"linear": linear, "prototypes": prototypes, "small_net": small_net}
