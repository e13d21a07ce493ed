"""The attacks written here against foolbox's, on the same net, at no more passes: medians at most 1.05 times theirs."""

import foolbox
import pytest
import torch
from attack_problems import run
from foolbox_attacks import LADDER, SALT_AND_PEPPER, foolbox_distances
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.square import SquareAttack

GRID = [0.01 * k for k in range(1, 101)]
"""The half-widths of uniform noise."""


def distances(problem, attack, norm, epsilons=None):
    return foolbox_distances(problem.defense, problem.x, problem.y, attack, norm, epsilons)


@pytest.mark.parametrize(("name", "norm", "theirs", "epsilons"), [
    ("deepfool", "L2", foolbox.attacks.L2DeepFoolAttack(), None),
    ("deepfool", "Linf", foolbox.attacks.LinfDeepFoolAttack(), None),
    ("fgm", "L2", foolbox.attacks.L2FastGradientAttack(), LADDER),
    ("fgsm", "Linf", foolbox.attacks.LinfFastGradientAttack(), LADDER),
    ("bim", "L2", foolbox.attacks.L2BasicIterativeAttack(), LADDER),
    ("bim", "Linf", foolbox.attacks.LinfBasicIterativeAttack(), LADDER),
    ("mim", "Linf", foolbox.attacks.LinfMomentumIterativeFastGradientMethod(steps=10), LADDER),
    ("pgd", "L2", foolbox.attacks.L2PGD(steps=20, rel_stepsize=1 / 8), LADDER),
    ("pgd", "Linf", foolbox.attacks.LinfPGD(steps=20, rel_stepsize=1 / 8), LADDER),
    ("ddn", "L2", foolbox.attacks.DDNAttack(steps=300), None),
    ("cw", "L2", foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=150, stepsize=0.05), None),
    ("ead", "L1", foolbox.attacks.EADAttack(binary_search_steps=9, steps=300, decision_rule="L1"), None),
    ("fmn", "Linf", foolbox.attacks.LInfFMNAttack(steps=300), None),
    ("uniform_noise", "Linf", foolbox.attacks.LinfRepeatedAdditiveUniformNoiseAttack(repeats=10), GRID),
])  # fmt: skip
def test_at_least_as_strong(small_net, name, norm, theirs, epsilons):
    ours = run(small_net, name, norm).distance
    assert ours.median() <= 1.05 * distances(small_net, theirs, norm, epsilons).median()


def test_gaussian_noise_is_at_least_as_strong(small_net):
    theirs = foolbox.attacks.L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack(repeats=10)
    expected = distances(small_net, theirs, "L2", [0.08 * k for k in range(1, 101)])
    assert run(small_net, "gaussian_noise", "L2").distance.median() <= 1.05 * expected.median()


def test_salt_and_pepper_is_at_least_as_strong(small_net):
    """Means, since a median of a few pixels is too coarse."""
    expected = distances(small_net, foolbox.attacks.SaltAndPepperNoiseAttack(steps=700), "L0")
    assert run(small_net, "salt_and_pepper", "L0").distance.mean() <= 1.05 * expected.mean()


@pytest.mark.parametrize(("norm", "constraint"), [("L2", "l2"), ("Linf", "linf")])
def test_hopskipjump_at_the_same_steps(small_net, norm, constraint):
    """Of as many random directions each. Foolbox normalizes its gradients by the batch's length: one by one."""
    alone = foolbox.attacks.HopSkipJumpAttack(steps=8, initial_gradient_eval_steps=50, constraint=constraint)
    expected = torch.cat([
        foolbox_distances(small_net.defense, small_net.x[i : i + 1], small_net.y[i : i + 1], alone, norm)
        for i in range(12)
    ])  # fmt: skip
    ours = run(small_net, "hopskipjump", norm, steps=8, samples=12).distance
    assert ours.mean() <= 1.05 * expected.mean()


@pytest.mark.slow
def test_boundary_at_the_same_steps(small_net):
    """From foolbox's own start, blended noise, and with its longer queues."""
    theirs = foolbox.attacks.BoundaryAttack(steps=1000)
    expected = distances(small_net, theirs, "L2")
    assert run(small_net, "boundary", "L2", steps=1000).distance.median() <= expected.median()


@pytest.mark.slow
def test_pointwise_from_any_start(small_net):
    theirs = foolbox.attacks.PointwiseAttack(init_attack=SALT_AND_PEPPER)
    for norm in ("L0", "L2"):
        expected = distances(small_net, theirs, norm)
        assert run(small_net, "pointwise_10x", norm).distance.median() <= 1.05 * expected.median()


@pytest.mark.parametrize(("norm", "epsilon"), [("L2", 0.35), ("L2", 0.5), ("Linf", 0.06), ("Linf", 0.1)])
@pytest.mark.parametrize(("name", "theirs"), [
    ("apgd_ce", lambda net, **ball: APGDAttack(net, n_iter=100, loss="ce", **ball)),
    ("apgd_dlr", lambda net, **ball: APGDAttack(net, n_iter=100, loss="dlr", **ball)),
    ("apgd_t", lambda net, **ball: APGDAttack_targeted(net, n_iter=100, n_target_classes=9, **ball)),
])  # fmt: skip
def test_apgd_succeeds_as_often_as_autoattacks(small_net, name, theirs, norm, epsilon):
    """At the same steps; but for one sample of 40, which the random start decides about."""
    library = theirs(small_net.defense, norm=norm, eps=epsilon, seed=0, device="cpu")
    with torch.random.fork_rng():
        candidates = library.perturb(small_net.x, small_net.y)
    found = small_net.defense.logits(candidates).argmax(1) != small_net.y
    ours = run(small_net, name, norm, epsilon=epsilon, steps=100)
    assert 0 < found.sum() < len(found)
    assert ours.found.sum() >= found.sum() - 1


@pytest.mark.parametrize(("norm", "epsilon"), [("L2", 0.4), ("L2", 0.7), ("Linf", 0.1), ("Linf", 0.15)])
def test_square_succeeds_as_often_as_autoattacks(small_net, norm, epsilon):
    """At the same queries; but for one sample of 40, since both end in local optima that chance decides about."""
    with torch.random.fork_rng():
        theirs = SquareAttack(small_net.defense, norm=norm, n_queries=300, eps=epsilon)
        found = small_net.defense.logits(theirs.perturb(small_net.x, small_net.y)).argmax(1) != small_net.y
    ours = run(small_net, "square", norm, epsilon=epsilon, steps=301)
    assert ours.found.sum() >= found.sum() - 1


def test_sparse_rs_needs_fewer_pixels_than_pointwise(prototypes):
    """Means, since a median of a few pixels is too coarse."""
    ours, theirs = run(prototypes, "sparse_rs", "L0"), run(prototypes, "pointwise_10x", "L0")
    assert ours.distance.mean() <= theirs.distance.mean()
