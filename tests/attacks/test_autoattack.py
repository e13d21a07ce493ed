"""The adapters on pyautoattack against the library's own calls, on the same net."""

from dataclasses import replace

import pytest
import torch
from attack_problems import LinearDefense, Problem, run
from pyautoattack.autoattack import AutoAttack
from pyautoattack.fab_pt import FABAttack_PT

from attacks.autoattack import PROBABILITIES, RANDOMIZED, SQUARE_BREAKS, ZERO_GRADIENTS, possible
from bench.contracts.errors import UserError
from bench.contracts.norms import NORMS

ALL = ["apgd-ce", "apgd-t", "fab-t", "square"]


def broken_by_the_library(problem, norm, epsilon):
    """What the standard ensemble breaks, without Square: nothing that it would add here is worth its 5000 queries."""
    library = AutoAttack(
        problem.defense.layers, attacks=ALL[:3], version="custom", norm=norm, eps=epsilon, seed=0, device="cpu"
    )
    found = torch.zeros(len(problem.x), dtype=torch.bool)
    library.apgd.n_restarts = 1
    for name in (library.apgd, library.apgd_targeted, library.fab):
        library.fab.targeted, library.fab.n_restarts = True, 1
        found |= problem.defense.logits(name.perturb(problem.x, problem.y)).argmax(1) != problem.y
    return found


@pytest.mark.parametrize(("norm", "epsilon"), [("L2", 0.5), ("Linf", 0.1)])
def test_autoattack_breaks_what_the_library_breaks_and_no_less_than_pgd(small_net, norm, epsilon):
    with torch.random.fork_rng():
        theirs = broken_by_the_library(small_net, norm, epsilon)
    ours = run(small_net, "autoattack", norm, epsilon=epsilon, queries=20)
    assert 0 < theirs.sum() < len(theirs)
    assert torch.equal(ours.found, theirs)
    assert ours.found.sum() >= run(small_net, "pgd", norm, epsilon=epsilon).found.sum()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_fab_is_at_least_as_near_as_the_library_and_deepfool(small_net, norm):
    """At the library's own settings for untargeted FAB: all classes' derivatives, 100 steps from the clean image."""
    library = FABAttack_PT(small_net.defense.layers, norm=norm, n_iter=100, device="cpu")
    theirs = NORMS[norm].distance(library.attack_single_run(small_net.x, small_net.y), small_net.x)
    ours = run(small_net, "fab", norm, restarts=1)
    assert ours.found.all()
    assert ours.distance.median() <= theirs.median()
    assert ours.distance.mean() <= theirs.mean()
    assert ours.distance.median() <= run(small_net, "deepfool", norm).distance.median()


def test_random_starts_cannot_lose(small_net):
    one, two = (run(small_net, "fab", "Linf", steps=10, restarts=n, samples=8) for n in (1, 2))
    assert (two.distance <= one.distance * 1.001).all()


@pytest.mark.parametrize("version", ["standard", "rand"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_leave_out_what_is_not_defined_for_them(version, classes):
    defense = LinearDefense(classes=classes)
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    problem = Problem(defense, x, defense.logits(x).argmax(1), classes, (x[:0], torch.zeros(0, dtype=torch.int64)))
    for norm, epsilon, breaks in (("L2", 0.001, False), ("Linf", 0.8, True)):
        outcome = run(problem, "autoattack", norm, epsilon=epsilon, version=version, queries=5)
        assert outcome.found.all() == breaks


def test_the_members_of_the_ensemble():
    assert possible("standard", classes=10, norm="Linf", side=28) == ALL
    assert possible("standard", classes=3, norm="Linf", side=4) == ["apgd-ce", "fab-t", "square"]
    assert possible("standard", classes=10, norm="L2", side=4) == ALL[:3]
    assert possible("rand", classes=10, norm="L2", side=28) == ["apgd-ce", "apgd-dlr"]
    assert possible("rand", classes=2, norm="L2", side=28) == ["apgd-ce"]


def test_an_unknown_version_is_refused(linear):
    with pytest.raises(UserError, match="attack 'autoattack': unknown version 'standart'; did you mean 'standard'"):
        run(linear, "autoattack", "L2", version="standart")


def test_what_was_found_survives_the_budget(linear):
    """The first member's adversarials count although the second one runs out of budget."""
    outcome = run(linear, "autoattack", "L2", epsilon=float(linear.optimum("L2").median()) * 1.1, budget=300)
    assert outcome.found.any()
    assert not outcome.found.all()
    assert (outcome.forwards + outcome.backwards <= 302).all()


def test_it_is_silent_but_remarks_on_vanished_gradients(capfd):
    """And the global generator is as it was."""
    net = LinearDefense()
    flat = Problem(net, torch.rand(2, 1, 6, 6), torch.zeros(2, dtype=torch.int64), 5, (torch.empty(0), torch.empty(0)))
    net.weight, net.bias = torch.zeros_like(net.weight), torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    state = torch.get_rng_state()
    outcome = run(flat, "autoattack", "Linf", epsilon=0.1, queries=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert ZERO_GRADIENTS in outcome.remarks
    assert capfd.readouterr() == ("", "")


def test_it_remarks_on_probabilities_and_on_randomness_and_on_nothing_sound(small_net):
    assert run(small_net, "autoattack", "Linf", epsilon=0.1, queries=5, samples=4).remarks == []

    class Strange(LinearDefense):
        def logits(self, x, rng=None):
            noise = 0 if rng is None else 0.01 * rng.normal((self.bias.shape[0],))
            return super().logits(x).softmax(1) + noise

    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    for randomized, remark in ((False, PROBABILITIES), (True, RANDOMIZED)):
        defense = Strange()
        defense.card = replace(defense.card, randomized=randomized)
        problem = Problem(defense, x, defense.logits(x).argmax(1), 5, (x[:0], torch.zeros(0, dtype=torch.int64)))
        assert run(problem, "autoattack", "Linf", epsilon=0.1, queries=5).remarks == [remark]


def test_it_remarks_where_square_breaks_what_gradients_did_not():
    class Quantized(LinearDefense):
        def logits(self, x):
            return super().logits((4 * x).round() / 4)

    defense = Quantized()
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    problem = Problem(defense, x, defense.logits(x).argmax(1), 5, (x[:0], torch.zeros(0, dtype=torch.int64)))
    remarks = run(problem, "autoattack", "Linf", epsilon=0.1, queries=50).remarks
    assert {ZERO_GRADIENTS, SQUARE_BREAKS} == set(remarks)
