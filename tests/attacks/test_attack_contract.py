"""What every attack owes the engine, whatever its method."""

from dataclasses import replace

import pytest
import torch
from attack_problems import ATTACKS, CASES, OneGradient, Problem, on_problems, run, short

from bench.contracts.cards import DefenseCard, card_of
from bench.contracts.chunk import Chunk
from bench.contracts.norms import NORMS, within
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Resources, Terms

OWN_CASES = [(name, norm) for name, norm in CASES if not card_of(ATTACKS[name]).library]
BOUNDED = [(name, norm) for name, norm in CASES if "bounded" in card_of(ATTACKS[name]).kinds]


def check_chunks(problem, name, norm, samples, same_queries, **parameters):
    """Statuses agree, distances within 1 %, and queries but for rounding.

    Rounding turns a long random walk into another one that ends as near, after another number of steps: there only the
    result is compared.
    """
    whole = run(problem, name, norm, chunk=64, samples=samples, **parameters)
    for chunk in (1, 7):
        parts = run(problem, name, norm, chunk=chunk, samples=samples, **parameters)
        assert torch.equal(parts.found, whole.found)
        apart = (parts.distance - whole.distance)[whole.found].abs() > 0.01 * whole.distance[whole.found]
        # 99 % of fewer than 100 samples: all of them.
        assert not apart.any()
        if same_queries:
            queries, expected = parts.forwards + parts.backwards, whole.forwards + whole.backwards
            assert (queries - expected).abs().mean() <= 0.05 * expected.mean()


@pytest.mark.parametrize(("name", "norm"), OWN_CASES)
def test_the_chunk_does_not_matter(problems, name, norm):
    needs_more = card_of(ATTACKS[name]).access == "latent"
    check_chunks(problems["prototypes" if needs_more else "small_net"], name, norm, 9, True, **short(name))


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "name", "norm"), on_problems(OWN_CASES, "prototypes", "small_net"))
def test_the_chunk_does_not_matter_to_any_sample(problems, problem, name, norm):
    check_chunks(problems[problem], name, norm, 16, name != "boundary")


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_seed_fixes_the_result(prototypes, name, norm):
    first, second = (run(prototypes, name, norm, seed=3, samples=8, **short(name)) for _ in range(2))
    assert torch.equal(first.candidates, second.candidates)
    assert torch.equal(first.forwards, second.forwards)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_only_stochastic_attacks_depend_on_the_seed(prototypes, name, norm):
    if name == "fab":
        pytest.skip("its second start is random, but counts only where it ends nearer than the first")
    first, second = (run(prototypes, name, norm, seed=seed, **short(name)) for seed in (3, 4))
    one_gradient = name in ("fgm_ge", "fgsm_ge")  # its estimate is coordinate-wise
    from_the_pool = name == "brendel_bethge" and norm != "L0"  # it draws only where no training image is adversarial
    if card_of(ATTACKS[name]).stochastic and not one_gradient and not from_the_pool:
        assert not torch.equal(first.candidates, second.candidates)
    else:
        assert torch.equal(first.candidates, second.candidates)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_candidates_are_perturbed_images(problems, name, norm):
    """In [0, 1], finite, and never the clean image."""
    outcome = run(problems["prototypes"], name, norm, **short(name))
    pixels = outcome.candidates.flatten(1)
    assert ((pixels >= 0) & (pixels <= 1)).all()
    assert (pixels != problems["prototypes"].x.flatten(1)).any(1).all()


@pytest.mark.parametrize(("name", "norm"), BOUNDED)
@pytest.mark.parametrize("share", [0.9, 1.5])
def test_bounded_attacks_fill_the_ball_and_stay_inside(linear, name, norm, share):
    """Below the optimum of a sample nothing is found; at one and a half times it, everything."""
    optimum = linear.optimum(norm)
    for i in range(0, 16, 5):
        alone = Problem(linear.defense, linear.x[i : i + 1], linear.y[i : i + 1], linear.classes, linear.pool)
        epsilon = share * float(optimum[i])
        outcome = run(alone, name, norm, epsilon=epsilon, **short(name))
        assert bool(outcome.found) == (share > 1)
        assert within(NORMS[norm].distance(outcome.candidates, alone.x), epsilon).all()


@pytest.mark.parametrize("epsilon", [1 / 255, 8 / 255, 0.3])
@pytest.mark.parametrize(("name", "norm"), BOUNDED)
def test_the_ball_holds_in_floating_point(linear, name, norm, epsilon):
    outcome = run(linear, name, norm, epsilon=epsilon, **short(name))
    assert within(NORMS[norm].distance(outcome.candidates, linear.x), epsilon).all()


@pytest.mark.parametrize(("name", "norm"), BOUNDED)
def test_in_a_ball_of_radius_zero_there_is_the_clean_image_alone(linear, name, norm):
    outcome = run(linear, name, norm, epsilon=0.0, samples=2, **short(name))
    assert torch.equal(outcome.candidates, linear.x[:2])
    assert not outcome.found.any()


@pytest.mark.parametrize("budget", [1, 10, 60])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_small_budget_is_kept(prototypes, name, norm, budget):
    """The last query a sample can pay may overdraw its budget, by the largest query: a Jacobian or one estimate."""
    largest = 2 * prototypes.x[0].numel() + 1
    outcome = run(prototypes, name, norm, budget=budget, samples=8, **short(name))
    passes = outcome.forwards + outcome.backwards
    assert (passes <= budget + largest).all()
    assert torch.isfinite(outcome.candidates).all()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_cards_budget_holds_the_default_parameters(prototypes, name, norm):
    outcome = run(prototypes, name, norm, **short(name))
    assert (outcome.forwards + outcome.backwards < card_of(ATTACKS[name]).budget).all()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_transfer_has_something_to_try_where_the_substitute_errs_on_the_clean_image(prototypes, norm):
    x, y = prototypes.x[:4], prototypes.y[:4]
    chunk = Chunk(x, y, range(4), prototypes.classes)
    terms = Terms("transfer", ThreatModel(norm), budget=200, batch_size=64)
    streams = chunk.streams(0, "attack"), chunk.streams(0, "queries")
    resources = Resources(transferred=lambda source: x.clone())
    oracle = DefenseOracle(prototypes.defense, chunk, terms, *streams, resources)
    candidates = ATTACKS["transfer"](oracle, x, y)
    assert (candidates != x).flatten(1).any(1).all()


class Hooked(OneGradient):
    """A defense that counts, apart from the oracle, the images that pass through it forwards and backwards."""

    def __init__(self, defense):
        self.defense, self.card, self.forwards, self.backwards = defense, defense.card, 0, 0

    def logits(self, x):
        self.forwards += len(x)
        logits = self.defense.logits(x)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient):
        self.backwards += len(gradient)

    def reconstruct(self, x, y):
        self.forwards += len(x)
        return self.defense.reconstruct(x, y)

    def to(self, device):
        return self


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_oracle_counts_what_a_hook_on_the_model_counts(prototypes, name, norm):
    """Totals; in a chunk of one they are the sample's own. Queries of a substitute are not counted."""
    for samples in (1, 6):
        hooked = Hooked(prototypes.defense)
        problem = replace(prototypes, defense=hooked)
        outcome = run(problem, name, norm, samples=samples, substitute=prototypes.defense, **short(name))
        assert outcome.forwards.sum() == pytest.approx(hooked.forwards)
        assert outcome.backwards.sum() == pytest.approx(hooked.backwards)


class Stubborn(OneGradient):
    """A defense that nothing fools, with logits whose derivative vanishes."""

    card = DefenseCard(name="stubborn", datasets=("random",))

    def logits(self, x):
        return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1)[:, :2]

    def reconstruct(self, x, y):
        return torch.full_like(x, 0.5)

    def to(self, device):
        return self


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_defense_without_gradient_gets_a_perturbed_failure(name, norm):
    """No sample is broken, and none is handed back unperturbed, which would count as a violation."""
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    problem = Problem(Stubborn(), x, torch.zeros(3, dtype=torch.int64), 2, (x, torch.ones(3, dtype=torch.int64)))
    outcome = run(problem, name, norm, **short(name))
    assert not outcome.found.any()
    assert torch.isfinite(outcome.candidates).all()
    assert (outcome.candidates != x).flatten(1).any(1).all()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_color_images(name, norm):
    """Three channels: L0 counts pixels, not values."""
    weight = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))

    class Color(Stubborn):
        def logits(self, x):
            return x.flatten(1) @ weight.T

    x = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    problem = Problem(Color(), x, Color().logits(x).argmax(1), 3, (x, Color().logits(x).argmax(1)))
    outcome = run(problem, name, norm, **short(name))
    if card_of(ATTACKS[name]).access != "latent":
        assert outcome.found.all()
    assert outcome.candidates.shape == x.shape
