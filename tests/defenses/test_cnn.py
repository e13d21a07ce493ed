"""The convolutional baselines, plain and binarized."""

import pytest
import torch

import bench
from bench.contracts.progress import Silent
from bench.datasets.dataset import Dataset
from bench.training.checkpoints import clean_accuracy
from bench.training.trainer import Trainer
from defenses.cnn import LAYERS, ConvolutionalNet, binarize, binary_cnn, cnn

CPU = torch.device("cpu")
DIGITS, MNIST = Dataset("digits", 10, (1, 8, 8)), Dataset("mnist", 10, (1, 28, 28))


def images(n, size, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dataset", [DIGITS, MNIST], ids=lambda dataset: dataset.name)
@pytest.mark.parametrize("factory", [cnn, binary_cnn])
def test_one_logit_per_class_and_each_row_on_its_own(factory, dataset):
    net = factory(dataset).eval()
    x = images(6, dataset.shape[1])
    logits = net.logits(x)
    assert logits.shape == (6, 10)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(torch.cat([net.logits(x[:1]), net.logits(x[1:])]), logits, atol=1e-5, rtol=1e-5)


def test_the_mnist_net_is_the_papers():
    assert LAYERS[28] == ((20, 5, 1), (70, 4, 2), (256, 3, 2), (10, 5, 1))
    assert len(cnn(MNIST).normalisations) == 3


def test_elu_on_the_last_layer_bounds_the_logits_below():
    assert cnn(DIGITS).eval().logits(1e4 * (images(50, 8) - 0.5)).min() >= -1


def test_binarize_puts_the_threshold_itself_at_one_and_passes_gradients_unchanged():
    x = torch.tensor([0.0, 0.49999997, 0.5, 1.0], requires_grad=True)
    bits = binarize(x)
    assert bits.tolist() == [0, 0, 1, 1]
    cotangent = torch.tensor([1.0, -2.0, 3.0, 0.5])
    assert torch.equal(torch.autograd.grad(bits, x, cotangent)[0], cotangent)


def test_the_gradient_of_the_binary_net_is_that_of_the_plain_net_at_the_binarized_image():
    binary, x = binary_cnn(DIGITS).eval(), images(4, 8)
    plain = cnn(DIGITS).eval()
    plain.load_state_dict(binary.state_dict())
    bits = (x >= 0.5).float()
    torch.testing.assert_close(binary.logits(x), plain.logits(bits), rtol=0, atol=0)
    gradients = []
    for net, at in ((binary, x), (plain, bits)):
        leaf = at.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(net.logits(leaf)[:, 3].sum(), leaf)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_gradient_of_the_plain_net_is_the_difference_quotient():
    net = cnn(DIGITS).eval().double()
    x = images(2, 8).double().requires_grad_(True)
    assert torch.autograd.gradcheck(net.logits, x)


def test_training_depends_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr("defenses.cnn.EPOCHS", {8: 1})
    train = bench.load_dataset("digits").train

    def trained(seed):
        net = ConvolutionalNet(DIGITS, binary=False)
        torch.manual_seed(seed)
        net.fit(train, Trainer(CPU, seed, Silent()))
        return torch.cat([tensor.flatten() for tensor in net.parameters()])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


@pytest.mark.parametrize(("name", "accuracy"), [("cnn", 0.97), ("binary_cnn", 0.93)])
def test_accuracy_on_digits(name, accuracy):
    """Binarized 8x8 digits have lost much: a support vector machine reaches 0.96 on them."""
    net = bench.load_defense(name, dataset="digits", device="cpu")
    assert clean_accuracy(net, bench.load_dataset("digits").test, CPU) >= accuracy


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("cnn", 0.989), ("binary_cnn", 0.983)])
def test_accuracy_on_mnist(name, accuracy, data_dir):
    """Published: .991 and .985."""
    net = bench.load_defense(name, dataset="mnist", data_dir=data_dir, device="cpu")
    assert clean_accuracy(net, bench.load_dataset("mnist", data_dir).test, CPU) >= accuracy
