"""E-ABS and its ablations against a plain reference: unfolded decoders, torch's Adam and autograd, float64."""

import copy
import dataclasses

import pytest
import torch

from bench.contracts.progress import Silent
from bench.contracts.protocols import HasInnerSteps, HasInputGradient, HasReconstruction, Trainable
from bench.contracts.streams import Streams
from bench.datasets.dataset import Dataset
from bench.datasets.split import Split
from bench.plugins.registry import Registry
from bench.training.loading import make_defense
from bench.training.trainer import Trainer
from defenses.abs.descent import divergence
from defenses.abs.starts import prior_draws
from defenses.eabs import Trained, search_for
from defenses.eabs.cnn import EncoderCNN
from defenses.eabs.inference import prior_distributions
from defenses.eabs.networks import BETA, GAMMA, Autoencoders, cost
from defenses.eabs.settings import SETTINGS, Stage

CPU = torch.device("cpu")
DIGITS, MNIST = Dataset("digits", 10, (1, 8, 8)), Dataset("mnist", 10, (1, 28, 28))
SVHN = Dataset("svhn", 10, (3, 32, 32))
GTSRB = Dataset("gtsrb_top10", 10, (3, 32, 32))
FEW = dataclasses.replace(search_for(SETTINGS[8], from_encoder=False), starts=20, iterations=6, minimizing=0)
FAMILY = ["eabs", "abs:ju2020", "a_abs", "d_abs", "v_abs", "ad_abs", "av_abs", "dv_abs"]
VARIATIONAL = {"eabs", "v_abs", "av_abs", "dv_abs"}


def scrambled(name, dataset):
    """A model whose weights and batch statistics are far from their initial values, so that folding must be right."""
    torch.manual_seed(0)
    model = make_defense(name, dataset, Registry()).defense
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3)
        elif key.endswith("weight"):
            tensor.mul_(3)
    model.search = FEW
    return model


def images(dataset, n=3):
    return torch.rand(n, *dataset.shape, generator=torch.Generator().manual_seed(1))


def streams(n, first=0, seed=0):
    return Streams(seed, range(first, first + n), "test").rows(torch.arange(n))


def reference(model, x, rng=None, *, unrolled=False):
    """Energies (N, K) and reconstructions (N, K, C, H, W) as the paper describes them, in float64; autograd can go
    through them and each of Adam's steps, if ``unrolled``."""
    parts, latent = copy.deepcopy(model.autoencoders).double().eval(), model.setting.architecture.latent
    x64, classes = x.double(), len(parts.decoders)

    def energy(k, p, z):
        value = cost(x64, parts.decoders[k](z))
        if parts.adversarial:
            probability = torch.sigmoid(parts.discriminators[k if len(parts.discriminators) > 1 else 0](z).double())
            return value - BETA * probability.log()
        return value + BETA * (divergence(p) if model.variational else 0.5 * z.square().sum(1))

    if model.variational:
        noise = rng.normal((FEW.iterations, classes, latent)).double()
        parameters, latents = (tensor.double() for tensor in prior_distributions(FEW.starts, latent))
    else:
        parameters = latents = prior_draws(FEW.starts, latent).double()

    def latent_of(p, k, step):
        mean, log_deviation = p.chunk(2, 1) if model.variational else (p, None)
        return mean if log_deviation is None else mean + log_deviation.exp() * noise[:, step, k]

    energies, reconstructions = [], []
    for k in range(classes):
        with torch.no_grad():
            grid = torch.stack(
                [
                    energy(k, p.expand(len(x), -1), z.expand(len(x), -1))
                    for p, z in zip(parameters, latents, strict=True)
                ]
            )
            p = parameters[grid.argmin(0)]
        with torch.set_grad_enabled(unrolled):
            if model.variational:
                mean, log_variance = parts.encoders[k if len(parts.encoders) > 1 else 0](x64)
                proposed = torch.cat([mean, log_variance / 2], 1).double()
                better = energy(k, proposed, latent_of(proposed, k, 0)) < energy(k, p, latent_of(p, k, 0))
                p = torch.where(better[:, None], proposed, p)
        p = p.requires_grad_(True).clone() if unrolled else p.requires_grad_(True)
        p.retain_grad()
        adam = torch.optim.Adam([p], lr=FEW.learning_rate, differentiable=unrolled)
        for step in range(FEW.iterations - 1):
            now = p.clone()  # Adam changes p, and autograd may need what it was.
            (p.grad,) = torch.autograd.grad(energy(k, now, latent_of(now, k, step)).sum(), now, create_graph=unrolled)
            adam.step()
        with torch.set_grad_enabled(unrolled):
            z = latent_of(p, k, -1)
            energies.append(energy(k, p, z))
            reconstructions.append(parts.decoders[k](z))
    return torch.stack(energies, 1), torch.stack(reconstructions, 1)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [*((name, DIGITS) for name in FAMILY), ("eabs", MNIST), ("abs:ju2020", MNIST), ("eabs", SVHN)],
    ids=lambda value: getattr(value, "name", value),
)
def test_energies_and_reconstructions_are_those_of_the_plain_reference(name, dataset):
    model, x = scrambled(name, dataset), images(dataset)
    drawn = {key: [streams(3)] if name in VARIATIONAL else [] for key in ("ours", "plain", "gradient")}
    energies, reconstructions = reference(model, x, *drawn["plain"])
    torch.testing.assert_close(model.logits(x, *drawn["ours"]).double(), -energies / model.pixels, rtol=1e-4, atol=0)
    logits, vector_jacobian = model.input_gradient(x, *drawn["gradient"])
    torch.testing.assert_close(logits.double(), -energies / model.pixels, rtol=1e-4, atol=0)
    cotangent = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    terms = -2 / model.pixels * cotangent[..., None, None, None] * (x[:, None] - reconstructions)
    torch.testing.assert_close(vector_jacobian(cotangent).double(), terms.sum(1).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [*((name, DIGITS) for name in FAMILY), ("eabs", MNIST)],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_unrolled_gradient_is_that_through_every_step_of_the_plain_reference(name, dataset, monkeypatch):
    """And is not the one that holds the latents fixed."""
    monkeypatch.setattr("defenses.abs.search.UNROLLED", 12)
    model, x = scrambled(name, dataset), images(dataset)
    drawn = {key: [streams(3)] if name in VARIATIONAL else [] for key in ("ours", "plain", "fixed")}
    cotangent = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_(True)
    energies, _ = reference(model, leaf, *drawn["plain"], unrolled=True)
    (expected,) = torch.autograd.grad((-energies / model.pixels * cotangent).sum(), leaf)
    logits, vector_jacobian = model.unrolled_gradient(x, *drawn["ours"])
    torch.testing.assert_close(logits.double(), -energies.detach() / model.pixels, rtol=1e-4, atol=0)
    gradient = vector_jacobian(cotangent)
    assert (gradient - expected).norm() < 1e-3 * expected.norm()
    fixed = model.input_gradient(x, *drawn["fixed"])[1](cotangent)
    assert (fixed - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("name", ["eabs", "a_abs", "v_abs"])
def test_rows_do_not_depend_on_each_other(name, monkeypatch):
    model, x = scrambled(name, DIGITS), images(DIGITS, 7)

    def logits(first, last):
        return model.logits(x[first:last], *([streams(last - first, first)] if name in VARIATIONAL else []))

    whole = logits(0, 7)
    torch.testing.assert_close(torch.cat([logits(0, 1), logits(1, 5), logits(5, 7)]), whole, rtol=1e-5, atol=0)
    monkeypatch.setattr("defenses.abs.starts.ROWS", 3)
    torch.testing.assert_close(logits(0, 7), whole, rtol=1e-5, atol=0)


def test_reconstructions_need_no_draws():
    model, x = scrambled("eabs", DIGITS), images(DIGITS)
    exact = scrambled("ad_abs", DIGITS)
    y = torch.tensor([3, 0, 9])
    assert torch.equal(model.reconstruct(x, y), model.reconstruct(x, y))
    assert model.reconstruct(x, y).shape == x.shape
    expected = reference(exact, x)[1][torch.arange(3), y]
    torch.testing.assert_close(exact.reconstruct(x, y).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
def test_few_iterations_decide_from_an_encoder_of_the_discriminative_loss(name):
    search = make_defense(name, MNIST, Registry()).defense.search
    assert search.iterations == (5 if name in {"eabs", "dv_abs"} else 20)
    assert search.longest == 20


@pytest.mark.parametrize("name", ["eabs", "d_abs"])
def test_minima_for_bounds_are_searched_for_longer_than_decisions(name):
    x = images(DIGITS)

    def minima(**iterations):
        model = scrambled(name, DIGITS)
        model.search = dataclasses.replace(FEW, **iterations)
        return model.minima(x)[0]

    assert torch.equal(minima(iterations=6, minimizing=8), minima(iterations=8))
    assert not torch.equal(minima(iterations=6, minimizing=8), minima(iterations=6))


@pytest.mark.parametrize("name", FAMILY)
def test_four_trainings_serve_eight_models(name):
    loaded = make_defense(name, DIGITS, Registry())
    trained = {"v_abs": "abs:ju2020", "ad_abs": "eabs", "av_abs": "a_abs", "dv_abs": "d_abs"}.get(name, name)
    assert loaded.learner.card.name == trained
    assert isinstance(loaded.learner.defense, Trainable)
    assert loaded.defense.autoencoders is loaded.learner.defense.autoencoders
    parts = loaded.defense.autoencoders
    letters = "adv" if name == "eabs" else name[: name.index("abs")]
    assert (parts.adversarial, parts.discriminative) == ("a" in letters, "d" in letters)
    assert loaded.defense.variational == loaded.card.randomized == (name in VARIATIONAL)
    assert isinstance(loaded.defense, HasInputGradient)
    assert isinstance(loaded.defense, HasReconstruction)
    assert isinstance(loaded.defense, HasInnerSteps)
    assert loaded.defense.inner_steps == 10 * SETTINGS[8].iterations


@pytest.mark.parametrize(
    ("dataset", "latent", "features", "sizes"),
    [
        (MNIST, 10, 576, [4, 11, 25, 28, 28]),
        (SVHN, 40, 128, [4, 8, 16, 32, 32]),
        (GTSRB, 16, 128, [4, 8, 16, 32, 32]),
        (DIGITS, 5, 128, [2, 4, 8, 8]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_networks_are_those_of_table_9(dataset, latent, features, sizes):
    """Sizes of the maps as derived in the published architectures."""
    parts = make_defense("eabs", dataset, Registry()).defense.autoencoders
    assert parts.encoders[0].features(torch.zeros(2, *dataset.shape)).shape == (2, features)
    x = parts.decoders[0].linear(torch.zeros(2, latent))[:, :, None, None]
    found = []
    for convolution in parts.decoders[0].convolutions:
        x = convolution(x)
        found.append(x.shape[2])
    assert found == sizes
    assert x.shape == (2, *dataset.shape)


def parts_of(**extensions):
    torch.manual_seed(0)
    parts = Autoencoders(SETTINGS[8].architecture, 3, (1, 8, 8), noise=0.0, **extensions)
    return parts.eval()


def test_the_loss_of_e_abs_is_algorithm_1():
    """With the latents' draws fixed by the seed; softmax over -c, log D from the probability."""
    parts, x, y = parts_of(adversarial=True, discriminative=True), torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 1, 0])
    torch.manual_seed(1)
    loss = parts.loss(x, y)
    torch.manual_seed(1)
    torch.randn_like(x)
    mean, log_variance = parts.encoders[0](x)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    expected = 0.0
    for i in range(4):
        c = torch.stack([(x[i] - decoder(z[i : i + 1])[0]).square().sum() for decoder in parts.decoders])
        d = torch.sigmoid(parts.discriminators[0](z[i : i + 1]))[0]
        expected += c[y[i]] - BETA * d.log() - GAMMA * ((-c[y[i]]).exp() / (-c).exp().sum()).log()
    torch.testing.assert_close(loss, expected / 4)


def test_a_few_rivals_stand_for_all_other_classes():
    """Of three classes one rival is drawn: its exponential counts twice, and each is drawn half of the time."""
    parts, y = parts_of(adversarial=False, discriminative=True), torch.tensor([0, 2])
    drawn, share = parts._with_rivals(torch.zeros(4000, dtype=torch.int64), 1)
    assert drawn[:, 0].all()
    assert (drawn.sum(1) == 2).all()
    assert drawn[:, 1].float().mean() == pytest.approx(share, abs=0.03)
    x = torch.rand(2, 1, 8, 8)
    torch.manual_seed(1)
    loss = parts.loss(x, y, rivals=1)
    torch.manual_seed(1)
    torch.randn_like(x)
    mean, log_variance = parts.encoders[0](x)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    drawn, _ = parts._with_rivals(y, 1)
    expected = (BETA * 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)).sum()
    for i in range(2):
        c = torch.stack([(x[i] - decoder(z[i : i + 1])[0]).square().sum() for decoder in parts.decoders])
        (rival,) = [k for k in range(3) if drawn[i, k] and k != y[i]]
        expected += c[y[i]] + GAMMA * ((-c[y[i]]).exp() + 2 * (-c[rival]).exp()).log() + GAMMA * c[y[i]]
    torch.testing.assert_close(loss, expected / 2)


def test_with_all_rivals_drawn_the_costs_are_those_of_every_class():
    """There are as many rivals as other classes here."""
    parts, y = parts_of(adversarial=False, discriminative=True).eval(), torch.tensor([0, 2, 1, 1])
    x, z = torch.rand(4, 1, 8, 8), torch.randn(4, SETTINGS[8].architecture.latent)
    costs, share = parts._drawn_costs(x, z, y, 2)
    assert share == 1
    torch.testing.assert_close(costs, parts._costs(x, z))


def test_the_discriminator_tells_encoded_latents_from_the_prior():
    parts, x, y = parts_of(adversarial=True, discriminative=True), torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 1, 0])
    torch.manual_seed(1)
    loss = parts.discriminator_loss(x, y)
    torch.manual_seed(1)
    torch.randn_like(x)
    mean, log_variance = parts.encoders[0](x)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    prior = torch.randn_like(z)
    real, fake = torch.sigmoid(parts.discriminators[0](prior)), torch.sigmoid(parts.discriminators[0](z))
    torch.testing.assert_close(loss, -BETA * (real.log() + (1 - fake).log()).mean())
    loss.backward()
    assert all(parameter.grad is None for parameter in parts.encoders.parameters())


def test_the_loss_of_plain_abs_is_the_evidence_bound_of_each_class():
    parts, x = parts_of(adversarial=False, discriminative=False), torch.rand(4, 3, 1, 8, 8)
    torch.manual_seed(1)
    loss = parts.loss(x, torch.arange(4))
    torch.manual_seed(1)
    torch.randn_like(x)
    expected = 0.0
    for c in range(3):
        mean, log_variance = parts.encoders[c](x[:, c])
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
        z = mean + posterior.scale * torch.randn_like(mean)
        kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(torch.zeros(()), torch.ones(())))
        expected += ((x[:, c] - parts.decoders[c](z)).square().flatten(1).sum(1) + BETA * kl.sum(1)).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("adversarial", [True, False])
@pytest.mark.parametrize("discriminative", [True, False])
def test_training_lowers_the_loss_of_its_own_class(adversarial, discriminative, monkeypatch):
    """Two prototypes with noise: after training, each class explains its own better."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 10
    prototypes = torch.rand(10, 1, 8, 8, generator=generator)
    x = (prototypes[y] + 0.05 * torch.randn(200, 1, 8, 8, generator=generator)).clamp(0, 1)
    stages = (Stage(20, 40, rivals=2), Stage(6, 40, learning_rate=5e-4))
    quick = dataclasses.replace(SETTINGS[8], shared=stages, apart=Stage(30, 10))
    monkeypatch.setitem(SETTINGS, 8, quick)
    torch.manual_seed(0)
    model = Trained(DIGITS, adversarial=adversarial, discriminative=discriminative)
    model.search = FEW
    model.fit(Split(x, y), Trainer(CPU, 0, Silent()))
    model.eval().requires_grad_(False)
    assert (model.logits(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize(
    ("device", "discriminative", "expected"),
    [
        ("cpu", True, SETTINGS[8].shared),
        ("cuda", True, SETTINGS[8].shared_on_gpu),
        ("cpu", False, (SETTINGS[8].apart,)),
        ("cuda", False, (SETTINGS[8].apart,)),
    ],
)
def test_training_goes_through_the_stages_of_its_kind_of_device(device, discriminative, expected, monkeypatch):
    """Each has its share of the progress; only a step whose shapes do not depend on what is drawn can be recorded."""
    options, drawn = [], []

    def minimize(self, parameters, loss, data, **given):
        loss(data.images[:4], data.labels[:4], 0.0)
        options.append(given)

    def recorded(self, x, y, *, rivals=None):
        drawn.append(rivals)
        return torch.zeros(())

    monkeypatch.setattr(Trainer, "initialize", lambda self, module: None)
    monkeypatch.setattr(Trainer, "minimize", minimize)
    monkeypatch.setattr(Autoencoders, "loss", recorded)
    model = Trained(DIGITS, adversarial=True, discriminative=discriminative)
    model.fit(Split(images(DIGITS, 20), torch.arange(20) % 10), Trainer(torch.device(device), 0, Silent()))
    taken = [
        Stage(given["epochs"], given["batch_size"], given["learning_rate"], rivals)
        for given, rivals in zip(options, drawn, strict=True)
    ]
    assert tuple(taken) == expected
    assert [given["recordable"] for given in options] == [rivals is None for rivals in drawn]
    assert sum(given["share"] for given in options) == pytest.approx(1)


@pytest.mark.parametrize("size", SETTINGS)
def test_training_with_a_shared_encoder_ends_on_all_classes(size):
    """On a GPU it draws no rivals at all: a loss that draws some cannot be recorded."""
    setting = SETTINGS[size]
    assert setting.shared[-1].rivals is None
    assert all(stage.rivals is None for stage in setting.shared_on_gpu)


def test_the_cnn_normalizes_by_the_statistics_of_images_without_noise(monkeypatch):
    monkeypatch.setitem(SETTINGS, 8, dataclasses.replace(SETTINGS[8], cnn=Stage(1)))
    model, x = EncoderCNN(DIGITS), images(DIGITS, 200)
    model.fit(Split(x, torch.arange(200) % 10), Trainer(CPU, 0, Silent()))
    convolution, normalisation, *_ = model[0]
    seen = convolution(x)
    torch.testing.assert_close(normalisation.running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(normalisation.running_var, seen.var((0, 2, 3)))
