"""Problems that the attacks are measured on."""

import pytest
import torch
from attack_problems import Problem, ReluNet, SmallNet, linear_problem, prototype_problem

from bench.datasets.dataset import load_dataset


@pytest.fixture(scope="session")
def linear():
    return linear_problem()


@pytest.fixture(scope="session")
def prototypes():
    return prototype_problem()


@pytest.fixture(scope="session")
def small_net():
    """A convolutional net, and 40 test images that it classifies correctly."""
    return trained(SmallNet, 40)


@pytest.fixture(scope="session")
def relu_net():
    """A net of 12 hidden units, and 12 test images that it classifies correctly."""
    return trained(ReluNet, 12)


@pytest.fixture(scope="session")
def problems(linear, prototypes, small_net):
    return {"linear": linear, "prototypes": prototypes, "small_net": small_net}


def trained(architecture, samples):
    """A problem of a net trained for a few seconds on digits."""
    data = load_dataset("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = architecture()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(12):
            for rows in torch.randperm(len(data.train.images)).split(64):
                loss = torch.nn.functional.cross_entropy(net(data.train.images[rows]), data.train.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    net.eval().requires_grad_(False)
    correct = (net.logits(data.test.images).argmax(1) == data.test.labels).nonzero()[:samples, 0]
    pool = (data.train.images[:500], data.train.labels[:500])
    return Problem(net, data.test.images[correct], data.test.labels[correct], 10, pool)
