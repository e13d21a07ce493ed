"""The graded softmax and its calibration, against worked cases and by their properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.contracts.confidence import CONFIDENT, SCALES, Calibration, calibrate, graded_softmax

SEEDS = st.integers(0, 10_000)


def noisy_classifier(seed, images=200, classes=5, error=1.5):
    """Logits (N, K) float64 around the label's one, and labels (N,): right for most images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = 4.0 * torch.nn.functional.one_hot(labels, classes)
    return logits + error * torch.randn(images, classes, generator=generator, dtype=torch.float64), labels


def two_classes(right, wrong):
    """Images that a classifier of two classes calls 0 by a margin of 2, so many of them rightly and wrongly."""
    return torch.tensor([[1.0, -1.0]] * (right + wrong)), torch.tensor([0] * right + [1] * wrong)


def predicted_confidence(calibration, logits):
    return calibration.confidence(logits).amax(1)


# The graded softmax.


def test_the_graded_softmax_is_equation_4():
    logits = torch.tensor([[-0.02, -0.03, -1.0]])
    terms = [math.exp(440 * logit) + 3.9e-5 for logit in (-0.02, -0.03, -1.0)]
    expected = torch.tensor([[term / sum(terms) for term in terms]])
    torch.testing.assert_close(graded_softmax(logits, 440, 3.9e-5), expected)


def test_what_no_class_explains_gets_a_uniform_confidence():
    torch.testing.assert_close(graded_softmax(torch.tensor([[-1.0, -2.0]]), 440, 3.9e-5), torch.full((1, 2), 0.5))


def test_without_an_offset_it_is_the_softmax():
    logits = torch.tensor([[50.0, 49.0, -3.0], [-900.0, -901.0, -1e4]])
    torch.testing.assert_close(graded_softmax(logits, 2, 0), (2 * logits).softmax(1))


@pytest.mark.parametrize(("alpha", "eta"), [(1, 143900.0), (440, 3.9e-5), (1, 0.0)])
def test_no_logits_overflow(alpha, eta):
    logits = torch.tensor([[50.0, 0.0], [3e38, -3e38], [-3e38, -3e38], [1e5, 1e5]], requires_grad=True)
    confidence = graded_softmax(logits, alpha, eta)
    confidence[:, 0].sum().backward()
    assert confidence.isfinite().all()
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(confidence.sum(1), torch.ones(4))


@given(SEEDS, st.floats(-20, 20), st.floats(0.01, 20))
def test_confidence_in_the_predicted_class_falls_as_the_offset_grows(seed, log_eta, more):
    logits, _ = noisy_classifier(seed, images=20)
    less_sure = predicted_confidence(Calibration(1, log_eta + more), logits)
    assert (less_sure <= predicted_confidence(Calibration(1, log_eta), logits) + 1e-15).all()
    assert (less_sure >= 1 / logits.shape[1] - 1e-15).all()


# Calibration.


def test_calibration_by_hand():
    """19 of 20 right by a margin of 2: the softmax says 0.95 where exp(2 alpha) = 19. The evidences are then 19 : 1, in
    units of 19**(-1/2), and (19 + e) / (20 + 2 e) = 0.9 for an offset e = 1.25 of these units."""
    calibration = calibrate(*two_classes(right=19, wrong=1))
    assert calibration.alpha == pytest.approx(math.log(19) / 2)
    assert calibration.eta == pytest.approx(1.25 / math.sqrt(19))


def test_no_offset_where_the_median_confidence_is_low_without():
    calibration = calibrate(*two_classes(right=3, wrong=1))
    assert calibration.alpha == pytest.approx(math.log(3) / 2)
    assert calibration.eta == 0
    assert calibration.confidence(torch.tensor([[1.0, -1.0]]))[0, 0] == pytest.approx(0.75)


@settings(deadline=None)
@given(SEEDS)
def test_alpha_minimizes_the_cross_entropy_and_the_median_confidence_is_as_demanded(seed):
    logits, labels = noisy_classifier(seed)
    calibration = calibrate(logits, labels)

    def cross_entropy(factor):
        return float(torch.nn.functional.cross_entropy(factor * calibration.alpha * logits, labels))

    assert cross_entropy(1) <= min(cross_entropy(0.99), cross_entropy(1.01))
    median = predicted_confidence(calibration, logits).quantile(0.5)
    plain = predicted_confidence(Calibration(calibration.alpha, -math.inf), logits).quantile(0.5)
    assert median == pytest.approx(min(CONFIDENT, float(plain)), abs=1e-9)


@settings(deadline=None)
@given(SEEDS, st.floats(1e-4, 1e4), st.floats(-1000, 1000))
def test_scaled_and_shifted_logits_have_the_same_confidences(seed, scale, shift):
    """Also where eta itself is out of float64's range."""
    logits, labels = noisy_classifier(seed)
    calibration, other = calibrate(logits, labels), calibrate(scale * (logits + shift), labels)
    assert other.alpha * scale == pytest.approx(calibration.alpha, rel=1e-6)
    torch.testing.assert_close(
        other.confidence(scale * (logits + shift)), calibration.confidence(logits), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_perfect_and_useless_logits_take_the_bounds(scale):
    logits, labels = two_classes(right=20, wrong=0)
    perfect = calibrate(scale * logits, labels)
    assert perfect.alpha * scale * 2 == pytest.approx(SCALES[1])
    assert predicted_confidence(perfect, scale * logits).quantile(0.5) == pytest.approx(CONFIDENT)
    assert calibrate(-scale * logits, labels).alpha * scale * 2 == pytest.approx(SCALES[0])
    constant = calibrate(0 * logits, labels)
    assert (constant.alpha, constant.eta) == (pytest.approx(SCALES[0]), 0)


def test_logits_that_are_not_finite_are_left_out():
    logits, labels = two_classes(right=19, wrong=1)
    broken = torch.tensor([[torch.nan, 0.0], [0.0, torch.inf], [-torch.inf, 0.0]])
    with_broken = calibrate(torch.cat([logits, broken]), torch.cat([labels, torch.tensor([0, 1, 0])]))
    assert with_broken == calibrate(logits, labels)
    with pytest.raises(ValueError, match="finite"):
        calibrate(broken, torch.tensor([0, 1, 0]))
