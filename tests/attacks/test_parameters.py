"""Every parameter of an attack does something in every kind, or the card says that it does not."""

from dataclasses import replace

import pytest
import torch
from attack_problems import ATTACKS, run, short

from bench.contracts.cards import card_of
from bench.contracts.door import linearize
from bench.engine.oracle import DefenseOracle
from defenses.smoothing import RandomizedSmoothing

CHANGED = {
    "beta": 0.3,
    "binary_search_steps": 2,
    "clean_binary_search_steps": 2,
    "constant": 5.0,
    "decay": 0.2,
    "density": 0.3,
    "draws": 3,
    "eot_samples": 3,
    "start": 0.11,
    "estimation_step": 0.03,
    "full_start": False,
    "gamma": 0.2,
    "learning_rate": 0.2,
    "method": "coordinate",
    "overshoot": 0.3,
    "pairs": 3,
    "pixels": 1,
    "queries": 7,
    "radius": 3.0,
    "repetitions": 2,
    "restarts": 3,
    "num_scales": 7,
    "search_steps": 9,
    "rounds": 0,
    "searches": 2,
    "share": 0.9,
    "shrinkage": 0.1,
    "source_step": 0.1,
    "spherical_step": 0.3,
    "reach": 0.01,
    "relative_step_size": 0.13,
    "step_size": 0.13,
    "step_sizes": 2,
    "steps": 1,
    "targeting": "malt",
    "targets": 1,
    "version": "rand",
}
"""Values that no attack has by default, nor among its short parameters. Other parameters get the next value."""
HERE = {
    "apgd_t": {"binary_search_steps": 3},
    "autoattack": {"queries": 20},
    "sparse_rs": {"density": 0.5},
    "square": {"steps": 100, "share": 0.2, "binary_search_steps": 3},
}
"""What is even shorter than the cards' short parameters, or needs more than one of 36 pixels to show."""
BESIDE = {"method": {"full_start": False}, "pairs": {"full_start": False}}
"""What else must be so for a parameter to matter: gradient estimation starts with all coordinates."""


def changed(parameter, value):
    """Another value than this one of a parameter."""
    if parameter in CHANGED:
        return CHANGED[parameter]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2


CASES = [
    (name, kind, parameter)
    for name, attack in ATTACKS.items()
    for kind in card_of(attack).kinds
    for parameter in card_of(attack).parameters
]


def noted(method, note):
    """A method of the oracle that notes first what it is asked about."""
    answer = getattr(DefenseOracle, method)

    def ask(self, x, *rest):
        note(method, x)
        return answer(self, x, *rest)

    return ask


class Differs(Exception):
    """The attack asked about something else than before."""


def trace(problem, name, norm, epsilon, parameters, before=None):
    """Everything that an attack asks the oracle about and hands in. Stops where that is not what it was ``before``."""
    asked = []

    def note(what, x):
        asked.append((what, x.clone()))
        if before is not None:
            known = before[len(asked) - 1 : len(asked)]
            if not known or known[0][0] != what or not torch.equal(known[0][1], x):
                raise Differs

    with pytest.MonkeyPatch.context() as patch:
        for method in ("decision", "scores", "gradient", "jacobian", "reconstruct", "_answer_library"):
            patch.setattr(DefenseOracle, method, noted(method, note))
        note("candidates", run(problem, name, norm, epsilon=epsilon, samples=3, budget=3000, **parameters).candidates)
    return asked


@pytest.fixture(scope="module")
def traces():
    """Of the attacks with the parameters that all tests here begin with."""
    return {}


@pytest.fixture(scope="module")
def randomized(linear):
    """Some parameters matter to randomized defenses only."""

    class Smoothed(RandomizedSmoothing):
        def unrolled_gradient(self, x, rng):
            return linearize(self, x, rng, draws=1)

    defense = Smoothed(linear.defense, sigma=0.05)
    defense.card = replace(linear.defense.card, name="smoothed", randomized=True)
    return replace(linear, defense=defense)


@pytest.mark.parametrize(("name", "kind", "parameter"), CASES)
def test_a_parameter_changes_what_is_asked_or_is_declared_to_matter_elsewhere_only(
    prototypes, randomized, traces, name, kind, parameter
):
    card = card_of(ATTACKS[name])
    for norm in card.norms:
        of_draws = parameter == "eot_samples"
        problem = randomized if of_draws else prototypes
        # Some samples are broken in it and leave, the others need all of the attack.
        epsilon = None if kind == "minimal" else 1.2 * float(prototypes.optimum(norm)[:3].median())
        parameters = {**short(name), **HERE.get(name, {}), **BESIDE.get(parameter, {})}
        key = (name, kind, norm, of_draws, str(parameters))
        if key not in traces:
            traces[key] = trace(problem, name, norm, epsilon, parameters)
        value = parameters.get(parameter, card.parameters[parameter])
        argument = "start" if parameter == "epsilon" else parameter
        try:
            trace(problem, name, norm, epsilon, {**parameters, argument: changed(argument, value)}, traces[key])
            same = True
        except Differs:
            same = False
        assert same != card.matters(parameter, kind, norm), norm
