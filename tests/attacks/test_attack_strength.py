"""How near each attack comes to the exact optimum inside the pixel box, on classifiers where that is known."""

from dataclasses import replace

import pytest
import torch
from attack_problems import ATTACKS, CASES, SHORT, SmallNet, on_problems, run, stretched
from exact_optimum import relu_net_optimum

from bench.contracts.cards import card_of

# Largest median and largest single ratio of the distance found to the optimum, with default parameters but for
# `PARAMETERS`. What an attack is by design sets its own: noise has no direction, Latent Descent walks towards a
# prototype and not a boundary.
FACTORS = {
    ("apgd_ce", "L2"): (1.01, 1.2),
    ("apgd_ce", "Linf"): (1.01, 1.2),
    ("apgd_dlr", "L2"): (1.02, 1.35),
    ("apgd_dlr", "Linf"): (1.02, 1.35),
    ("apgd_t", "L2"): (1.01, 1.1),
    ("apgd_t", "Linf"): (1.01, 1.1),
    ("bim", "L2"): (1.03, 1.3),
    ("bim", "Linf"): (1.06, 1.4),
    ("boundary", "L2"): (1.1, 1.6),
    ("cw", "L2"): (1.03, 1.2),
    ("ddn", "L2"): (1.01, 1.15),
    ("deepfool", "L2"): (1.002, 1.2),
    ("deepfool", "Linf"): (1.01, 1.4),
    ("ead", "L1"): (1.04, 1.6),
    ("eot_pgd", "L2"): (1.02, 1.2),
    ("eot_pgd", "Linf"): (1.02, 1.2),
    ("fab", "L2"): (1.002, 1.15),
    ("fab", "Linf"): (1.01, 1.1),
    ("fgm", "L2"): (1.12, 4),
    ("fgsm", "Linf"): (1.12, torch.inf),
    ("fmn", "Linf"): (1.02, 1.2),
    ("gaussian_noise", "L2"): (2.8, 4),
    ("hopskipjump", "L2"): (1.1, 1.6),
    ("hopskipjump", "Linf"): (1.1, 1.6),
    ("latent_descent", "L2"): (1.7, 2),
    ("mim", "Linf"): (1.06, 1.4),
    ("pgd", "L2"): (1.03, 1.25),
    ("pgd", "Linf"): (1.03, 1.3),
    ("pointwise", "L0"): (2, 4),
    ("pointwise", "L2"): (2.8, 4),
    ("pointwise_10x", "L0"): (1.2, 2),
    ("pointwise_10x", "L2"): (2.3, 3),
    ("salt_and_pepper", "L0"): (2.6, 4),
    ("sigma_zero", "L0"): (1.1, 1.5),
    ("sparse_rs", "L0"): (1, 1.4),
    ("square", "L2"): (1.2, 1.5),
    ("square", "Linf"): (1.06, 1.8),
    ("unrolled_pgd", "L2"): (1.02, 1.2),
    ("unrolled_pgd", "Linf"): (1.02, 1.2),
    ("vfga", "L0"): (1.1, 1.5),
}

PARAMETERS = {"boundary": {"steps": 1500}, "hopskipjump": {"steps": 15}}
MINIMAL = [(name, norm) for name, norm in CASES if "minimal" in card_of(ATTACKS[name]).kinds]


def factors(name, norm):
    """Estimated gradients are held to the standard of true ones, but for single samples of DeepFool's few steps."""
    median, worst = FACTORS.get((name.removesuffix("_ge"), norm), (torch.inf, torch.inf))
    return (median, 1.4 * worst) if name == "deepfool_ge" else (median, worst)


@pytest.mark.parametrize(("problem", "name", "norm"), on_problems(MINIMAL, "prototypes", "linear"))
def test_comes_near_the_optimum_but_never_below(problems, problem, name, norm):
    outcome = run(problems[problem], name, norm, **PARAMETERS.get(name, {}))
    ratio = outcome.distance / problems[problem].optimum(norm)
    median, worst = factors(name, norm)
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


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_hands_in_what_it_found(prototypes, name, norm):
    """The candidates are the closest adversarials, up to the stretch that the engine tries."""
    outcome = run(prototypes, name, norm, **SHORT.get(name, {}))
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
