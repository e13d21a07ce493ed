"""The pieces that attacks are built from."""

import math

import pytest
import torch
from attack_problems import ATTACKS, LinearDefense, Problem
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.boundary import SuccessQueue, propose
from attacks.gradient_estimation import EstimatedGradients
from attacks.iterative_gradient import random_start
from attacks.parts.epsilon_search import smallest_epsilon
from attacks.parts.gradients import length, steepest, wrong_odds
from attacks.parts.lines import bisect, climb
from attacks.parts.starts import salted
from attacks.pointwise import next_in_cycle, undo, undo_squares
from bench.contracts.chunk import Chunk
from bench.contracts.errors import UserError
from bench.contracts.norms import NORMS
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Terms


def oracle_of(problem: Problem, access="gradient", norm="L2", budget=10**6) -> DefenseOracle:
    chunk = Chunk(problem.x.clone(), problem.y.clone(), range(len(problem.x)), problem.classes)
    terms = Terms(access, ThreatModel(norm), budget, batch_size=64)
    return DefenseOracle(problem.defense, chunk, terms, chunk.streams(0, "attack"), chunk.streams(0, "queries"))


def images(n, seed=0, size=6):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10**6), st.floats(1e-20, 1e20))
def test_steepest_is_a_unit_step_whatever_the_gradients_scale(seed, scale):
    gradient, x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * scale, images(3, size=4)
    assert torch.allclose(length(steepest(gradient, x, NORMS["L2"])), torch.ones(3), atol=1e-5)
    assert torch.equal(steepest(gradient, x, NORMS["Linf"]), gradient.sign())
    assert ((steepest(gradient, x, NORMS["L2"]) * gradient).flatten(1).sum(1) > 0).all()


def test_steepest_leads_somewhere_where_the_gradient_vanishes():
    x = torch.tensor([0.0, 0.3, 0.8, 1.0]).reshape(1, 1, 2, 2)
    assert steepest(torch.zeros_like(x), x, NORMS["Linf"]).flatten().tolist() == [1, 1, -1, -1]
    assert steepest(torch.full_like(x, torch.nan), x, NORMS["Linf"]).flatten().tolist() == [1, 1, -1, -1]


@given(st.integers(0, 10**6), st.floats(1e-4, 1e3))
def test_the_loss_has_one_direction_at_every_scale_of_the_logits(seed, scale):
    """That of the cross-entropy at the standard deviation of a well trained net's logits."""
    generator = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(2, 10, generator=generator), torch.tensor([0, 3])
    spread = (5 * (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)).requires_grad_(True)
    scaled = (scale * logits).requires_grad_(True)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(spread, y), spread)
    (gradient,) = torch.autograd.grad(wrong_odds(scaled, y).sum(), scaled)
    assert torch.allclose(torch.cosine_similarity(gradient, expected), torch.ones(2), atol=1e-4)


def test_the_loss_survives_equal_and_huge_logits():
    for logits in (torch.zeros(1, 4), torch.tensor([[1e6, 0.0, -1e6, 3.0]])):
        leaf = logits.requires_grad_(True)
        (gradient,) = torch.autograd.grad(wrong_odds(leaf, torch.tensor([0])).sum(), leaf)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 0] < 0


def test_bisection_ends_next_to_the_boundary_on_the_adversarial_side(linear):
    oracle = oracle_of(linear)
    target = linear.pool[0][: len(linear.x)]
    rows = (linear.defense.logits(target).argmax(1) != linear.y).nonzero()[:, 0]
    ends = bisect(oracle, linear.x[rows], target[rows], rows, 12)
    back = ends + (linear.x[rows] - target[rows]) / 2**12
    assert (linear.defense.logits(ends).argmax(1) != linear.y[rows]).all()
    assert (linear.defense.logits(back).argmax(1) == linear.y[rows]).all()
    assert (oracle.forwards[rows] == 12).all()


@pytest.mark.parametrize("num_scales", [1, 2, 7])
def test_climbing_ends_at_the_largest_epsilon(linear, num_scales):
    oracle, direction = oracle_of(linear, access="decision"), torch.zeros_like(linear.x)
    reached = climb(oracle, linear.x, direction + 1, 0.25, num_scales, 0)
    missed = ~oracle.found
    assert torch.equal(reached[missed], (linear.x + 0.25).clamp(0, 1)[missed])
    assert missed.any()


def test_epsilon_search_finds_a_threshold(linear):
    """With a run that succeeds exactly where epsilon reaches a sample's threshold."""
    oracle = oracle_of(linear)
    threshold = linear.optimum("L2")
    direction = torch.stack(list(_nearest_normals(linear)))

    def run(ids, radii):
        step = (radii.to(linear.x) / length(direction[ids])).reshape(-1, 1, 1, 1)
        z = (linear.x[ids] + step * direction[ids]).clamp(0, 1)
        oracle.decision(z, ids)
        return z

    found = smallest_epsilon(oracle, linear.x, run, start=0.01, binary_search_steps=15)
    reached = NORMS["L2"].distance(found, linear.x)
    assert (linear.defense.logits(found).argmax(1) != linear.y).all()
    assert (reached >= threshold * (1 - 1e-6)).all()
    assert (oracle.forwards <= 15 + 1 + math.log(6 / 0.01, 1.5)).all()


def _nearest_normals(problem):
    """Per sample the normal of the boundary to the class that is nearest without the box."""
    logits = problem.defense.logits(problem.x)
    for row, label in zip(logits, problem.y.tolist(), strict=True):
        normals = problem.defense.weight - problem.defense.weight[label]
        gaps = (row[label] - row) / normals.norm(dim=1).clamp_min(1e-9)
        gaps[label] = torch.inf
        yield normals[gaps.argmin()].reshape(problem.x.shape[1:])


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_random_starts_fill_the_ball(linear, norm):
    oracle = oracle_of(linear, norm=norm)
    x = torch.full((200, 1, 2, 2), 0.5)
    start = random_start(oracle, x, torch.zeros(200, dtype=torch.int64), torch.full((200,), 0.2, dtype=torch.float64))
    moved = NORMS[norm].distance(start, x)
    assert moved.max() <= 0.2 + 1e-6
    # In four dimensions the share of a ball within radius r is r^4.
    assert ((moved < 0.1).double().mean() - 0.5**4).abs() < 0.06


@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_salt_and_pepper_sets_whole_pixels_to_black_or_white(seed, density):
    generator = torch.Generator().manual_seed(seed)
    x, u = torch.rand(1, 3, 20, 20, generator=generator), torch.rand(1, 20, 20, generator=generator)
    noisy = salted(x, torch.tensor([density]), u)
    changed = (noisy != x).any(1)
    assert torch.equal(changed, (u < density / 2) | (u >= 1 - density / 2))
    assert set(noisy.movedim(1, -1)[changed].flatten().tolist()) <= {0.0, 1.0}
    assert abs(changed.double().mean() - density) < 0.12


def test_next_in_cycle_wraps_around():
    candidates = torch.tensor([[True, False, True, False]] * 4)
    assert next_in_cycle(candidates, torch.tensor([-1, 0, 1, 2])).tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("problem", ["linear", "prototypes"])
def test_pointwise_ends_where_no_pixel_can_be_reset(problems, problem):
    chosen = problems[problem]
    oracle = oracle_of(chosen, "decision", "L0")
    noisy = images(len(chosen.x), 5).round()
    ids = oracle.ids[chosen.defense.logits(noisy).argmax(1) != chosen.y]
    z = undo(oracle, chosen.x[ids], noisy[ids], ids, binary_search_steps=0)
    assert ((z == chosen.x[ids]) | (z == noisy[ids])).all()
    for pixel in range(36):
        reset = z.flatten(1).clone()
        reset[:, pixel] = chosen.x[ids].flatten(1)[:, pixel]
        unchanged = reset[:, pixel] == z.flatten(1)[:, pixel]
        correct = chosen.defense.logits(reset.reshape(z.shape)).argmax(1) == chosen.y[ids]
        assert (unchanged | correct).all()


@pytest.fixture
def looks_at_the_middle():
    """Black images of 12x12, of class 1 where more than half of the middle 4x4 is white."""
    defense = LinearDefense(144, 2)
    weight = torch.zeros(2, 12, 12)
    weight[1, 4:8, 4:8] = 1
    defense.weight, defense.bias = weight.flatten(1), torch.tensor([8.0, 0])
    black, zeros = torch.zeros(20, 1, 12, 12), torch.zeros(20, dtype=torch.int64)
    return Problem(defense, black, zeros, 2, (black, zeros))


def test_noise_where_the_net_does_not_look_goes_by_squares(looks_at_the_middle):
    oracle = oracle_of(looks_at_the_middle, "decision", "L0")
    x, white = looks_at_the_middle.x, torch.ones_like(looks_at_the_middle.x)
    z = undo_squares(oracle, x, white, oracle.ids, 4)
    assert (looks_at_the_middle.defense.logits(z).argmax(1) == 1).all()
    assert ((z == 0) | (z == 1)).all()
    # Only squares that reach into the middle may stay.
    assert z[..., 0].sum() == z[..., -1].sum() == 0
    assert (z.flatten(1).sum(1) <= 64).all()
    assert (oracle.forwards <= 16).all()


def test_a_square_that_holds_all_the_noise_is_not_asked_about(looks_at_the_middle):
    oracle = oracle_of(looks_at_the_middle, "decision", "L0")
    noisy = looks_at_the_middle.x.clone()
    noisy[..., 5, 5] = 1
    z = undo_squares(oracle, looks_at_the_middle.x, noisy, oracle.ids, 4)
    assert torch.equal(z, noisy)
    assert (oracle.forwards == 0).all()


def test_pointwise_l2_ends_where_no_pixel_can_move_by_the_smallest_step(linear):
    oracle = oracle_of(linear, "decision", "L2")
    noisy = images(len(linear.x), 5).round()
    ids = oracle.ids[linear.defense.logits(noisy).argmax(1) != linear.y]
    z = undo(oracle, linear.x[ids], noisy[ids], ids, binary_search_steps=10)
    assert (linear.defense.logits(z).argmax(1) != linear.y[ids]).all()
    for pixel in range(36):
        moved, clean = z.flatten(1).clone(), linear.x[ids].flatten(1)
        moved[:, pixel] += 2**-9 * (clean[:, pixel] - moved[:, pixel])
        unchanged = clean[:, pixel] == z.flatten(1)[:, pixel]
        correct = linear.defense.logits(moved.reshape(z.shape)).argmax(1) == linear.y[ids]
        assert (unchanged | correct).all()


@given(st.integers(0, 10**6), st.floats(1e-3, 0.5), st.floats(1e-4, 0.2))
@settings(max_examples=30)
def test_boundary_proposals_stay_on_the_sphere_then_come_nearer(seed, spherical, source):
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((4, 1, 5, 5), 0.5)
    z = x + 0.1 * (torch.rand(x.shape, generator=generator) - 0.5)
    noise = torch.randn(x.shape, generator=generator)
    sphere, candidate = propose(x, z, noise, torch.full((4,), spherical), torch.full((4,), source))
    radius = length(z - x)
    assert torch.allclose(length(sphere - x), radius, rtol=1e-4)
    assert torch.allclose(length(candidate - x), (1 - source) * radius, rtol=1e-3)


def test_success_queue_gives_a_factor_once_it_is_full():
    queue = SuccessQueue(2, 4, torch.device("cpu"))
    ids = torch.tensor([0, 1])
    for outcome in ([True, False],) * 3:
        queue.push(ids, torch.tensor(outcome))
        assert queue.factors(0.2, 0.5).tolist() == [1, 1]
    queue.push(ids, torch.tensor([True, False]))
    assert queue.factors(0.2, 0.5).tolist() == pytest.approx([1.5, 1 / 1.5])
    assert queue.factors(0.2, 0.5).tolist() == [1, 1]


@pytest.mark.parametrize(("method", "pairs"), [("coordinate", 1), ("nes", 36), ("nes", 5)])
def test_estimated_jacobian_of_a_linear_model(linear, method, pairs):
    """Exact from a complete set of directions, at the edges of the pixel range too."""
    oracle = oracle_of(linear, "score")
    gradients = EstimatedGradients(oracle, method, pairs, True, 0.1)
    classes = torch.arange(linear.classes).expand(len(linear.x), -1)
    for x in (linear.x, 0.9 * linear.x + 0.05):
        jacobian, logits = gradients.jacobian(x, classes, oracle.ids)
        correct = logits.argmax(1) == linear.y
        expected = linear.defense.weight.expand(len(linear.x), -1, -1)
        assert torch.allclose(jacobian.flatten(2)[correct], expected[correct], atol=1e-4)


def test_estimate_improves_from_point_to_point():
    """Without a complete start, each estimate adds what its directions see to the one before."""
    defense = LinearDefense()
    x = images(1, 3).expand(4, -1, -1, -1).contiguous()
    problem = Problem(defense, x, defense.logits(x).argmax(1), 5, (x[:0], torch.zeros(0, dtype=torch.int64)))
    oracle = oracle_of(problem, "score")
    gradients = EstimatedGradients(oracle, "nes", 6, False, 0.1)
    classes = torch.arange(5).expand(4, -1)
    errors = []
    for _ in range(12):
        jacobian, _ = gradients.jacobian(x, classes, oracle.ids)
        errors.append(float((jacobian.flatten(2) - defense.weight).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_estimated_gradient_follows_the_loss(prototypes):
    oracle, exact = oracle_of(prototypes, "score"), oracle_of(prototypes)
    gradients = EstimatedGradients(oracle, "coordinate", 1, True, 0.01)
    estimate, _ = gradients.gradient(prototypes.x, prototypes.y, wrong_odds, oracle.ids)
    expected, _ = exact.gradient(prototypes.x, prototypes.y, wrong_odds, exact.ids)
    assert torch.allclose(estimate, expected, rtol=0.02, atol=0.02)


def test_unknown_method_of_estimation_is_the_users_error(linear):
    with pytest.raises(UserError, match="did you mean 'nes'"):
        ATTACKS["bim_ge"](oracle_of(linear, "score"), linear.x, linear.y, method="ness")
