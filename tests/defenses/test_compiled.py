"""The compiled kernel against torch, for every instruction set that this machine has."""

import copy
import math
import os
import pickle
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bench import load_dataset, load_defense
from bench.contracts.protocols import HasArithmetic
from bench.contracts.source import Sources
from bench.contracts.streams import Streams
from bench.plugins.registry import Registry
from defenses.abs import built
from defenses.abs.built import INSTRUCTION_SETS, SOURCES, kernels, source_digest
from defenses.abs.compiled import CompiledDecoders, Convolution, Shape
from defenses.abs.decoders import ELU, RELU, Dense, Transposed, evaluated_together
from defenses.abs.decoders import compiled as compiled_decoders
from defenses.abs.descent import AtPoint, Descent, NormalPrior, Variational
from defenses.abs.energies import Energy, Steps
from defenses.abs.search import Inference, Search
from defenses.abs.starts import Starts, prior_draws
from defenses.eabs.inference import DiscriminatorPenalty
from defenses.eabs.networks import Architecture, Discriminator
from defenses.eabs.settings import COLOUR

KERNEL = built.FOLDER
ACTIVATIONS = {"elu": ELU, "relu": RELU}
RATE = 0.05


def _registered():
    """Names of the classifiers by inference in latent spaces that digits has."""
    registry = Registry()
    found = [registry.get("defenses", name) for name in registry.names("defenses")]
    return [
        plugin.card.name
        for plugin in found
        if plugin.function.__module__ in ("defenses.abs", "defenses.eabs") and "digits" in plugin.defense_card.datasets
    ]


def _shape(latent, activation, size, channels, *layers):
    return Shape(latent, activation, size, channels, [Convolution(*layer) for layer in layers])


SHAPES = {
    "abs": _shape(8, "elu", 4, 32, (16, 5, 2, 0), (16, 5, 2, 0), (1, 4, 1, 0)),
    "abs of 32x32": _shape(20, "elu", 4, 32, (16, 5, 2, 0), (16, 5, 2, 0), (3, 8, 1, 0)),
    "abs of 8x8": _shape(4, "elu", 2, 12, (4, 3, 2, 0), (1, 4, 1, 0)),
    "eabs": _shape(10, "relu", 4, 32, (32, 5, 2, 0), (16, 5, 2, 0), (8, 4, 1, 0), (1, 1, 1, 0)),
    "eabs of 8x8": _shape(5, "relu", 2, 16, (16, 4, 2, 1), (8, 4, 2, 1), (1, 1, 1, 0)),
    "eabs in colour": _shape(
        COLOUR.latent, "relu", 4, COLOUR.decoder[0][0], *((m, k, s, p) for m, k, s, p in COLOUR.decoder[1:])
    ),
}
"""The decoders of the registered defenses."""


@pytest.fixture(params=INSTRUCTION_SETS)
def kernel(request):
    found = {each.instructions: each for each in kernels()}
    if not found:
        _missing("was not compiled (pip install needs a C compiler)")
    if request.param not in found:
        pytest.skip(f"this processor has no {request.param}")
    return found[request.param]


def _missing(what):
    """A compiler is among the tools that CI has."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"the kernel {what}")


def _layers(shape, classes, seed=0):
    """Random layers of some classes, with activations of moderate size."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, fan):
        return torch.randn(size, generator=generator) / math.sqrt(fan)

    def of_class():
        outputs = shape.size**2 * shape.channels
        first = Dense(draw(1, shape.latent, outputs, fan=shape.latent), draw(1, 1, outputs, fan=4))
        layers, channels, size = [first], shape.channels, shape.size
        for each in shape.layers:
            fan = channels * max(1, each.kernel / each.stride) ** 2
            weight = draw(channels, each.channels, each.kernel, each.kernel, fan=fan)
            layers.append(Transposed(weight, draw(each.channels, fan=4), each.stride, each.padding, size))
            channels, size = each.channels, layers[-1].output_size
        return layers

    return [of_class() for _ in range(classes)]


def _problem(shape, classes, images, seed=0, parameters=None):
    generator = torch.Generator().manual_seed(seed + 1)
    layers = _layers(shape, classes, seed)
    last = layers[0][-1]
    x = torch.rand(images, last.output_size**2 * last.weight.shape[1], generator=generator)
    p = torch.randn(classes, images, parameters or shape.latent, generator=generator)
    return layers, x, p


def _by_autograd(layers, shape, x, z, variance):
    """Energies and derivatives of one class in float64, by torch's own convolutions."""
    z = z.double().requires_grad_(True)
    activate = F.elu if shape.activation == "elu" else F.relu
    first, *others = layers
    a = activate(z @ first.weight[0].double() + first.bias[0].double())
    a = a.reshape(len(z), shape.size, shape.size, shape.channels).permute(0, 3, 1, 2)
    for layer in others:
        a = F.conv_transpose2d(a, layer.weight.double(), layer.bias.double(), layer.stride, layer.padding)
        a = activate(a) if layer is not others[-1] else torch.sigmoid(a)
    energies = (a.permute(0, 2, 3, 1).flatten(1) - x.double()).square().sum(1) + variance * z.square().sum(1)
    (gradient,) = torch.autograd.grad(energies.sum(), z)
    return energies.detach(), gradient


def _check_derivatives(shape, kernel, images=3):
    layers, x, p = _problem(shape, 2, images)
    decoders = compiled_decoders(layers, ACTIVATIONS[shape.activation], kernel)
    values, derivatives = decoders.differentiate(slice(None), Energy(variance=0.5), x, p)
    for c in range(2):
        expected, gradient = _by_autograd(layers[c], shape, x, p[c], 0.5)
        torch.testing.assert_close(values[c].double(), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(
            derivatives[c].double(), gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item()
        )


@pytest.mark.parametrize("name", SHAPES)
def test_energies_and_derivatives_are_those_of_torch_in_float64(kernel, name):
    _check_derivatives(SHAPES[name], kernel)


@st.composite
def _shapes(draw):
    size, layers = draw(st.integers(1, 4)), []
    edge = size
    for _ in range(draw(st.integers(1, 4))):
        kernel, stride = draw(st.integers(1, 6)), draw(st.integers(1, 3))
        padding = draw(st.integers(0, (kernel - 1) // 2))
        grown = (edge - 1) * stride + kernel - 2 * padding
        if not 1 <= grown <= 24:
            continue
        layers.append((draw(st.integers(1, 40)), kernel, stride, padding))
        edge = grown
    last = draw(st.integers(1, 3)), draw(st.integers(1, 4)), 1, 0
    return _shape(
        draw(st.integers(1, 12)), draw(st.sampled_from(["elu", "relu"])), size, draw(st.integers(1, 40)), *layers, last
    )


@given(shape=_shapes())
@settings(max_examples=60)
def test_any_decoder_of_transposed_convolutions_is_computed(shape):
    for each in kernels():
        _check_derivatives(shape, each, images=2)


def _discriminators(count):
    torch.manual_seed(count)
    sizes = Architecture(latent=10, encoder=(), decoder=(), discriminator=(37, 19))
    return DiscriminatorPenalty([Discriminator(sizes) for _ in range(count)])


def _objectives(shape, classes, images, iterations):
    generator = torch.Generator().manual_seed(5)
    slack = torch.rand(images, 1, generator=generator) / 4
    noise = torch.randn(iterations, classes, images, shape.latent, generator=generator)
    prior = NormalPrior(0.5)
    yield AtPoint(prior)
    yield AtPoint(prior, max_norm=1.5)
    yield AtPoint(prior, slack=slack)
    yield AtPoint(_discriminators(1))
    yield AtPoint(_discriminators(classes))
    yield Variational(NormalPrior(0.0), 1.0, noise)
    yield Variational(NormalPrior(0.0), 1.0, torch.zeros(iterations, 1, 1, 1))
    yield Variational(_discriminators(1), 0.0, noise, slack)


@pytest.mark.parametrize("name", ["eabs", "abs"])
def test_descents_end_where_those_of_torch_end(kernel, name):
    shape = replace(SHAPES[name], latent=10)
    iterations, classes, images = 6, 3, 4
    for objective in _objectives(shape, classes, images, iterations):
        parameters = 2 * shape.latent if isinstance(objective, Variational) else shape.latent
        layers, x, p = _problem(shape, classes, images, parameters=parameters)
        decoders = compiled_decoders(layers, ACTIVATIONS[shape.activation], kernel)
        ends = decoders.minimize(slice(None), objective.for_kernel(), x, p, Steps(RATE, iterations))
        single, _ = evaluated_together(layers, ACTIVATIONS[shape.activation])
        for c, decoder in enumerate(single):
            own = _of_class(objective, c)
            expected = Descent(decoder, own, x, p[c : c + 1], RATE).minimize(iterations)
            torch.testing.assert_close(ends.values[c], expected.values[0], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(ends.decoded[:, c], expected.decoded[:, 0], rtol=0, atol=1e-3)
            torch.testing.assert_close(ends.p[c], expected.p[0], rtol=0, atol=1e-3)


def _of_class(objective, c):
    """The objective of one class."""
    penalty = objective.penalty
    if isinstance(penalty, DiscriminatorPenalty):
        objective = replace(objective, penalty=penalty.of(slice(c, c + 1)))
    if isinstance(objective, Variational) and objective.noise.shape[1] > 1:
        objective = replace(objective, noise=objective.noise[:, c : c + 1])
    return objective


def test_a_range_of_classes_is_those_classes_alone(kernel):
    shape = replace(SHAPES["eabs of 8x8"], latent=10)
    layers, x, p = _problem(shape, 4, 3)
    decoders = compiled_decoders(layers, RELU, kernel)
    energy = AtPoint(_discriminators(4)).for_kernel()
    whole = decoders.minimize(slice(None), energy, x, p, Steps(RATE, 5))
    part = replace(energy, discriminators=energy.discriminators.part(slice(1, 3)))
    some = decoders.minimize(slice(1, 3), part, x, p[1:3], Steps(RATE, 5))
    assert torch.equal(some.values, whole.values[1:3])
    assert torch.equal(some.decoded, whole.decoded[:, 1:3])


def test_rows_do_not_depend_on_each_other_not_even_by_rounding(kernel):
    shape = SHAPES["abs"]
    layers, x, p = _problem(shape, 2, 7)
    decoders = compiled_decoders(layers, ELU, kernel)
    whole = decoders.minimize(slice(None), Energy(variance=0.5), x, p, Steps(RATE, 10))
    for row in range(7):
        alone = decoders.minimize(
            slice(None), Energy(variance=0.5), x[row : row + 1], p[:, row : row + 1], Steps(RATE, 10)
        )
        assert torch.equal(alone.values[:, 0], whole.values[:, row])
        assert torch.equal(alone.p[:, 0], whole.p[:, row])


def test_equal_rows_are_searched_once_and_answered_each(kernel, monkeypatch):
    shape = SHAPES["abs of 8x8"]
    layers, x, p = _problem(shape, 2, 3)
    decoders = compiled_decoders(layers, ACTIVATIONS[shape.activation], kernel)
    rows, searched = torch.tensor([2, 0, 0, 1, 2, 2]), []
    run = decoders._minimize
    monkeypatch.setattr(decoders, "_minimize", lambda *given: (searched.append(given[0]), run(*given)))
    alone = decoders.minimize(slice(None), Energy(), x, p, Steps(RATE, 9))
    given = decoders.minimize(slice(None), Energy(), x[rows], p[:, rows], Steps(RATE, 9))
    for found, wanted in ((given.values, alone.values[:, rows]), (given.p, alone.p[:, rows])):
        assert torch.equal(found, wanted)
    assert torch.equal(given.decoded, alone.decoded[rows])
    assert [problem.structure.images for problem in searched] == [3, 3]
    # The same image from elsewhere is another search.
    elsewhere = decoders.minimize(slice(None), Energy(), x[[0, 0]], p[:, :2], Steps(RATE, 9))
    assert not torch.equal(elsewhere.p[:, 0], elsewhere.p[:, 1])


def test_an_image_that_is_not_finite_has_no_finite_energy_and_harms_no_other(kernel):
    layers, x, p = _problem(SHAPES["abs of 8x8"], 3, 4)
    decoders = compiled_decoders(layers, ELU, kernel)
    energy = Energy(variance=0.5)
    clean = decoders.minimize(slice(None), energy, x, p, Steps(RATE, 5)).values
    x[1, 3] = torch.nan
    values = decoders.minimize(slice(None), energy, x, p, Steps(RATE, 5)).values
    assert values[:, 1].isnan().all()
    assert torch.equal(values[:, [0, 2, 3]], clean[:, [0, 2, 3]])


def test_memory_that_does_not_fit_is_refused():
    layers, x, p = _problem(SHAPES["abs of 8x8"], 2, 4)
    if not kernels():
        _missing("was not compiled (pip install needs a C compiler)")
    decoders = compiled_decoders(layers, ELU, kernels()[0])
    energy = Energy()
    for wrong in ((x[:, 1:], p), (x[1:], p), (x, p[:1]), (x, p[..., 1:])):
        with pytest.raises(ValueError, match="do not fit"):
            decoders.minimize(slice(None), energy, *wrong, Steps(RATE, 2))
    doubled = torch.cat([p, p], 2)
    with pytest.raises(ValueError, match="draws"):
        decoders.minimize(slice(None), Energy(noise=torch.zeros(3, 1, 1, 1)), x, doubled, Steps(RATE, 4))
    for wrong in (Energy(slack=torch.zeros(3, 1)), _discriminators(3).for_kernel()):
        with pytest.raises(ValueError, match="fit"):
            decoders.minimize(slice(None), wrong, x, p, Steps(RATE, 2))
    with pytest.raises(ValueError, match="float32"):
        decoders.minimize(slice(None), energy, x.double(), p, Steps(RATE, 2))
    with pytest.raises(ValueError, match="does not fit the kernel"):
        CompiledDecoders(replace(SHAPES["abs of 8x8"], latent=65), torch.zeros(1, 1), kernels()[0])


@pytest.mark.parametrize("layers", [(), 9 * [(2, 1, 1, 0)]], ids=["none", "too many"])
def test_decoders_that_the_kernel_has_no_room_for_are_left_to_torch(kernel, layers):
    shape = _shape(3, "relu", 2, 4, (1, 1, 1, 0), *layers) if layers else SHAPES["abs of 8x8"]
    built = _layers(shape, 2) if layers else [[of[0]] for of in _layers(shape, 2)]
    assert compiled_decoders(built, RELU, kernel) is None


def test_weights_that_are_not_finite_are_left_to_torch(kernel):
    """The kernel's exponential would hide a NaN, and a broken checkpoint would look like a sound one."""
    defense = load_defense("abs", dataset="digits")
    assert defense.arithmetic.startswith("kernel")
    defense.decoder.convolutions[-1].bias.fill_(torch.nan)
    defense.forget_inference()
    assert defense.arithmetic == "torch"
    assert defense.logits(load_dataset("digits").test.images[:2]).isnan().all()


def test_a_model_that_was_used_can_be_copied(kernel):
    x = load_dataset("digits").test.images[:3]
    defense = load_defense("abs", dataset="digits")
    logits = defense.logits(x)
    assert torch.equal(copy.deepcopy(defense).logits(x), logits)
    assert torch.equal(pickle.loads(pickle.dumps(defense)).logits(x), logits)


def test_a_library_that_cannot_be_loaded_is_not_used(monkeypatch):
    def refuse(path):
        raise OSError("wrong ELF class")

    monkeypatch.setattr(built.ctypes, "CDLL", refuse)
    assert kernels.__wrapped__() == ()


def test_a_search_goes_on_where_it_is_wanted_and_nowhere_else(kernel):
    """As the torch path does: `defenses.abs.search.Inference.resumed`."""
    shape = SHAPES["abs of 8x8"]
    by_torch, by_kernel = _inference(shape, 4, None), _inference(shape, 4, kernel)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = torch.rand(4, 6, generator=torch.Generator().manual_seed(4)) < 0.5

    def objectives(classes, rows):
        return AtPoint(NormalPrior(0.5), 2.0)

    found = []
    for inference in (by_torch, by_kernel):
        ends = inference.descended(x, objectives, inference.starts(x, objectives), inference.search.iterations)
        resumed = inference.resumed(x, objectives, ends, wanted, 4)
        assert torch.equal(resumed.values[~wanted], ends.values[~wanted])
        assert torch.equal(resumed.p[~wanted], ends.p[~wanted])
        assert torch.equal(resumed.decoded.transpose(0, 1)[~wanted], ends.decoded.transpose(0, 1)[~wanted])
        assert (resumed.p[wanted] != ends.p[wanted]).any(1).all()
        found.append(resumed)
    torch.testing.assert_close(found[0].values, found[1].values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0].decoded, found[1].decoded, rtol=0, atol=1e-3)


def _inference(shape, classes, kernel, iterations=12):
    starts = prior_draws(200, shape.latent)
    search = Search(starts=200, iterations=iterations, learning_rate=RATE, variance=0.5)
    layers = _layers(shape, classes)
    values = 0.5 * starts.square().sum(1)[None]
    return Inference(layers, ACTIVATIONS[shape.activation], Starts(starts, starts, values), search, kernel)


def test_decisions_give_up_the_classes_that_torch_gives_up(kernel):
    shape = SHAPES["abs of 8x8"]
    by_torch, by_kernel = _inference(shape, 5, None), _inference(shape, 5, kernel)
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    scale = torch.tensor([1.0, 0.9, 1.1, 1.0, 1.05])

    def objectives(classes, rows):
        return AtPoint(NormalPrior(0.5), 2.0)

    for pruning in ((), ((0, 0.5),), ((0, 1.0), (3, 0.3), (7, 0.05)), ((0, 0.0),)):
        expected = by_torch.decide(x, objectives, scale, pruning)
        assert torch.equal(by_kernel.decide(x, objectives, scale, pruning), expected)


def test_a_class_that_is_given_up_keeps_its_last_energy(kernel):
    layers, x, p = _problem(SHAPES["abs of 8x8"], 4, 30)
    decoders = compiled_decoders(layers, ELU, kernel)
    energy, scale = Energy(variance=0.5), torch.tensor([1.0, 0.8, 1.0, 1.2])
    starts, _ = decoders.differentiate(slice(None), energy, x, p)
    gaps = [0.5, math.inf, 0.2, math.inf, 0.1, math.inf]
    decided = decoders.decide(energy, x, p, starts, scale, gaps, RATE)
    assert {0, 3, 5, 6} >= set(decided.evaluations.unique().tolist())
    for taken in decided.evaluations.unique().tolist():
        known = starts.T if taken == 0 else decoders.minimize(slice(None), energy, x, p, Steps(RATE, taken)).values.T
        rows = decided.evaluations == taken
        assert torch.equal(decided.energies[rows], (scale * known)[rows])
    lowest = decided.energies.gather(1, decided.classes[:, None])
    alive = decided.evaluations == decided.evaluations.amax(1, keepdim=True)
    assert (lowest <= decided.energies.masked_fill(~alive, math.inf)).all()


@pytest.mark.parametrize("name", sorted(_registered()))
def test_a_registered_defense_answers_alike_by_kernel_and_by_torch(name, kernel, monkeypatch):
    dataset = load_dataset("digits")
    x, y = dataset.test.images[:12], dataset.test.labels[:12]
    defense = load_defense(name, dataset="digits")
    assert isinstance(defense, HasArithmetic)
    found = []
    for available in ((kernel,), ()):
        monkeypatch.setattr("defenses.abs.model.kernels", lambda available=available: available)
        defense.forget_inference()
        streams = Streams(0, range(len(x)), "test", x.device)
        drawn = [streams.rows(torch.arange(len(x)))] if defense.card.randomized else []
        bound = defense.lower_bound(x, y, "L2", streams).values
        found.append((defense.logits(x, *drawn), defense.reconstruct(x, y), bound))
        assert defense.arithmetic == (f"kernel {kernel.instructions}" if available else "torch")
    for by_kernel, by_torch in zip(*found, strict=True):
        torch.testing.assert_close(by_kernel, by_torch, rtol=1e-4, atol=1e-5)


def test_a_library_of_another_source_is_not_used(tmp_path, monkeypatch):
    if not kernels():
        _missing("was not compiled (pip install needs a C compiler)")
    monkeypatch.setattr(built, "source_digest", lambda folder: "another")
    assert kernels.__wrapped__() == ()


def test_the_digest_covers_every_source_of_the_kernel(tmp_path):
    assert {file.name for file in KERNEL.iterdir() if file.suffix != ".so"} == set(SOURCES)
    for name in SOURCES:
        shutil.copy(KERNEL / name, tmp_path)
    before = source_digest(tmp_path)
    for name in SOURCES:
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        assert source_digest(tmp_path) != before


def test_ids_of_cells_hold_the_kernels_source():
    modules = Sources().closure("defenses.abs").modules
    assert {f"defenses.abs.built: {name}" for name in SOURCES} <= modules.keys()


@pytest.mark.needs("cc")
def test_it_stays_within_its_memory_and_within_defined_behaviour(tmp_path):
    """A program that runs the kernel on several decoders, under the sanitizers of addresses and undefined behaviour."""
    program, source = tmp_path / "sanitized", Path(__file__).parent / "sanitized.c"
    flags = ["-std=gnu11", "-O1", "-g", "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", *flags, f"-I{KERNEL}", source, "-o", program, "-lm"], check=True, capture_output=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sets of instructions" in done.stdout
