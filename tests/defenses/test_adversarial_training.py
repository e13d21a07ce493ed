"""Adversarial training: its attack stays in the ball, and its nets withstand more than the plain one."""

import pytest
import torch
from torch.nn import functional as F

import bench
from bench.contracts.norms import NORMS
from bench.datasets.dataset import Dataset
from bench.training.checkpoints import clean_accuracy
from defenses.adversarial_training import SETTINGS, adv_l2, adv_linf, perturb
from defenses.eabs.cnn import EncoderCNN

CPU = torch.device("cpu")
DIGITS, MNIST = Dataset("digits", 10, (1, 8, 8)), Dataset("mnist", 10, (1, 28, 28))


def accuracy_under_pgd(defense, norm, epsilon, steps=20):
    test = bench.load_dataset("digits").test
    torch.manual_seed(0)
    adversarial = perturb(defense.logits, test.images, test.labels, norm, epsilon, steps)
    return (defense.logits(adversarial).argmax(1) == test.labels).float().mean().item()


@pytest.mark.parametrize("dataset", [DIGITS, MNIST], ids=lambda dataset: dataset.name)
def test_one_logit_per_class_and_each_row_on_its_own(dataset):
    net = adv_linf(dataset).eval()
    x = torch.rand(5, *dataset.shape, generator=torch.Generator().manual_seed(0))
    assert net.logits(x).shape == (5, 10)
    torch.testing.assert_close(torch.cat([net.logits(x[:2]), net.logits(x[2:])]), net.logits(x), atol=1e-5, rtol=1e-5)


def test_the_nets_are_madrys_made_narrower_and_for_l2_that_of_the_e_abs_paper():
    shapes = [tuple(parameter.shape) for parameter in adv_linf(MNIST).parameters() if parameter.dim() > 1]
    assert shapes == [(32, 1, 5, 5), (64, 32, 5, 5), (128, 3136), (10, 128)]
    assert isinstance(adv_l2(MNIST).net, EncoderCNN)
    assert [SETTINGS["mnist", norm].epsilon for norm in ("Linf", "L2")] == [0.3, 1.5]


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.1), ("L2", 0.5), ("Linf", 0.0)])
def test_training_images_lie_in_the_ball_and_the_box_and_raise_the_loss(norm, epsilon):
    torch.manual_seed(0)
    net, x, y = adv_linf(DIGITS).eval(), torch.rand(16, 1, 8, 8).round(), torch.arange(16) % 10
    adversarial = perturb(net, x, y, norm, epsilon, steps=5)
    assert not adversarial.requires_grad
    assert NORMS[norm].distance(adversarial, x).max() <= epsilon * (1 + 1e-6)
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    if epsilon:
        rise = F.cross_entropy(net(adversarial), y, reduction="none") - F.cross_entropy(net(x), y, reduction="none")
        assert (rise > 0).all()


def test_a_vanishing_gradient_leaves_finite_images():
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    adversarial = perturb(
        lambda images: 0 * images.flatten(1)[:, :10], x, torch.zeros(4, dtype=torch.int64), "L2", 1, 3
    )
    assert torch.isfinite(adversarial).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "epsilon"), [("adv_linf", "Linf", 0.1), ("adv_l2", "L2", 0.5)])
def test_on_digits_it_is_accurate_and_withstands_more_than_the_plain_net(name, norm, epsilon):
    net, plain = (bench.load_defense(defense, dataset="digits", device="cpu") for defense in (name, "cnn"))
    assert clean_accuracy(net, bench.load_dataset("digits").test, CPU) >= 0.97
    assert accuracy_under_pgd(net, norm, epsilon) >= accuracy_under_pgd(plain, norm, epsilon) + 0.1


@pytest.mark.slow
def test_on_mnist_it_is_accurate_and_robust(data_dir):
    """Published: .988 clean; the schedule is far shorter than the authors'."""
    net = bench.load_defense("adv_linf", dataset="mnist", data_dir=data_dir, device="cpu")
    test = bench.load_dataset("mnist").test
    assert clean_accuracy(net, test, CPU) >= 0.97
    x, y = test.images[:500], test.labels[:500]
    torch.manual_seed(0)
    adversarial = perturb(net.logits, x, y, "Linf", 0.3, steps=40)
    assert (net.logits(adversarial).argmax(1) == y).float().mean() >= 0.85
