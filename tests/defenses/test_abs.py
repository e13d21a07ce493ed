"""ABS against a plain reference: unfolded decoders, torch's Adam, one class and image set at a time, float64."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import bench
from bench.contracts.devices import exact_float32
from bench.contracts.errors import UserError
from bench.contracts.progress import Silent
from bench.contracts.protocols import HasDecision, HasInnerSteps, HasInputGradient, HasReconstruction, Trainable
from bench.datasets.dataset import Dataset
from bench.training.checkpoints import clean_accuracy
from bench.training.trainer import Trainer
from defenses.abs import (
    SETTINGS,
    AnalysisBySynthesis,
    Trained,
    class_scalars,
)
from defenses.abs.descent import MAX_NORM, clip_norm
from defenses.abs.released import (
    RELEASED_GAMMA,
    RELEASED_WEIGHTS,
    released_analysis_by_synthesis,
    released_binary_analysis_by_synthesis,
)
from defenses.abs.starts import prior_draws
from defenses.abs.vae import Decoder, Encoder, VAEs, kl_weight, side_by_side

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DIGITS, MNIST = Dataset("digits", 10, (1, 8, 8)), Dataset("mnist", 10, (1, 28, 28))


def scrambled(dataset, *, binary=False):
    """A model whose weights and batch statistics are far from their initial values, so that folding must be right."""
    torch.manual_seed(0)
    model = AnalysisBySynthesis(dataset, binary=binary).eval().requires_grad_(False)
    state = model.state_dict()
    for key, tensor in state.items():
        if key.endswith("running_var") or (key.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3)
        elif key.endswith("weight"):
            tensor.mul_(3)
    model.load_state_dict(state)
    return model


def reference(model, x):
    """Energies (N, K) and reconstructions (N, K, C, H, W) as the paper describes them, in float64."""
    search, latent = model.setting.search, model.setting.architecture.latent
    decoder = Decoder(model.setting.architecture, 10).double().eval()
    decoder.load_state_dict(model.decoder.state_dict())
    x = model.seen(x).double()[:, None]

    def energy(z):
        return (x - decoder(z)).square().flatten(2).sum(2) + search.variance * z.square().sum(2)

    starts = prior_draws(search.starts, latent).double()
    best = torch.full((len(x), 10), torch.inf, dtype=torch.float64)
    z = torch.empty(len(x), 10, latent, dtype=torch.float64)
    for start in starts:
        candidate = start.expand(1, 10, latent)
        energies = energy(candidate)
        z[energies < best] = start
        best = torch.minimum(best, energies)
    z.requires_grad_(True)
    adam = torch.optim.Adam([z], lr=search.learning_rate)
    for _ in range(search.iterations - 1):
        adam.zero_grad()
        energy(z).sum().backward()
        adam.step()
        with torch.no_grad():
            z.mul_((MAX_NORM / z.norm(dim=2, keepdim=True)).clamp_max(1))
    with torch.no_grad():
        return energy(z), decoder(z)


@pytest.fixture(params=["digits", "mnist"])
def model(request, monkeypatch):
    """Few starting points, so that the reference is affordable."""
    dataset = {"digits": DIGITS, "mnist": MNIST}[request.param]
    size = dataset.shape[1]
    setting = SETTINGS[size]
    fewer = dataclasses.replace(setting.search, starts=20, iterations=12)
    monkeypatch.setitem(SETTINGS, size, dataclasses.replace(setting, search=fewer))
    return scrambled(dataset)


def images(model, n=5, seed=1):
    size = math.isqrt(model.pixels)
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


# Inference.


def test_logits_are_those_of_the_plain_reference(model):
    x = images(model)
    energies, _ = reference(model, x)
    torch.testing.assert_close(model.logits(x).double(), -energies / model.pixels, rtol=1e-5, atol=0)


def test_reconstructions_are_those_of_the_plain_reference(model):
    x, y = images(model), torch.tensor([3, 0, 9, 3, 5])
    _, reconstructions = reference(model, x)
    expected = reconstructions[torch.arange(5), y]
    torch.testing.assert_close(model.reconstruct(x, y).double(), expected, rtol=0, atol=1e-4)


def test_the_gradient_holds_the_optimal_latents_fixed(model):
    x = images(model)
    _, reconstructions = reference(model, x)
    logits, vector_jacobian = model.input_gradient(x)
    torch.testing.assert_close(logits, model.logits(x), rtol=1e-6, atol=0)
    cotangent = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    terms = -2 / model.pixels * cotangent[..., None, None, None] * (x[:, None] - reconstructions)
    torch.testing.assert_close(vector_jacobian(cotangent).double(), terms.sum(1).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pruning", [(), ((0, 1e9), (4, 40), (8, 10)), ((0, 5), (1, 1))])
def test_decisions_are_those_of_the_logits_with_and_without_pruning(model, pruning):
    """Images near prototypes of several classes, in an order that mixes those finished early and late."""
    z = torch.randn(12, 10, model.setting.architecture.latent, generator=torch.Generator().manual_seed(3))
    prototypes = model.decoder(z)[torch.arange(12), torch.arange(12) % 10]
    x = torch.cat([prototypes, (prototypes + prototypes.roll(1, 0)) / 2])
    model.gaps["plain"] = pruning
    model.gamma.copy_(torch.linspace(0.8, 1.2, 10)[torch.randperm(10, generator=torch.Generator().manual_seed(4))])
    decided = model.decide(x)
    assert len(decided.unique()) > 3
    assert decided.tolist() == model.logits(x).argmax(1).tolist()


def test_a_class_given_up_is_never_decided_for(model):
    """With a gap of nothing, the class of the best starting point is all that is left."""
    model.gaps["plain"] = ((0, 0.0),)
    x = images(model, 8)
    starts_alone = dataclasses.replace(model.setting.search, iterations=1)
    decided = model.decide(x)
    model.setting, model._inference = dataclasses.replace(model.setting, search=starts_alone), None
    assert decided.tolist() == model.logits(x).argmax(1).tolist()


def test_rows_do_not_depend_on_each_other(model):
    x = images(model, n=7)
    parts = torch.cat([model.logits(x[:1]), model.logits(x[1:5]), model.logits(x[5:])])
    torch.testing.assert_close(parts, model.logits(x), rtol=1e-5, atol=0)


def test_more_rows_than_are_decoded_at_once_come_back_in_order(model, monkeypatch):
    x = images(model, n=7)
    whole = model.logits(x)
    monkeypatch.setattr("defenses.abs.starts.ROWS", 3)
    torch.testing.assert_close(model.logits(x), whole, rtol=1e-5, atol=0)


def test_new_weights_take_effect(model):
    x = images(model)
    before = model.logits(x)
    model.load_state_dict({key: tensor * 0.5 for key, tensor in model.state_dict().items()})
    assert not torch.allclose(model.logits(x), before, rtol=0.01)


def test_it_declares_its_capabilities():
    model = AnalysisBySynthesis(MNIST, binary=False)
    assert isinstance(model, HasInputGradient)
    assert isinstance(model, HasDecision)
    assert isinstance(model, HasReconstruction)
    assert isinstance(model, HasInnerSteps)
    assert model.inner_steps == 500
    assert not isinstance(model, Trainable)


def test_prior_draws_are_the_densest_and_always_the_same():
    draws = prior_draws(8000, 8)
    assert draws.shape == (8000, 8)
    assert torch.equal(draws, prior_draws(8000, 8))
    assert draws.norm(dim=1).max() == pytest.approx(3.64, abs=0.05)


def test_the_clip_shortens_long_latents_and_keeps_their_signs():
    z = torch.tensor([[[-6.0, 8.0], [-3.0, 4.0], [0.0, 0.0]]])
    torch.testing.assert_close(clip_norm(z, 5.0), torch.tensor([[[-3.0, 4.0], [-3.0, 4.0], [0.0, 0.0]]]))


# Binary ABS.


def test_binary_abs_sees_the_binarized_image_and_scales_the_energies():
    binary = scrambled(DIGITS, binary=True)
    binary.gamma.copy_(torch.linspace(0.9, 1.1, 10))
    plain = scrambled(DIGITS)
    x = images(binary)
    x[0, 0, 0, :2] = torch.tensor([0.5, 0.49999997])
    bits = (x >= 0.5).float()
    assert bits[0, 0, 0, :2].tolist() == [1, 0]
    torch.testing.assert_close(binary.logits(x), plain.logits(bits) * binary.gamma)
    cotangent = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    straight_through = binary.input_gradient(x)[1](cotangent)
    torch.testing.assert_close(straight_through, plain.input_gradient(bits)[1](cotangent * binary.gamma))


def test_class_scalars_mend_what_a_scalar_can_and_stay_one_where_nothing_is_gained():
    energies = torch.tensor([[10.0, 10.2, 30.0], [9.0, 20.0, 30.0], [20.0, 9.0, 30.0]])
    gamma = class_scalars(energies, torch.tensor([1, 0, 1]))
    assert (gamma * energies).argmin(1).tolist() == [1, 0, 1]
    assert gamma[2] == 1
    assert torch.equal(class_scalars(energies, energies.argmin(1)), torch.ones(3))


# Training.


def test_the_weight_of_the_divergence_falls_from_ten_to_one():
    assert [kl_weight(done) for done in (0, 0.25, 0.5, 0.9)] == [10, 5.5, 1, 1]


def test_each_class_trains_on_its_own_images():
    x, y = torch.arange(5.0).reshape(5, 1, 1, 1), torch.tensor([1, 0, 1, 1, 0])
    assert side_by_side(x, y, 2).flatten(1).tolist() == [[1, 0], [4, 2], [1, 3]]


def autoencoders(dataset):
    channels, size, _ = dataset.shape
    architecture = SETTINGS[size].architecture
    return VAEs(Encoder(architecture, dataset.classes, channels), Decoder(architecture, dataset.classes))


@pytest.mark.parametrize("dataset", [DIGITS, MNIST], ids=lambda dataset: dataset.name)
def test_the_loss_is_minus_the_evidence_lower_bound(dataset):
    """Where the posterior is the prior, the divergence vanishes and the reconstruction error is left."""
    torch.manual_seed(0)
    vaes = autoencoders(dataset).eval()
    with torch.no_grad():
        vaes.encoder.convolutions[-1].weight.zero_()
        vaes.encoder.convolutions[-1].bias.zero_()
    x = torch.rand(3, 10, *dataset.shape)
    torch.manual_seed(1)
    loss = vaes.loss(x, variance=0.5, kl_weight=7)
    torch.manual_seed(1)
    z = torch.randn(3, 10, vaes.encoder(x)[0].shape[2])
    torch.testing.assert_close(loss, (x - vaes.decoder(z)).square().sum() / 3)
    with torch.no_grad():
        vaes.encoder.convolutions[-1].bias.unflatten(0, (10, 2, -1))[:, 0] = 2
    mean, log_variance = vaes.encoder(x)
    assert (mean == 2).all()
    assert (log_variance == 0).all()
    torch.manual_seed(1)
    loss = vaes.loss(x, variance=0.5, kl_weight=7)
    divergences = 10 * mean.shape[2] * 2**2 / 2
    torch.testing.assert_close(loss, (x - vaes.decoder(z + 2)).square().sum() / 3 + 7 * divergences)


def test_the_classes_are_trained_apart():
    """The gradient of one class's images reaches that class's weights only."""
    vaes = autoencoders(DIGITS).train()
    x = torch.rand(4, 10, 1, 8, 8)
    x.requires_grad_(True)
    mean, log_variance = vaes.encoder(x)
    (gradient,) = torch.autograd.grad(vaes.decoder(mean + log_variance)[:, 3].square().sum(), x)
    assert gradient[:, 3].abs().max() > 0
    assert gradient[:, [0, 1, 2, 4, 5, 6, 7, 8, 9]].abs().max() == 0


def test_training_depends_on_the_seed_alone(monkeypatch):
    setting = SETTINGS[8]
    monkeypatch.setitem(SETTINGS, 8, dataclasses.replace(setting, epochs=2))

    def trained(seed):
        model = Trained(DIGITS)
        torch.manual_seed(seed)
        model.fit(bench.load_dataset("digits").train, Trainer(CPU, seed, Silent()))
        return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


@pytest.mark.parametrize(("name", "accuracy"), [("abs", 0.96), ("binary_abs", 0.93)])
def test_accuracy_on_digits(name, accuracy):
    model = bench.load_defense(name, dataset="digits", device="cpu")
    test = bench.load_dataset("digits").test
    assert clean_accuracy(model, test, CPU) >= accuracy


@pytest.mark.parametrize("name", ["abs", "binary_abs"])
def test_pruned_decisions_on_digits_are_those_of_the_logits(name):
    """On clean images, and on both sides of boundaries half-way to other images and to noise."""
    model = bench.load_defense(name, dataset="digits", device="cpu")
    clean = bench.load_dataset("digits").test.images[:200]
    others = torch.cat([clean.roll(1, 0), torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))])

    def classes(x):
        return model.logits(x).argmax(1)

    low, high, y = clean.repeat(2, 1, 1, 1), others, classes(clean).repeat(2)
    for _ in range(9):
        middle = (low + high) / 2
        hit = (classes(middle) != y)[:, None, None, None]
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    points = torch.cat([clean, low, high])
    assert model.calibration
    assert (model.decide(points) == classes(points)).float().mean() >= 0.999


def test_the_confidence_on_clean_digits_has_the_papers_median():
    x = bench.load_dataset("digits").test.images[:300]
    confidence = bench.load_defense("abs", dataset="digits", device="cpu").confidence(x)
    torch.testing.assert_close(confidence.sum(1), torch.ones(300))
    assert confidence.amax(1).median() == pytest.approx(0.9, abs=0.05)


# The authors' weights.


@pytest.fixture
def weights(data_dir, tmp_path):
    """A data folder with a copy of the released weights that a test may damage, and their tensors."""
    path = tmp_path / RELEASED_WEIGHTS
    path.parent.mkdir()
    return Dataset("mnist", 10, (1, 28, 28), tmp_path), path, load_file(data_dir / RELEASED_WEIGHTS)


def test_released_weights_end_up_in_their_class(weights):
    dataset, path, tensors = weights
    save_file(tensors, path)
    model = released_analysis_by_synthesis(dataset)
    third = model.decoder.convolutions[1].weight.chunk(10)[3]
    assert torch.equal(third, tensors["3.Decoder.conv_1.weight"])
    assert torch.equal(model.decoder.normalisations[2].bias.chunk(10)[9], tensors["9.Decoder.bn_2.bias"])
    assert torch.equal(model.gamma, torch.ones(10))
    assert torch.equal(released_binary_analysis_by_synthesis(dataset).gamma, torch.tensor(RELEASED_GAMMA))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("0.Decoder.conv_0.weight"), r"0\.Decoder\.conv_0\.weight is missing"),
        (
            lambda tensors: tensors.update({"4.Decoder.bn_1.bias": torch.zeros(3)}),
            r"4\.Decoder\.bn_1\.bias is of shape \(3,\), expected \(16,\)",
        ),
        (lambda tensors: tensors.update({"extra": torch.zeros(3)}), "extra is of shape .*not expected"),
    ],
    ids=["missing", "wrong shape", "extra"],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(weights, damage, message):
    dataset, path, tensors = weights
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match=message) as error:
        released_analysis_by_synthesis(dataset)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_corrupt_weights_are_refused(tmp_path):
    path = tmp_path / RELEASED_WEIGHTS
    path.parent.mkdir()
    path.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        released_analysis_by_synthesis(Dataset("mnist", 10, (1, 28, 28), tmp_path))


@pytest.mark.parametrize("folder", [None, "empty"])
def test_missing_weights_say_how_to_get_them(tmp_path, folder):
    with pytest.raises(UserError, match="set --data-dir or ASSAY_DATA"):
        released_analysis_by_synthesis(Dataset("mnist", 10, (1, 28, 28), tmp_path if folder else None))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("abs:schott2019", 0.987), ("binary_abs:schott2019", 0.989)])
def test_released_accuracy_on_the_first_1000_mnist_test_images(name, accuracy, data_dir):
    """As measured on the authors' code; published on all test images: .990."""
    test = bench.load_dataset("mnist", data_dir).test
    model = bench.load_defense(name, dataset="mnist", data_dir=data_dir, device="cpu")
    logits = torch.cat([model.logits(x) for x in test.images[:1000].split(50)])
    assert (logits.argmax(1) == test.labels[:1000]).float().mean().item() == pytest.approx(accuracy, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["abs:schott2019", "binary_abs:schott2019"])
def test_released_decisions_are_those_of_the_logits_on_clean_images_and_at_the_boundary(name, data_dir):
    """On 2000 test images, and on 500 points on both sides of the boundary, half of them adversarial."""
    test = bench.load_dataset("mnist", data_dir).test
    model = bench.load_defense(name, dataset="mnist", data_dir=data_dir, device="cpu")

    def differences(x):
        exact = torch.cat([model.logits(part).argmax(1) for part in x.split(100)])
        return exact, (torch.cat([model.decide(part) for part in x.split(100)]) != exact).sum().item()

    x = test.images[:2000]
    classes, differing = differences(x)
    assert differing == 0
    clean, adversarial = x[:500], x[500:].roll(7, 0)[:500]
    different = classes[:500] != classes[500:].roll(7, 0)[:500]
    clean, adversarial, y = clean[different], adversarial[different], classes[:500][different]
    low = clean
    for _ in range(9):
        middle = (low + adversarial) / 2
        hit = torch.cat([model.decide(part) for part in middle.split(100)]) != y
        adversarial = torch.where(hit[:, None, None, None], middle, adversarial)
        low = torch.where(hit[:, None, None, None], low, middle)
    points = torch.cat([adversarial[:250], low[:250]])
    assert differences(points)[1] == 0


def test_the_two_class_cifar_model_is_fitted_to_its_images():
    """Appendix A.1: 32x32x3, latent dimension 20, airplane against automobile."""
    dataset = Dataset("cifar2", 2, (3, 32, 32))
    model = Trained(dataset)
    model.setting = dataclasses.replace(
        model.setting, search=dataclasses.replace(model.setting.search, starts=20, iterations=3)
    )
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, log_variance = autoencoders(dataset).encoder(x[:, None].expand(-1, 2, -1, -1, -1))
    assert mean.shape == log_variance.shape == (2, 2, 20)
    model.eval().requires_grad_(False)
    assert model.logits(x).shape == (2, 2)
    assert model.reconstruct(x, torch.tensor([0, 1])).shape == x.shape


def test_a_gpu_takes_the_epochs_that_it_can_pay():
    setting = SETTINGS[28]
    assert [setting.epochs_on(torch.device(device)) for device in ("cpu", "cuda")] == [60, 500]


@needs_gpu
@pytest.mark.parametrize("dataset", [DIGITS, MNIST], ids=lambda dataset: dataset.name)
def test_on_a_gpu_logits_are_replayed_and_those_of_the_cpu(dataset, monkeypatch):
    """For several numbers of rows, of which some share a recording, and after the weights have changed."""
    exact_float32()
    setting = SETTINGS[dataset.shape[1]]
    cheap = dataclasses.replace(setting.search, starts=40, iterations=5)
    monkeypatch.setitem(SETTINGS, dataset.shape[1], dataclasses.replace(setting, search=cheap))
    x = torch.rand(9, *dataset.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = scrambled(dataset).to("cuda"), scrambled(dataset)
    for _ in range(2):
        expected = theirs.logits(x)
        for rows in (9, 1, 3, 4, 9):
            torch.testing.assert_close(ours.logits(x[:rows].cuda()).cpu(), expected[:rows], rtol=1e-4, atol=1e-5)
            assert torch.equal(ours.decide(x[:rows].cuda()).cpu(), expected[:rows].argmax(1))
        changed = {key: 1.1 * tensor for key, tensor in theirs.state_dict().items()}
        for model in (ours, theirs):
            model.load_state_dict(changed)
