"""How near each attack comes to the exact optimum inside the pixel box, on classifiers where that is known."""

from dataclasses import replace

import pytest
import torch
from attack_problems import ATTACKS, CASES, SmallNet, on_problems, run, short, stretched
from exact_optimum import relu_net_optimum

from bench.contracts.cards import card_of

PARAMETERS = {"boundary": {"steps": 1500}, "hopskipjump": {"steps": 15}}
"""Fewer steps than by default, which reach the bound on the strength as well."""
MINIMAL = [(name, norm) for name, norm in CASES if "minimal" in card_of(ATTACKS[name]).kinds]


@pytest.mark.parametrize(("name", "norm"), MINIMAL)
def test_the_card_of_a_minimal_attack_bounds_its_strength_in_every_norm(name, norm):
    assert norm in card_of(ATTACKS[name]).approximation_ratio, (
        f"attack {name!r} states no approximation_ratio for {norm}: write the largest median and the largest single "
        "ratio of the distance found to the optimum, or infinity twice if it promises nothing"
    )


@pytest.mark.parametrize(("problem", "name", "norm"), on_problems(MINIMAL, "prototypes", "linear"))
def test_comes_near_the_optimum_but_never_below(problems, problem, name, norm):
    outcome = run(problems[problem], name, norm, **PARAMETERS.get(name, {}))
    ratio = outcome.distance / problems[problem].optimum(norm)
    median, worst = card_of(ATTACKS[name]).approximation_ratio[norm]
    assert ratio.min() >= 1 - 1e-5
    assert ratio.median() <= median
    assert ratio.max() <= worst


BEST = {
    "L0": ["sigma_zero", "sparse_rs", "pointwise_10x"],
    "L2": ["ddn", "deepfool", "apgd_t", "fab"],
    "Linf": ["fmn", "deepfool", "apgd_t", "fab"],
}
"""The strongest attacks of each norm."""


def nearest(problem, norm):
    """The per-sample minimum over the strongest attacks, FAB with more random starts than by default."""
    parameters = {"fab": {"restarts": 5}}
    return torch.stack([run(problem, name, norm, **parameters.get(name, {})).distance for name in BEST[norm]]).amin(0)


@pytest.mark.parametrize("problem", ["linear", "prototypes"])
@pytest.mark.parametrize("norm", BEST)
def test_the_best_attack_of_a_norm_reaches_the_optimum(problems, problem, norm):
    ratio = nearest(problems[problem], norm) / problems[problem].optimum(norm)
    assert (ratio <= 1.01).double().mean() >= 0.95


def test_the_best_attack_reaches_the_optimum_of_a_relu_net(relu_net):
    net = relu_net.defense
    weights = [t.double().numpy() for t in (net.hidden.weight, net.hidden.bias, net.output.weight, net.output.bias)]
    images = relu_net.x.double().flatten(1).numpy()
    exact = [relu_net_optimum(*weights, label, x) for x, label in zip(images, relu_net.y.tolist(), strict=True)]
    ratio = nearest(relu_net, "Linf") / torch.tensor(exact, dtype=torch.float64)
    assert ratio.min() >= 1 - 1e-5
    assert (ratio <= 1.01).double().mean() >= 0.95


@pytest.mark.parametrize("problem", ["linear", "prototypes"])
@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize(("share", "samples"), [(0.99, 1), (1.1, 8)])
def test_strongest_breaks_what_the_ball_just_holds(problems, problem, norm, share, samples):
    """The optimum of each sample is known, and 1.1 is the worst ratio that the card of `apgd_t` states."""
    whole = problems[problem]
    for i, optimum in enumerate(whole.optimum(norm)[:samples].tolist()):
        alone = replace(whole, x=whole.x[i : i + 1], y=whole.y[i : i + 1], optima={})
        assert bool(run(alone, "strongest", norm, epsilon=share * optimum, rounds=1).found) == (share > 1)


def test_strongest_spends_further_rounds_on_samples_near_the_boundary_only(prototypes):
    """In a ball in which no sample is broken. Each round takes twice the steps of the last, from twice the starts."""
    epsilon = 0.5 * float(prototypes.optimum("L2").min())
    none, few, all_of_them = (
        run(prototypes, "strongest", "L2", epsilon=epsilon, steps=5, rounds=rounds, reach=reach).forwards
        for rounds, reach in ((0, 0.5), (2, 1e-9), (2, 10.0))
    )
    losses, ranking = 4, 2
    rounds = [losses * starts * (1 + steps + 1) for starts, steps in ((1, 5), (2, 10), (4, 20))]
    assert (none == ranking + rounds[0]).all()
    assert torch.equal(none, few)
    assert (all_of_them == ranking + sum(rounds)).all()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_hands_in_what_it_found(prototypes, name, norm):
    """The candidates are the closest adversarials, up to the stretch that the engine tries."""
    outcome = run(prototypes, name, norm, **short(name))
    candidates = outcome.candidates if outcome.candidates.ndim == 4 else outcome.candidates[0]
    wrong = prototypes.defense.logits(stretched(prototypes, outcome)).argmax(1) != prototypes.y
    assert candidates.shape == prototypes.x.shape
    assert wrong[outcome.found].all()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "pgd_ge")) for n in ATTACKS if n.endswith("_ge")],
)
@pytest.mark.parametrize("problem", ["prototypes", "small_net"])
def test_few_random_directions_do_as_well_as_all_coordinates(problems, problem, name):
    """NES that corrects the last estimate stays within 1.05 of coordinate-wise differences, at fewer queries."""
    for norm in card_of(ATTACKS[name]).norms:
        nes = run(problems[problem], name, norm, samples=12, pairs=2)
        full = run(problems[problem], name, norm, samples=12, method="coordinate")
        assert nes.distance.median() <= 1.05 * full.distance.median()
        assert nes.forwards.mean() <= full.forwards.mean()


def test_gradient_estimation_with_several_step_sizes_keeps_the_best(small_net):
    """A step too small to cross a level of brightness sees no gradient; three times it does."""

    class Posterised(SmallNet):
        def logits(self, x):
            return super().logits((x * 4).round() / 4)

    net = Posterised()
    net.load_state_dict(small_net.defense.state_dict())
    correct = net.logits(small_net.x).argmax(1) == small_net.y
    problem = replace(small_net, defense=net.eval(), x=small_net.x[correct][:8], y=small_net.y[correct][:8])
    one, three = (run(problem, "fgm_ge", "L2", method="coordinate", estimation_step=0.03, step_sizes=n) for n in (1, 3))
    assert (three.distance <= one.distance).all()
    assert three.distance.median() < one.distance.median()


@pytest.mark.parametrize(("name", "norm", "parameters"), [
    ("bim", "L2", {"binary_search_steps": 6}),
    ("bim", "Linf", {"binary_search_steps": 6}),
    ("mim", "Linf", {"binary_search_steps": 6}),
    ("pgd", "L2", {"steps": 20, "relative_step_size": 0.2, "binary_search_steps": 6}),
    ("pgd", "Linf", {"steps": 20, "relative_step_size": 0.2, "binary_search_steps": 6}),
    ("fgm", "L2", {"num_scales": 25}),
    ("fgsm", "Linf", {"num_scales": 25}),
])  # fmt: skip
def test_smaller_budgets_stay_within_a_tenth(small_net, name, norm, parameters):
    small, reference = run(small_net, name, norm, **parameters), run(small_net, name, norm)
    assert small.distance.median() <= 1.1 * reference.distance.median()
    assert small.forwards.mean() <= 0.8 * reference.forwards.mean()
