"""The attacks written here against foolbox's, on the same net, at no more passes: medians at most 1.05 times theirs."""

import foolbox
import pytest
from attack_problems import run
from foolbox_attacks import LADDER, SALT_AND_PEPPER, foolbox_distances


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
