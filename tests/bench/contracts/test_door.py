"""What a defense does to its input, and what it gives, is settled at the door."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import bench
from bench.conformance.examination import LIKELIHOODS, examined
from bench.contracts.cards import DefenseCard
from bench.contracts.door import (
    NO_DRAWS,
    decisions,
    decoded_images,
    detection_scores,
    drawn_logits,
    linearize,
    mean_logits,
    reconstructions,
)
from bench.contracts.errors import DefenseFault
from bench.contracts.protocols import as_defense, fingerprint
from bench.contracts.streams import Streams
from bench.contracts.work import Cell
from bench.datasets.dataset import load_dataset
from bench.engine.cell import Adversary, Target, run_cell
from bench.ledger.manifest_file import load_manifest
from bench.plugins.registry import Registry

CPU = torch.device("cpu")
DIGITS = load_dataset("digits")
X = DIGITS.test.images[:12]


class Means(nn.Module):
    """The classifier by class means, behind something done to its input and before something done to its output."""

    def __init__(self, before=lambda x: x, after=lambda z: z, dtype=torch.float32):
        super().__init__()
        images, labels = DIGITS.train.images.flatten(1), DIGITS.train.labels
        means = torch.stack([images[labels == c].mean(0) for c in range(10)])
        self.register_buffer("means", means.to(dtype))
        self.before, self.after = before, after

    def forward(self, x):
        means = self.means.to_dense().float()
        return self.after(2 * self.before(x).flatten(1) @ means.T - means.square().sum(1))


def made(net, **card):
    return as_defense(DefenseCard(name="net", datasets=("digits",), batch_size=8, **card), net)


def records(net, attack, norm, budget=100, **card):
    """The records of a small cell on the first test images."""
    defense, plugin = made(net, **card), Registry().get("attacks", attack)
    cell = Cell(
        dataset="digits",
        defense="net",
        attack=attack,
        function=attack,
        norm=norm,
        epsilon=None,
        access=plugin.attack_card.access,
        parameters=plugin.attack_card.parameters,
        budget=budget,
        seed=0,
        samples=12,
        chunk=12,
        batch_size=8,
        timeout=None,
        state={},
    )
    remarks = examined(defense, DIGITS, CPU)
    return run_cell(cell, Target(defense, remarks), Adversary(plugin.function), DIGITS, CPU).records.drop(
        columns="seconds"
    )


def clamped_without_gradient(x):
    with torch.no_grad():
        return x.clamp_(0.2, 0.8)


def clamped_data(x):
    x.data.clamp_(0.2, 0.8)
    return x


def clamped(x):
    return x.clamp_(0.2, 0.8)


def normalized(x):
    return x.sub_(0.5).div_(0.5)


def quantized(x):
    x.data.mul_(4).round_().div_(4)
    return x


def binarized(x):
    x[...] = (x >= 0.5).float() + x - x.detach()
    return x


WRITERS = [clamped_without_gradient, clamped_data, clamped, normalized, quantized, binarized]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(("attack", "norm"), [("deepfool", "L2"), ("pgd", "Linf"), ("sigma_zero", "L0")])
def test_a_net_that_writes_on_its_input_is_measured_as_one_that_copies_it(write, attack, norm):
    writes = records(Means(write), attack, norm)
    copies = records(Means(lambda x: write(x.clone())), attack, norm)
    assert writes.equals(copies)
    assert set(writes["remarks"]) == {""}


def test_the_reference_net_has_its_known_distances():
    assert records(Means(), "deepfool", "L2")["l2"].median() == pytest.approx(0.5335, rel=0.01)
    assert records(Means(), "pgd", "Linf", budget=400)["linf"].median() == pytest.approx(0.1116, rel=0.05)


class Capable(Means):
    """Answers everything, and writes on whatever it is given."""

    def logits(self, x):
        return self.forward(x.clamp_(0.2, 0.8))

    def input_gradient(self, x):
        logits = self.logits(x)
        return logits, lambda cotangent: (cotangent.mul_(2) @ self.means).reshape(x.zero_().shape)

    unrolled_gradient = input_gradient

    def decide(self, x):
        return self.logits(x).argmax(1)

    def reconstruct(self, x, y):
        return x.zero_() + y.zero_().reshape(-1, 1, 1, 1)

    def decoded(self, x):
        return x.clamp_(0.2, 0.8)

    def detection_score(self, x):
        return x.clamp_(0.2, 0.8).flatten(1).sum(1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, x, y: drawn_logits(net, x, NO_DRAWS),
        lambda net, x, y: linearize(net, x, NO_DRAWS, 1)[1](torch.ones(12, 10)),
        lambda net, x, y: linearize(net, x, NO_DRAWS, 1, unrolled=True)[1](torch.ones(12, 10)),
        lambda net, x, y: decisions(net, x),
        lambda net, x, y: reconstructions(net, x, y),
        lambda net, x, y: decoded_images(net, x),
        lambda net, x, y: detection_scores(net, x),
    ],
)
def test_no_question_changes_what_is_asked_about(ask):
    x, y = X.clone(), torch.arange(12)
    given = ask(made(Capable()), x, y)
    assert torch.equal(x, X)
    assert torch.equal(y, torch.arange(12))
    assert given.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_a_product_may_be_asked_for_again_and_keeps_its_cotangent():
    _, product = linearize(made(Capable()), X, NO_DRAWS, 1)
    cotangent = torch.ones(12, 10)
    assert torch.equal(product(cotangent), product(cotangent))
    assert torch.equal(cotangent, torch.ones(12, 10))


def test_detection_scores_can_be_differentiated():
    leaf = X.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(detection_scores(made(Capable()), leaf).sum(), leaf)
    assert torch.equal(gradient, ((X >= 0.2) & (X <= 0.8)).float())


class Reused(Means):
    """Gives the same buffer each time."""

    buffer = torch.zeros(12, 10)

    def forward(self, x):
        return self.buffer[: len(x)].copy_(super().forward(x))


class Noisy(Reused):
    def forward(self, x, rng):
        return super().forward(x + 0.1 * rng.normal(x.shape[1:]))


def test_a_reused_buffer_keeps_earlier_answers():
    net = made(Reused())
    first = drawn_logits(net, X, NO_DRAWS)
    drawn_logits(net, 1 - X, NO_DRAWS)
    assert torch.equal(first, Means()(X))
    rng, again = (Streams(0, range(12), "noise").rows(torch.arange(12)) for _ in range(2))
    noisy = made(Noisy(), randomized=True)
    draws = torch.stack([drawn_logits(noisy, X, again) for _ in range(3)])
    assert torch.equal(mean_logits(noisy, X, rng, 3), draws.mean(0))
    assert records(Reused(), "pgd", "L2").equals(records(Means(), "pgd", "L2"))


DIFFERENTIABLE = {
    "half": lambda z: z.half(),
    "bfloat16": lambda z: z.bfloat16(),
    "float64": lambda z: z.double(),
    "a tuple": lambda z: (z,),
    "a list": lambda z: [z],
    "a dict with logits": lambda z: {"logits": z, "features": z.square()},
    "a dict with one tensor": lambda z: {"out": z},
    "an object with logits": lambda z: SimpleNamespace(logits=z),
    "sparse": lambda z: z.to_sparse(),
    "a view": lambda z: z[:, :, None].expand(-1, -1, 3)[..., 1],
}
CONSTANT = {
    "int64": lambda z: (1000 * z).long(),
    "an array": lambda z: z.detach().numpy(),
    "an array of float64": lambda z: z.detach().double().numpy(),
    "inference mode": lambda z: inference(z),
}


def inference(z):
    with torch.inference_mode():
        return z * 1


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, *CONSTANT])
def test_outputs_become_float32_tensors(name):
    net = made(Means(after={**DIFFERENTIABLE, **CONSTANT}[name]))
    logits = drawn_logits(net, X, NO_DRAWS)
    assert logits.dtype == torch.float32
    assert not logits.is_inference()
    scale = 1000 if name == "int64" else 1
    torch.testing.assert_close(logits / scale, Means()(X), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_converted_outputs_keep_their_gradient(name):
    cotangent = torch.eye(12, 10)
    expected = linearize(made(Means()), X, NO_DRAWS, 1)[1](cotangent)
    gradient = linearize(made(Means(after=DIFFERENTIABLE[name])), X, NO_DRAWS, 1)[1](cotangent)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", CONSTANT)
def test_outputs_without_gradient_say_so(name):
    with pytest.raises(DefenseFault, match='the logits have no gradient; declare access="score"'):
        linearize(made(Means(after=lambda z: CONSTANT[name](z.detach()))), X, NO_DRAWS, 1)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda z: (z, z), "its logits are a tuple; a float32 tensor is needed"),
        (lambda z: {"a": z, "b": z}, "its logits are a dict"),
        (lambda z: None, "its logits are a NoneType"),
        (lambda z: z.tolist()[0][0], "its logits are a float"),
        (lambda z: z.to(torch.complex64), "its logits are a torch.complex64"),
        (lambda z: np.array(["a"]), "its logits are a ndarray"),
        (lambda z: z.argmax(1), r"its logits have shape \(12,\); 12 images need \(12, classes\)"),
        (lambda z: z[:-1], r"its logits have shape \(11, 10\)"),
        (lambda z: z[..., None], r"its logits have shape \(12, 10, 1\)"),
    ],
)
def test_outputs_that_cannot_be_read_are_refused_in_one_line(after, message):
    with pytest.raises(DefenseFault, match=message):
        drawn_logits(made(Means(after=after)), X, NO_DRAWS)


@pytest.mark.parametrize(("ask", "what"), [(decisions, "decisions"), (detection_scores, "detection scores")])
def test_other_answers_need_one_number_for_each_image(ask, what):
    net = made(Capable())
    net.decide = net.detection_score = lambda x: torch.zeros(3)
    with pytest.raises(DefenseFault, match=rf"its {what} have shape \(3,\), expected \(12,\)"):
        ask(net, X)


def test_rows_that_are_not_finite_come_through():
    logits = drawn_logits(made(Means(after=lambda z: z.masked_fill(z < 0, torch.nan))), X, NO_DRAWS)
    assert torch.equal(logits.isnan(), Means()(X) < 0)


def scripted():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), file)
    file.seek(0)
    return torch.jit.load(file)


class Scriptable(nn.Module):
    def forward(self, x):
        return x.flatten(1)

    @torch.jit.export
    def logits(self, x):
        return x.flatten(1)[:, :10]


class LayerNamedLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(64, 10)

    def forward(self, x):
        return self.logits(x.flatten(1))


def exported():
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (X,), dynamic_shapes=(batch,))


def of_state(change):
    net = Means()
    net.means = change(net.means)
    return net


ODD = {
    "loaded from TorchScript": scripted,
    "TorchScript with logits": lambda: torch.jit.script(Scriptable()),
    "frozen TorchScript": lambda: torch.jit.freeze(scripted().eval()),
    "an exported program": exported,
    "an exported program's module": lambda: exported().module(),
    "an exported program's module in another": lambda: nn.Sequential(exported().module(), nn.Dropout()),
    "a layer named logits": LayerNamedLogits,
    "bfloat16 weights": lambda: of_state(lambda w: w.bfloat16()),
    "float8 weights": lambda: of_state(lambda w: w.to(torch.float8_e4m3fn)),
    "sparse weights": lambda: of_state(lambda w: w.to_sparse()),
    "compressed sparse weights": lambda: of_state(lambda w: w.to_sparse_csr()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_models_that_torch_treats_specially_are_defenses(name):
    torch.manual_seed(0)
    defense = made(ODD[name]())
    defense.to("cpu")
    assert len(fingerprint(defense)) == 16
    logits, product = linearize(defense, X, NO_DRAWS, 1)
    assert product(logits).shape == X.shape
    assert examined(defense, DIGITS, CPU) == ()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        lambda w: w,
        lambda w: w.bfloat16(),
        lambda w: w.to(torch.float8_e4m3fn),
        lambda w: w.to_sparse(),
        lambda w: w.to_sparse_csr(),
        lambda w: w.to(torch.complex64).conj(),
        lambda w: torch.quantize_per_tensor(w, 0.01, 0, torch.qint8),
        lambda w: (1000 * w).long(),
    ],
)
def test_the_fingerprint_sees_every_value(change):
    """One value among many, which a printed tensor would leave out."""

    def state_of(weights):
        return SimpleNamespace(state_dict=lambda: {"packed": (change(weights), [None])})

    weights = torch.ones(100, 100)
    before = fingerprint(state_of(weights))
    assert fingerprint(state_of(weights.clone())) == before
    weights[50, 50] = 0.5
    assert fingerprint(state_of(weights)) != before


PLUGIN = """
import torch
from bench import defense
from bench.conformance.checks import ClassMeans

class After(torch.nn.Module):
    def __init__(self, dataset, change):
        super().__init__()
        self.means, self.change = ClassMeans(dataset), change

    def forward(self, x):
        return self.change(self.means.logits(x))

def declared(name, change, **card):
    @defense(name, datasets=["digits"], **card)
    def factory(dataset):
        return After(dataset, change)
    return factory

honest = declared("honest", lambda z: z)
dictionary = declared("dictionary", lambda z: {"logits": z.double()})
several = declared("several", lambda z: (z, z))
elsewhere = declared("elsewhere", lambda z: z.to("meta"))
moody = declared("moody", lambda z: z + torch.randn(z.shape))
centered = declared("centered", lambda z: z - z.mean(0))
likely = declared("likely", lambda z: (z / 0.1).softmax(1))

@defense("missing", datasets=["digits"])
def missing():
    return torch.jit.load("nowhere.pt")

@defense("empty", datasets=["digits"])
def empty():
    return torch.nn.Linear(64, 10).to("meta")
"""


def test_a_bad_defense_is_one_line_and_the_others_are_measured(tmp_path):
    plugin = tmp_path / "odd.py"
    plugin.write_text(PLUGIN)
    good, bad, broken = (
        ["honest", "dictionary", "likely"],
        ["several", "elsewhere", "moody", "centered"],
        ["missing", "empty"],
    )
    frame = bench.run(
        "digits",
        samples=12,
        defenses=[*good, *bad, *broken],
        attacks=["deepfool"],
        norms=["L2"],
        plugins=[plugin],
        out=tmp_path / "run",
        device="cpu",
        runner="serial",
        settings=["studies=[]"],
    )
    statuses = frame.groupby("defense")["status"].agg(set)
    reasons = frame.groupby("defense")["reason"].first()
    assert all("failed" not in statuses[name] for name in good)
    assert frame.query("defense == 'honest'")["l2"].median() == pytest.approx(0.5335, rel=0.01)
    assert np.allclose(*(frame.query(f"defense == '{name}'")["l2"] for name in good[:2]), rtol=1e-4)
    assert set(frame.query("defense == 'likely'")["remarks"]) == {LIKELIHOODS}
    assert all(statuses[name] == {"failed"} for name in bad)
    assert "its logits are a tuple" in reasons["several"]
    assert "NotImplementedError" in reasons["elsewhere"]
    assert "predictions change from pass to pass" in reasons["moody"]
    assert "predictions depend on the rest of the batch" in reasons["centered"]
    missing = {place.defense: place.reason for place in load_manifest(tmp_path / "run").not_applicable}
    assert missing.keys() == set(broken)
    assert "not run: defense 'missing' (file" in missing["missing"]
    assert "cannot be built: " in missing["missing"]
    assert "NotImplementedError: Cannot copy out of meta tensor" in missing["empty"]
