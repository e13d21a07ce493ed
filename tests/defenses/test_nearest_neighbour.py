"""The nearest-neighbour baseline against scipy, at distance 0, and far from the origin."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import bench
from bench.training.checkpoints import clean_accuracy
from defenses.nearest_neighbour import NearestNeighbour, nearest_neighbour

LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 2, 1])


@pytest.fixture
def prototypes():
    return torch.rand(10, 2, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net(prototypes):
    return NearestNeighbour(prototypes, LABELS, 3)


def test_logits_are_minus_scipys_smallest_distance_per_class(net, prototypes):
    x = torch.rand(7, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    distances = cdist(x.flatten(1).double(), prototypes.flatten(1).double())
    expected = -np.stack([distances[:, c == LABELS].min(1) for c in range(3)], 1)
    np.testing.assert_allclose(net(x).numpy(), expected, rtol=1e-6)


def test_rows_do_not_depend_on_each_other(net):
    x = torch.rand(7, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.cat([net(row[None]) for row in x]), net(x), rtol=1e-6, atol=0)


def test_at_a_training_image_its_class_has_logit_zero_and_the_gradient_is_finite(net, prototypes):
    x = prototypes.clone().requires_grad_(True)
    logits = net(x)
    own = logits.gather(1, LABELS[:, None])
    assert torch.equal(own, torch.zeros_like(own))
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert torch.isfinite(gradient).all()


def test_tiny_distances_are_exact_where_the_expanded_square_cancels(net, prototypes):
    nudge = torch.zeros_like(prototypes)
    nudge[:, 0, 1, 1] = 2.0**-14
    x = prototypes + nudge
    own = net(x).gather(1, LABELS[:, None])[:, 0]
    exact = -(x - prototypes).flatten(1).double().norm(dim=1)
    torch.testing.assert_close(own.double(), exact, rtol=1e-6, atol=0)


def test_the_gradient_is_the_unit_vector_towards_the_neighbour(net):
    x = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    for c in range(3):
        (gradient,) = torch.autograd.grad(net(x)[:, c].sum(), x)
        towards = net.images[net.nearest(x.flatten(1))[:, c]] - x.flatten(1)
        torch.testing.assert_close(gradient.flatten(1), towards / towards.norm(dim=1, keepdim=True))


def test_the_state_holds_the_training_images():
    digits = bench.load_dataset("digits")
    assert nearest_neighbour(digits).state_dict()["images"].shape == (len(digits.train), 64)


def test_accuracy_on_digits():
    digits = bench.load_dataset("digits")
    net = bench.load_defense("nearest_neighbour", dataset="digits", device="cpu")
    assert clean_accuracy(net, digits.test, torch.device("cpu")) >= 0.98
    assert clean_accuracy(net, digits.train, torch.device("cpu")) == 1


@pytest.mark.slow
def test_accuracy_on_mnist(data_dir):
    """Published: .969 (the error of 1-nearest-neighbour by L2 on all 60,000 images is 3.09 %)."""
    net = bench.load_defense("nearest_neighbour", dataset="mnist", data_dir=data_dir, device="cpu")
    accuracy = clean_accuracy(net, bench.load_dataset("mnist", data_dir).test, torch.device("cpu"))
    assert accuracy == pytest.approx(0.9691, abs=0.0005)
