"""In the full matrices no defense is spared an attack, and no attack has a small budget without a word."""

import pytest

from bench.planning.files import build_matrix, read_matrix
from bench.plugins.registry import Registry

FULL = ["mnist", "mnist-variants", "fashion-mnist", "digits-full"]
REFERENCE = ["apgd_ce", "apgd_t", "fab", "ddn", "pointwise_10x", "boundary"]
"""Attacks that get their default budget on every deterministic defense, also where an answer is dear."""
DEAR = {"abs", "binary_abs"}
"""Deterministic defenses whose every score is a whole search."""
LEAST = 500
"""Passes that the other cells get at least."""


@pytest.fixture(scope="module")
def registry():
    return Registry()


@pytest.fixture(params=FULL)
def matrix(request, registry):
    return build_matrix(*read_matrix(request.param), registry)


def entries_on(matrix, label):
    return [entry for entry in matrix.attacks if label in matrix.attacked_by(entry)]


def cards(registry):
    return [registry.get("attacks", name).attack_card for name in registry.names("attacks")]


def test_every_defense_meets_every_attack_in_every_norm_of_the_matrix(matrix, registry):
    wanted = {(card.name, norm) for card in cards(registry) for norm in card.norms if norm in matrix.thresholds}
    for label in matrix.labels:
        met = {
            (entry.name, norm)
            for entry in entries_on(matrix, label)
            for norm in matrix.norms_of(entry, registry.get("attacks", entry.name).attack_card)
        }
        assert met == wanted, label


def test_budgets_are_the_attacks_own_or_large(matrix, registry):
    for entry in matrix.attacks:
        card = registry.get("attacks", entry.name).attack_card
        budget = entry.budget or card.budget
        for label in matrix.attacked_by(entry):
            randomized = registry.get("defenses", label).defense_card.randomized
            if entry.name in REFERENCE and not randomized:
                assert budget >= card.budget, (entry.label, label)
                assert not entry.parameters, (entry.label, label)
            elif not randomized and label not in DEAR and not entry.name.endswith("_ge"):
                assert entry.budget is None, (entry.label, label)
            else:
                assert budget >= min(LEAST, card.budget), (entry.label, label)


def test_each_starts_from_others_and_goes_through_the_optimization(matrix):
    for label in matrix.labels:
        found = {entry.label: entry for entry in entries_on(matrix, label)}
        assert found["brendel_bethge:refined"].start
        assert found["unrolled_pgd:bounded"].bounded


def test_the_small_one_has_the_defenses_and_thresholds_of_the_default_run(registry):
    small, default = (build_matrix(*read_matrix(name), registry) for name in ("digits-full", "digits"))
    assert small.labels == default.labels
    assert small.thresholds == default.thresholds


def test_the_matrices_of_mnist_and_fashion_mnist_have_the_same_eleven_defenses(registry):
    mnist, fashion = (build_matrix(*read_matrix(name), registry) for name in ("mnist", "fashion-mnist"))
    assert mnist.defenses == fashion.defenses
    assert len(mnist.defenses) == 11
    assert {entry.label for entry in mnist.defenses if entry.samples == 50} == {
        entry.label for entry in mnist.defenses if registry.get("defenses", entry.label).defense_card.randomized
    }
