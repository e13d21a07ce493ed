"""Answers of ABS and Binary ABS from memory: near the exact ones, and as strong to attack with."""

import pytest
import torch

from bench import load_dataset, load_defense
from bench.contracts.chunk import Chunk
from bench.contracts.protocols import HasWarmAnswers
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Terms
from bench.plugins.registry import Registry
from defenses.abs.memory import CONTENDERS, EVALUATIONS, FULL_EVERY

REMEMBERING = ["abs", "binary_abs"]
"""The classifiers whose descent is long enough to go on from its end."""
N = 12


@pytest.fixture(scope="module")
def split():
    return load_dataset("digits").test


@pytest.fixture(scope="module", params=REMEMBERING)
def defense(request):
    return load_defense(request.param, dataset="digits")


def _own(y):
    return y[:, None]


def test_the_first_answer_is_exact_for_the_classes_in_contention(defense, split):
    """The logits of the others are those of their starting points, which are not larger."""
    x, y = split.images[:N], split.labels[:N]
    assert isinstance(defense, HasWarmAnswers)
    memory = defense.warm_answers(N)
    warm = memory.at(torch.arange(N), torch.stack([y, (y + 1) % 10], 1))
    logits, product = warm.input_gradient(x)
    exact, exact_product = defense.input_gradient(x)
    equal = torch.isclose(logits, exact, rtol=1e-4, atol=1e-5)
    assert (equal.sum(1) >= CONTENDERS).all()
    for named in (y, (y + 1) % 10, exact.argmax(1)):
        assert equal.gather(1, named[:, None]).all()
        weights = torch.nn.functional.one_hot(named, 10).to(logits)
        torch.testing.assert_close(product(weights), exact_product(weights), rtol=1e-3, atol=1e-5)
    assert (logits <= exact + 1e-5).all()
    assert (memory.evaluations < defense.inner_steps).all()


def test_along_an_attacks_path_answers_stay_near_the_exact_ones(defense, split):
    """Twenty steps towards other images: the error of the margin is small beside the margins."""
    x, y = split.images[:N], split.labels[:N]
    memory, every = defense.warm_answers(N), torch.arange(N)
    rivals = split.images[N : 2 * N]
    margins, exact_margins = [], []
    for step in range(20):
        z = x + step / 40 * (rivals - x)
        given = memory.at(every, _own(y)).logits(z)
        memory.settle()
        exact = defense.logits(z)
        margins.append(_margin(given, y))
        exact_margins.append(_margin(exact, y))
    error = (torch.stack(margins) - torch.stack(exact_margins)).abs()
    spread = torch.stack(exact_margins).abs().mean()
    assert error.median() <= 0.05 * spread
    agree = (torch.stack(margins) > 0) == (torch.stack(exact_margins) > 0)
    assert agree.float().mean() >= 0.95


def _margin(logits, y):
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - others


def test_reconstructions_are_those_of_the_class(defense, split):
    x, y = split.images[:N], split.labels[:N]
    memory = defense.warm_answers(N)
    given = memory.at(torch.arange(N), _own(y)).reconstruct(x, y)
    torch.testing.assert_close(given, defense.reconstruct(x, y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_search_that_goes_on_takes_few_evaluations_and_is_made_anew_at_intervals(name, split):
    defense = load_defense(name, dataset="digits")
    x, y, memory, taken = split.images[:N], split.labels[:N], defense.warm_answers(N), []
    for _ in range(FULL_EVERY + 2):
        memory.at(torch.arange(N), _own(y)).logits(x)
        memory.settle()
        taken.append(memory.evaluations.clone())
    each = torch.stack(taken).diff(dim=0, prepend=torch.zeros(1, N, dtype=torch.float64))
    full = (each >= CONTENDERS * defense.inner_steps / 10).all(1)
    assert full.nonzero()[:, 0].tolist() == [0, FULL_EVERY]
    assert (each[~full] <= 5 * EVALUATIONS).all()
    assert (each[~full] >= 4 * EVALUATIONS).all()


@pytest.mark.parametrize("name", REMEMBERING)
def test_what_is_forgotten_or_far_is_searched_anew(name, split):
    defense = load_defense(name, dataset="digits")
    x, y, memory = split.images[:N], split.labels[:N], defense.warm_answers(N)
    memory.at(torch.arange(N), _own(y)).logits(x)
    memory.settle()
    memory.forget(torch.tensor([2, 5]))
    moved = (x + 0.02).clamp(0, 1)
    moved[7] = split.images[40]
    before = memory.evaluations.clone()
    given, first = (kept.at(torch.arange(N), _own(y)).logits(moved) for kept in (memory, defense.warm_answers(N)))
    full = memory.evaluations - before >= CONTENDERS * defense.inner_steps / 10
    assert {2, 5, 7} <= set(full.nonzero()[:, 0].tolist())
    assert not full.all()
    torch.testing.assert_close(given[full], first[full], rtol=1e-4, atol=1e-5)


def test_far_decisions_are_exact_and_leave_the_memory_as_it_is(split):
    defense = load_defense("abs", dataset="digits")
    x, y, memory = split.images[:N], split.labels[:N], defense.warm_answers(N)
    every, others = torch.arange(N), split.images[N : 2 * N]
    memory.at(every, _own(y)).decide(x)
    memory.settle()
    assert torch.equal(memory.at(every, _own(y)).decide(others), defense.decide(others))
    memory.settle()
    before = memory.evaluations.clone()
    memory.at(every, _own(y)).logits(x)
    assert (memory.evaluations - before <= 5 * EVALUATIONS).all()


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_query_ages_a_sample_once_and_its_last_row_is_kept(split, parts):
    """However it is cut into batches, and however many draws it takes."""
    defense = load_defense("abs", dataset="digits")
    x, y = split.images[:2], split.labels[:2]
    samples = torch.tensor([0, 1, 0, 0, 1])
    rows = (x[samples] + 0.01 * torch.arange(5).reshape(-1, 1, 1, 1)).clamp(0, 1)
    memory, answers = defense.warm_answers(2), []
    for _ in range(3):
        for part in torch.chunk(torch.arange(5), parts):
            answers.append(memory.at(samples[part], _own(y[samples[part]])).logits(rows[part]))
        memory.settle()
    alone = defense.warm_answers(1)
    for row in (3, 3, 3):
        last = alone.at(samples[:1], _own(y[:1])).logits(rows[row : row + 1])
        alone.settle()
    torch.testing.assert_close(torch.cat(answers)[-5:][3], last[0], rtol=1e-4, atol=1e-5)


def test_answers_do_not_depend_on_other_samples_or_on_the_order_of_rows(defense, split):
    """But for the rounding of the search for starting points, which depends on the batch."""
    x, y = split.images[:N], split.labels[:N]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    whole, shuffled, alone = defense.warm_answers(N), defense.warm_answers(N), defense.warm_answers(1)
    for step in range(3):
        z = (x + 0.05 * step).clamp(0, 1)
        given = whole.at(torch.arange(N), _own(y)).logits(z)
        again = shuffled.at(order, _own(y[order])).logits(z[order])
        single = alone.at(torch.tensor([0]), _own(y[3:4])).logits(z[3:4])
        for memory in (whole, shuffled, alone):
            memory.settle()
        torch.testing.assert_close(again, given[order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single, given[3:4], rtol=1e-4, atol=1e-5)


STRONG = {
    "ddn": "L2",
    "pgd": "L2",
    "fmn": "Linf",
    "deepfool": "L2",
    "latent_descent": "L2",
    "sigma_zero": "L0",
    "boundary": "L2",
    "hopskipjump": "L2",
    "gaussian_noise": "L2",
    "salt_and_pepper": "L0",
    "pointwise": "L0",
    "pointwise_10x": "L0",
    "fab": "L2",
    "brendel_bethge": "L2",
}
"""Their norms."""
SHORTER = {
    "boundary": {"steps": 200},
    "hopskipjump": {"steps": 10},
    "brendel_bethge": {"steps": 50},
    "fab": {"restarts": 1, "targets": 3},
}


@pytest.mark.parametrize("attack", STRONG)
@pytest.mark.parametrize("name", REMEMBERING)
def test_attacks_are_as_strong_as_with_exact_answers(name, attack, split):
    """At the same parameters: the mean over 40 images is at most 3 % larger, and no claim is refuted."""
    defense = load_defense(name, dataset="digits")
    x, y = split.images[:40], split.labels[:40]
    kept = defense.logits(x).argmax(1) == y
    chunk = Chunk(x[kept], y[kept], kept.nonzero()[:, 0].tolist(), 10)
    function, card = Registry().get("attacks", attack).function, Registry().get("attacks", attack).attack_card
    parameters = SHORTER.get(attack, {})
    found, distances = {}, {}
    for warm in (True, False):
        terms = Terms(card.access, ThreatModel(STRONG[attack]), 10**6, 100, warm=warm)
        oracle = DefenseOracle(defense, chunk.copied(), terms, chunk.streams(0, "attack"), chunk.streams(0, "queries"))
        function(oracle, chunk.images.clone(), chunk.labels.clone(), **{**card.parameters, **parameters})
        found[warm], distances[warm] = oracle.found, oracle.closest_distance
        assert (defense.logits(oracle.closest(chunk.images)).argmax(1) != chunk.labels)[oracle.found].all()
    both = found[True] & found[False]
    assert both.sum() >= found[False].sum() - 1
    assert both.double().mean() > 0.6
    assert distances[True][both].mean() <= 1.03 * distances[False][both].mean()
