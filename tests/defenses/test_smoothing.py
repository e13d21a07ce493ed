"""Smoothing with noise, around nets whose answers are known."""

import pytest
import torch
from scipy.stats import norm as normal
from torch import nn

from bench.contracts.cards import DefenseCard, card_of
from bench.contracts.chunk import Chunk
from bench.contracts.door import linearize
from bench.contracts.errors import UserError
from bench.contracts.norms import NORMS
from bench.contracts.protocols import ModuleDefense
from bench.contracts.streams import Streams
from bench.contracts.work import ALPHA
from bench.datasets.dataset import load_dataset
from bench.engine.judge import Judge
from bench.planning.cells import plan
from bench.planning.files import build_matrix
from bench.plugins.registry import Registry
from bench.training.loading import load_trained, make_defense, needs_training
from defenses.smoothing import RandomizedSmoothing, VariationalSmoothing, randomized_smoothing, variational_smoothing

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)


def judge_of(defense, estimation_draws=20):
    alpha = torch.tensor(ALPHA, dtype=torch.float64)
    return Judge(defense, seed=0, alpha=alpha, estimation_draws=estimation_draws, threshold=0.0)


def linear(classes=2):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return ModuleDefense(DefenseCard(name="linear", datasets=("none",)), net)


def images(n=5):
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def rows(n, purpose="test"):
    return Streams(0, range(n), purpose).rows(torch.arange(n))


def test_a_draw_of_randomized_smoothing_is_the_base_at_the_noisy_image():
    base, x = linear(), images()
    noise = rows(5).normal(SHAPE)
    assert torch.equal(RandomizedSmoothing(base, sigma=0.1).logits(x, rows(5)), base.logits(x + 0.1 * noise))


def test_its_error_rate_is_that_of_the_smoothed_linear_classifier():
    """P(w . noise < -margin) = Phi(-margin / (sigma ||w||))."""
    base, x = linear(), images(40)
    w, b = base.module[1].weight, base.module[1].bias
    margin = (x.flatten(1) @ (w[0] - w[1]) + b[0] - b[1]).double()
    sigma = float(margin.abs().median() / (w[0] - w[1]).norm())
    smoothed = RandomizedSmoothing(base, sigma=sigma)
    smoothed.card = DefenseCard(name="smoothed", datasets=("none",), randomized=True)
    y = (margin < 0).long()
    judge = judge_of(smoothed, estimation_draws=100)
    verdict = judge.clean(Chunk(x, y, range(40), 2))
    expected = normal.cdf(-margin.abs() / (sigma * (w[0] - w[1]).norm()))
    assert not verdict.misclassified[expected < 0.3].any()
    assert verdict.errors.double().mean().item() / 100 == pytest.approx(expected.mean(), abs=0.02)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_search_finds_the_likeliest_point_of_the_ball_for_each_class(norm):
    """Of two linear classes it is as far as the ball goes along the difference of their weights."""
    base, x = linear(), images()
    smoothed = VariationalSmoothing(base, 2, radius=0.1, norm=norm, steps=10)
    found = smoothed.search(x, rows(5))
    w = base.module[1].weight
    for y in (0, 1):
        step = (w[y] - w[1 - y]).reshape(SHAPE).expand_as(x)
        best = NORMS[norm].project(x + 10 * NORMS[norm].steepest(step), x, 0.1)
        assert torch.allclose(found[:, y], best, atol=1e-4)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_search_starts_at_random_and_stays_in_the_ball_and_in_the_pixel_box(norm):
    smoothed = VariationalSmoothing(linear(3), 3, radius=0.4, norm=norm)
    x = images(6).round()
    first, second = (smoothed.search(x, rows(6, purpose)) for purpose in ("one", "two"))
    assert not torch.equal(first, second)
    assert ((first >= 0) & (first <= 1)).all()
    for y in range(3):
        assert (NORMS[norm].distance(first[:, y], x) <= 0.4).all()


def test_without_ball_and_noise_scores_are_log_probabilities():
    base, x = linear(4), images()
    smoothed = VariationalSmoothing(base, 4, radius=0.0, sigma=0.0)
    assert torch.allclose(smoothed.logits(x, rows(5)), base.logits(x).log_softmax(1), atol=1e-5)


def test_scores_are_the_classes_own_at_their_own_points_averaged_over_draws():
    base, x = linear(3), images()
    smoothed = VariationalSmoothing(base, 3, radius=0.1, sigma=0.2, draws=2)
    streams, again = rows(5), rows(5)
    scores = smoothed.logits(x, streams)
    points = smoothed.search(x, again)
    expected = 0
    for _ in range(2):
        noise = 0.2 * again.normal((3, *SHAPE))
        own = [base.logits(points[:, y] + noise[:, y]).log_softmax(1)[:, y] for y in range(3)]
        expected = expected + torch.stack(own, 1) / 2
    assert torch.allclose(scores, expected, atol=1e-5)


def test_the_derivative_holds_search_and_noise_fixed():
    base, x = linear(3), images()
    smoothed = VariationalSmoothing(base, 3, radius=0.1, sigma=0.2)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(smoothed.logits(leaf, rows(5))[:, 1].sum(), leaf)
    again = rows(5)
    shift = smoothed.search(x, again) - x[:, None]
    other = x.clone().requires_grad_(True)
    noisy = other + shift[:, 1] + 0.2 * again.normal((3, *SHAPE))[:, 1]
    (expected,) = torch.autograd.grad(base.logits(noisy).log_softmax(1)[:, 1].sum(), other)
    assert torch.allclose(gradient, expected, atol=1e-5)


def smooth(classes=3):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, classes))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return ModuleDefense(DefenseCard(name="smooth", datasets=("none",)), net)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_unrolled_derivative_goes_through_the_search(norm, steps):
    """Where the search ends at a pixel of 0 or 1, the pixel's derivative is 0, here for a fifth of them. In L2, the
    steps follow the gradient's direction, too."""
    smoothed = VariationalSmoothing(smooth(), 3, radius=0.2, norm=norm, sigma=0.1, steps=steps, draws=2)
    smoothed.card = DefenseCard(name="smoothed", datasets=("none",), randomized=True)
    generator = torch.Generator().manual_seed(2)
    x, direction = images(), torch.randn(5, *SHAPE, generator=generator)
    dark = torch.rand(x.shape, generator=generator) < 0.2
    x, direction = x.masked_fill(dark, 0.02), direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    logits, product = smoothed.unrolled_gradient(x, rows(5))
    assert torch.allclose(logits, smoothed.logits(x, rows(5)), atol=1e-5)
    ahead, behind = (smoothed.logits(x + step * direction, rows(5)).double() for step in (0.003, -0.003))
    difference = (ahead - behind) / 0.006
    _, held = linearize(smoothed, x, rows(5), 1)
    slopes, others = (
        torch.stack([(of(unit.expand(5, 3)) * direction).flatten(1).sum(1) for unit in torch.eye(3)], 1)
        for of in (product, held)
    )
    scale = slopes.abs().amax(1, keepdim=True)
    assert ((slopes - difference).abs() / scale).median() < 0.003
    assert ((others - difference).abs() / scale).median() > 0.03


@pytest.mark.parametrize("around", [randomized_smoothing, variational_smoothing])
def test_rows_do_not_depend_on_each_other(around):
    dataset = load_dataset("digits")
    loaded = make_defense(f"{around.__name__}:cnn", dataset, Registry())
    x, streams = dataset.test.images[:6], [Streams(0, range(6), "test") for _ in range(2)]
    whole = loaded.defense.logits(x, streams[0].rows(torch.arange(6)))
    parts = [loaded.defense.logits(x[i : i + 2], streams[1].rows(torch.arange(i, i + 2))) for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-4)


def test_steps_are_declared():
    assert VariationalSmoothing(linear(), 10, radius=0.1, steps=3).inner_steps == 30


# By name


def test_the_base_is_named_behind_the_colon_and_lends_its_datasets():
    registry = Registry()
    card = registry.get("defenses", "variational_smoothing:binary_cnn").defense_card
    base = registry.get("defenses", "binary_cnn").defense_card
    assert (card.wraps, card.randomized, card.datasets) == ("binary_cnn", True, base.datasets)
    nested = registry.get("defenses", "randomized_smoothing:robustbench:cifar10/Linf/Standard").defense_card
    assert nested.datasets == ("cifar10",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("randomized_smoothing:randomized_smoothing:cnn", "'randomized_smoothing:cnn' is randomized itself"),
        ("variational_smoothing:abs", "'abs' has no derivative that torch could take"),
        ("variational_smoothing:cnm", "unknown defense 'cnm'; did you mean 'cnn'"),
        ("variational_smoothing", "unknown defense 'variational_smoothing'; did you mean"),
    ],
)
def test_what_cannot_be_smoothed_is_refused_in_one_line(name, message):
    with pytest.raises(UserError) as error:
        make_defense(name, load_dataset("digits"), Registry())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_without_gradients_can_be_smoothed_at_random_only():
    base = DefenseCard(name="hard", datasets=("digits",), access="decision")
    assert card_of(randomized_smoothing("hard", lambda name: base)).access == "decision"
    with pytest.raises(UserError, match="'hard' gives decision access only; variational smoothing needs gradients"):
        variational_smoothing("hard", lambda name: base)


PLUGIN = """
import torch
from bench import defense

@defense("randomized_smoothing:mine", datasets=["digits"])
def mine():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

@defense("same", datasets=["digits"], wraps="cnn")
def same(base):
    return base

class Learner(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.logits = base.logits
    def fit(self, data, trainer):
        pass

@defense("learner", datasets=["digits"], wraps="cnn")
def learner(base):
    return Learner(base)
"""


def test_plugins_may_wrap_but_not_train_and_have_names_that_look_wrapped(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    registry, dataset = Registry([path]), load_dataset("digits")
    assert make_defense("randomized_smoothing:mine", dataset, registry).base is None
    for name, message in (("same", "'cnn' and returns its base"), ("learner", "'cnn' and has a fit of its own")):
        with pytest.raises(UserError, match=message):
            make_defense(name, dataset, registry)


def test_budgets_are_meant_for_answers_of_one_pass():
    registry, dataset = Registry(), load_dataset("digits")
    data = {
        "dataset": "digits",
        "samples": 2,
        "thresholds": {"L2": 0.5},
        "attacks": ["fgm", {"name": "ddn", "budget": 9}],
    }
    names = ["cnn", "randomized_smoothing:cnn"]
    matrix = build_matrix("test", {**data, "defenses": names}, registry)
    cells, _ = plan(matrix, dataset, {n: make_defense(n, dataset, registry) for n in names}, None, registry, {})
    assert [(cell.attack, cell.budget) for cell in cells] == [("fgm", 200), ("fgm", 3200), ("ddn", 9), ("ddn", 9)]


def test_the_base_is_trained_once_as_itself_and_makes_part_of_the_identity():
    dataset, registry = load_dataset("digits"), Registry()
    base = load_trained("cnn_gaussian", dataset, registry, 0, CPU)
    for wrapper in ("randomized_smoothing", "variational_smoothing"):
        made = make_defense(f"{wrapper}:cnn_gaussian", dataset, registry)
        assert made.learner.card.name == "cnn_gaussian"
        assert not needs_training(made, dataset, 0)
        loaded = load_trained(f"{wrapper}:cnn_gaussian", dataset, registry, 0, CPU)
        assert loaded.fingerprint == base.fingerprint
        assert loaded.code.modules.items() >= base.code.modules.items()


def test_smoothing_keeps_the_accuracy_of_a_net_trained_with_noise():
    """On 200 digits: the net itself, and both around it by majority."""
    dataset, registry = load_dataset("digits"), Registry()
    x, y = dataset.test.images[:200], dataset.test.labels[:200]
    for name in ("cnn_gaussian", "randomized_smoothing:cnn_gaussian", "variational_smoothing:cnn_gaussian"):
        loaded = load_trained(name, dataset, registry, 0, CPU)
        verdict = judge_of(loaded.defense, estimation_draws=1).clean(Chunk(x, y, range(200), 10))
        accuracy = 1 - verdict.misclassified.double().mean().item()
        assert accuracy >= 0.95, (name, accuracy)
    assert verdict.draws.min() == 6, "draws that are all right give an image up after six"
