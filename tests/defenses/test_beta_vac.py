"""The beta-variational classifier: its loss by hand, its networks' sizes, its detector."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

import bench
from bench.contracts.progress import Silent
from bench.contracts.protocols import HasDetectionScore, HasReconstruction, Trainable
from bench.datasets.dataset import Dataset
from bench.plugins.registry import Registry
from bench.training.checkpoints import clean_accuracy
from bench.training.loading import make_defense
from bench.training.trainer import Trainer
from defenses.beta_vac import BETA, LATENT, SETTINGS, BetaVariationalClassifier, capacity

CPU = torch.device("cpu")
DIGITS, MNIST = Dataset("digits", 10, (1, 8, 8)), Dataset("mnist", 10, (1, 28, 28))
both = pytest.mark.parametrize("dataset", [DIGITS, MNIST], ids=lambda dataset: dataset.name)


def model_of(dataset, **options):
    """A model whose weights and batch statistics are not the initial ones."""
    torch.manual_seed(0)
    model = BetaVariationalClassifier(dataset, **options)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 1.5)
    return model.eval()


def batch(dataset, n=5):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *dataset.shape, generator=generator), torch.arange(n)


@both
@pytest.mark.parametrize("done", [0.0, 0.25, 1.0])
def test_the_loss_is_equation_5_with_a_minus_sign(dataset, done):
    """The densities are torch's; a normal one with variance 1 lacks its constant."""
    model, (x, y) = model_of(dataset), batch(dataset)
    torch.manual_seed(2)
    loss = model.loss(x, y, done)
    torch.manual_seed(2)
    noise = torch.randn(len(x), LATENT)
    objective = 0.0
    for i in range(len(x)):
        mean, log_variance = model.encoder(x[i : i + 1])
        posterior = Normal(mean, (log_variance / 2).exp())
        z = mean + posterior.scale * noise[i]
        divergence = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).sum()
        likelihood = Normal(model.decoder(z)[0], 1.0)
        log_x = (likelihood.log_prob(x[i]) - likelihood.log_prob(likelihood.mean)).sum()
        log_y = Categorical(logits=model.classifier(z)[0]).log_prob(y[i])
        objective += -BETA * abs(divergence - done * SETTINGS[dataset.shape[1]].capacity) + log_x + log_y
    torch.testing.assert_close(loss, -objective / len(x))


def test_the_capacity_rises_linearly_from_zero_to_its_final_value():
    setting = dataclasses.replace(SETTINGS[28], capacity=40.0)
    assert [capacity(setting, done) for done in (0.0, 0.25, 0.5, 1.0)] == [0.0, 10.0, 20.0, 40.0]


def test_latents_are_drawn_from_the_encoded_distribution():
    """Two losses differ by their draws alone."""
    model, (x, y) = model_of(DIGITS), batch(DIGITS)
    torch.manual_seed(0)
    first, second = model.loss(x, y, 0.5), model.loss(x, y, 0.5)
    torch.manual_seed(0)
    assert torch.equal(model.loss(x, y, 0.5), first)
    assert first != second


@both
def test_the_networks_are_those_of_section_5(dataset):
    model, (x, _) = model_of(dataset), batch(dataset)
    mean, log_variance = model.encoder(x)
    assert mean.shape == log_variance.shape == (5, 100)
    linear = [layer for layer in model.classifier if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(64, 100), (64, 64), (10, 64)]
    assert not any(isinstance(part, nn.Linear | nn.MaxPool2d | nn.AvgPool2d) for part in model.encoder.modules())


@both
def test_the_decoder_is_symmetric_to_the_encoder(dataset):
    model, (x, _) = model_of(dataset), batch(dataset)

    def walk(layers, x):
        found = [x.shape]
        for layer in layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                found.append(x.shape)
        return found

    down = walk(model.encoder.layers, x)
    up = walk(model.decoder.layers, torch.zeros(5, 100, 1, 1))
    assert down[-1] == (5, 200, 1, 1)
    assert up[:0:-1] == down[:-1]
    images = model.decoder(10 * torch.randn(5, 100))
    assert images.shape == x.shape
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_mnist_networks_are_affordable():
    """Multiply-adds of encoder and decoder for one image."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        seen = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        total += layer.weight.numel() * seen.shape[2] * seen.shape[3]

    model = model_of(MNIST)
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.register_forward_hook(count)
    model.decoder(model.encoder(torch.zeros(1, 1, 28, 28))[0])
    assert total <= 16e6


@both
def test_logits_are_those_of_the_mean_latent(dataset):
    model, (x, _) = model_of(dataset), batch(dataset)
    logits = model.logits(x)
    assert logits.shape == (5, 10)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model.classifier(model.encoder(x)[0]))
    assert torch.equal(logits, model.logits(x))
    torch.testing.assert_close(torch.cat([model.logits(x[:1]), model.logits(x[1:])]), logits, rtol=1e-4, atol=1e-5)


@both
def test_the_detection_score_is_the_error_of_decoding_the_mean(dataset):
    model, (x, _) = model_of(dataset), batch(dataset)
    mean, _ = model.encoder(x)
    expected = [((x[i] - model.decoder(mean[i : i + 1])[0]) ** 2).sum() / x[i].numel() for i in range(5)]
    torch.testing.assert_close(model.detection_score(x), torch.stack(expected))


@pytest.mark.parametrize("method", ["logits", "detection_score"])
def test_the_gradient_is_the_difference_quotient(method):
    model = model_of(DIGITS).double()
    x = batch(DIGITS, 2)[0].double().requires_grad_(True)
    assert torch.autograd.gradcheck(getattr(model, method), x)


def test_l1_adds_the_absolute_weights_of_the_classifier():
    plain, sparse, (x, y) = model_of(DIGITS), model_of(DIGITS, l1=0.3), batch(DIGITS)
    torch.manual_seed(2)
    without = plain.loss(x, y, 0.5)
    torch.manual_seed(2)
    weights = sum(tensor.abs().sum() for name, tensor in sparse.classifier.named_parameters() if "weight" in name)
    torch.testing.assert_close(sparse.loss(x, y, 0.5), without + 0.3 * weights)


def test_it_is_a_trainable_detector_without_class_conditional_reconstructions():
    loaded = make_defense("beta_vac", MNIST, Registry())
    assert isinstance(loaded.defense, HasDetectionScore)
    assert isinstance(loaded.defense, Trainable)
    assert not isinstance(loaded.defense, HasReconstruction)
    assert not loaded.card.randomized
    assert loaded.defense.l1 == 0


@pytest.fixture(scope="module")
def trained():
    """After a third of the usual epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, 8, dataclasses.replace(SETTINGS[8], epochs=20))
        model = BetaVariationalClassifier(DIGITS)
        torch.manual_seed(0)
        model.fit(bench.load_dataset("digits").train, Trainer(CPU, 0, Silent()))
    return model.eval().requires_grad_(False)


def test_it_learns_to_classify_digits(trained):
    test = bench.load_dataset("digits").test
    assert (trained.logits(test.images).argmax(1) == test.labels).float().mean() > 0.9


def test_it_learns_to_reconstruct_digits(trained):
    """The latent tells images apart: decoded means are nearer to their images than the mean image is, and images that
    are no digits have a larger error."""
    images = bench.load_dataset("digits").test.images
    score = trained.detection_score(images)
    assert score.mean() < 0.7 * (images - images.mean(0)).square().mean()
    noise = Bernoulli(images.mean()).sample(images.shape)
    assert trained.detection_score(noise).median() > score.quantile(0.95)


@pytest.mark.slow
def test_accuracy_on_mnist(data_dir):
    model = bench.load_defense("beta_vac", dataset="mnist", data_dir=data_dir, device="cpu")
    assert clean_accuracy(model, bench.load_dataset("mnist", data_dir).test, CPU) >= 0.98
