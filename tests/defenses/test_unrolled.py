"""Derivatives through the optimization that a defense does at inference, against differences of what it answers."""

import pytest
import torch

from bench.conformance.checks import check_defense
from bench.contracts.protocols import HasInnerSteps, HasUnrolledGradient
from bench.datasets.dataset import Dataset, load_dataset
from bench.plugins.registry import Registry
from bench.training.loading import load_trained, make_defense
from defenses.abs import AnalysisBySynthesis, folded_layers
from defenses.abs.decoders import ELU, Dense, Transposed
from defenses.abs.descent import AtPoint, NormalPrior
from defenses.abs.search import Inference, Search
from defenses.abs.starts import Starts, prior_draws

CPU = torch.device("cpu")
DIGITS, MNIST = Dataset("digits", 10, (1, 8, 8)), Dataset("mnist", 10, (1, 28, 28))
DEFENSES = [name for name in Registry().names("defenses") if not name.endswith(":schott2019")]
CHECK = "unrolled gradients agree with finite differences"


@pytest.mark.parametrize("name", DEFENSES)
def test_every_built_in_defense_that_optimizes_is_differentiated_through_it(name):
    """Binarized answers have no derivative to compare with."""
    dataset = load_dataset("digits")
    made = make_defense(name, dataset, Registry())
    optimizes = isinstance(made.defense, HasInnerSteps)
    assert isinstance(made.defense, HasUnrolledGradient) == optimizes
    if optimizes and made.card.binarization_threshold is None:
        loaded = load_trained(name, dataset, Registry(), 0, CPU)
        found = {check.name: check for check in check_defense(loaded, dataset)}
        assert found[CHECK].passed, found[CHECK].detail


def double(layer: Dense | Transposed) -> Dense | Transposed:
    weight, bias = layer.weight.double(), layer.bias.double()
    if isinstance(layer, Dense):
        return Dense(weight, bias)
    return Transposed(weight, bias, layer.stride, layer.padding, layer.size)


def rising(model: AnalysisBySynthesis) -> None:
    """Gives a model weights under which latents move far and activations are of both signs."""
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3)
        elif key.endswith("weight"):
            tensor.mul_(3)


@pytest.mark.parametrize("radius", [5.0, 0.5])
@pytest.mark.parametrize("dataset", [DIGITS, MNIST], ids=lambda dataset: dataset.name)
def test_energies_of_abs_change_in_float64_as_the_unrolled_derivative_says(dataset, radius):
    """Also where latents are confined to the ball of a small radius."""
    torch.manual_seed(0)
    model = AnalysisBySynthesis(dataset).eval().requires_grad_(False)
    rising(model)
    latent = model.setting.architecture.latent
    search = Search(starts=20, iterations=12, learning_rate=0.05, variance=0.5)
    draws = prior_draws(search.starts, latent).double()
    starts = Starts(draws, draws, search.variance * draws.square().sum(1)[None])
    layers = [[double(layer) for layer in of_class] for of_class in folded_layers(model.decoder)]
    inference = Inference(layers, ELU, starts, search)
    objective = AtPoint(NormalPrior(search.variance), radius)
    x, direction = (torch.rand(3, *dataset.shape, dtype=torch.float64) for _ in range(2))
    values, derivatives = inference.unrolled(x, lambda classes, rows: objective)
    torch.testing.assert_close(values, inference.all_classes(x, lambda classes, rows: objective)[0])
    ahead, behind = (
        inference.all_classes(x + step * direction, lambda classes, rows: objective)[0] for step in (1e-6, -1e-6)
    )
    slopes = torch.einsum("nkchw,nchw->nk", derivatives, direction)
    torch.testing.assert_close(slopes, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-5)
    starts = inference.starts(x, lambda c, r: objective)
    ends = inference.descended(x, lambda c, r: objective, starts, inference.search.iterations)
    held = 2 * torch.einsum("nkchw,nchw->nk", x[:, None] - images_of(ends, x), direction)
    assert (held - slopes).abs().median() > 1e-3 * slopes.abs().median()
    at_border = (torch.linalg.vector_norm(ends.p, dim=2) > radius - 1e-9).double().mean()
    assert at_border > 0.5 if radius == 0.5 else at_border < 0.5


def images_of(ends, x):
    size = x.shape[-1]
    return ends.decoded.reshape(len(x), -1, size, size, x.shape[1]).movedim(-1, -3)


def test_binary_abs_goes_straight_through_the_threshold():
    dataset = load_dataset("digits")
    binary = load_trained("binary_abs", dataset, Registry(), 0, CPU).defense
    plain = AnalysisBySynthesis(dataset, binary.decoder, binary.gamma)
    x = dataset.test.images[:5]
    cotangent = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    logits, product = binary.unrolled_gradient(x)
    expected_logits, expected_product = plain.unrolled_gradient((x >= 0.5).float())
    assert torch.equal(logits, expected_logits)
    assert torch.equal(product(cotangent), expected_product(cotangent))
    torch.testing.assert_close(logits, binary.logits(x))
