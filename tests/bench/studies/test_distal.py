"""Ascent from noise to certainty, on classifiers whose answer is known."""

import math

import pytest
import torch
from planned_study import planned_study
from torch import nn

from bench.conformance.checks import ClassMeans
from bench.contracts.cards import DefenseCard
from bench.contracts.confidence import CONFIDENT, Calibration, calibrate
from bench.contracts.door import mean_logits
from bench.contracts.protocols import as_defense
from bench.contracts.streams import Streams
from bench.datasets.dataset import load_dataset
from bench.engine.claims import FRESH_DRAWS
from bench.studies.distal import CALIBRATION_IMAGES, measure
from bench.studies.distal_ascent import distal_adversarials, evidence

SHAPE = (1, 4, 4)
PLAIN = Calibration(alpha=1, log_eta=-math.inf)


class Linear(nn.Module):
    """Each of 4 classes looks at a row of the image, with a logit of 0 to 20."""

    def logits(self, x):
        return 5 * x.sum((1, 3))


class Noisy(Linear):
    def logits(self, x, rng):
        return super().logits(x) + 4 * rng.normal((4,))


class Prototypes(nn.Module):
    """Minus squared distances to a black and a dark image, far from both of which noise lies."""

    def logits(self, x):
        levels = torch.tensor([0.0, 0.4])[:, None, None, None]
        return -(x[:, None] - levels).square().sum((2, 3, 4))


class Constant:
    """Logits that autograd sees no image in, with a derivative of their own."""

    def __init__(self, slope):
        self.slope = slope

    def logits(self, x):
        return Linear().logits(x).detach()

    def input_gradient(self, x):
        return self.logits(x), lambda weights: self.slope * weights[:, None, :, None].expand(-1, 1, 4, 4)


def made(model, batch_size=64, randomized=False):
    card = DefenseCard(name="model", datasets=("none",), batch_size=batch_size, randomized=randomized)
    return as_defense(card, model)


def ascend(model, calibration=PLAIN, per_class=3, batch_size=64, randomized=False, **options):
    return distal_adversarials(
        made(model, batch_size, randomized), 4, SHAPE, calibration, per_class=per_class, **options
    )


# The direction.


def slope(calibration, logits, targets):
    leaf = logits.clone().requires_grad_(True)
    return torch.autograd.grad(evidence(calibration)(leaf, targets).sum(), leaf)[0]


@pytest.mark.parametrize("log_eta", [-math.inf, -10.0, 0.0, 3.0])
def test_the_ascent_follows_the_part_of_the_confidence_that_the_image_gives_reason_for(log_eta):
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    leaf = logits.clone().requires_grad_(True)
    evidences = (2 * leaf).exp() + math.exp(log_eta)
    own = (2 * leaf).exp().gather(1, targets[:, None])[:, 0]
    (expected,) = torch.autograd.grad((own / evidences.sum(1)).log().sum(), leaf)
    torch.testing.assert_close(2 * slope(Calibration(2, log_eta), logits, targets), expected)


@pytest.mark.parametrize("logits", [[-500.0, 500.0], [-900.0, -800.0], [-3e38, 3e38]])
def test_there_is_a_direction_however_improbable_the_target_is(logits):
    weights = slope(Calibration(1, 0), torch.tensor([logits]), torch.tensor([0]))
    assert weights[0, 0] == 1
    assert weights.isfinite().all()


# The ascent.


def test_all_images_reach_certainty_of_a_linear_classifier():
    found = ascend(Linear())
    assert found.reached.all()
    assert found.targets.tolist() == [0, 1, 2, 3] * 3
    assert found.images.shape == (12, *SHAPE)
    assert ((found.images >= 0) & (found.images <= 1)).all()
    confidence = Linear().logits(found.images).double().softmax(1).gather(1, found.targets[:, None])[:, 0]
    torch.testing.assert_close(found.confidences, confidence)
    assert (ascend(Linear(), steps=int(found.steps.max()) - 1).reached == (found.steps < found.steps.max())).all()


def test_an_image_that_starts_certain_takes_no_step():
    certain = ascend(Linear(), Calibration(alpha=1e4, log_eta=-math.inf))
    start = ascend(Linear(), steps=0)
    at_once = certain.steps == 0
    assert at_once.any()
    assert torch.equal(certain.images[at_once], start.images[at_once])


def test_class_means_of_digits_are_reached():
    digits = load_dataset("digits")
    model = ClassMeans(digits)
    calibration = calibrate(model.logits(digits.test.images), digits.test.labels)
    assert distal_adversarials(made(model), 10, digits.shape, calibration, per_class=2).reached.all()


def test_noise_that_resembles_no_class_finds_its_way():
    """Its confidence in the black one is 1/2 less what the dark one takes: it would brighten to escape that."""
    calibration = Calibration(alpha=20, log_eta=-12)
    options = {"classes": 2, "shape": SHAPE, "calibration": calibration, "per_class": 8}
    start = distal_adversarials(made(Prototypes()), **options, steps=0)
    torch.testing.assert_close(start.confidences, torch.full_like(start.confidences, 0.5), rtol=0, atol=1e-3)
    found = distal_adversarials(made(Prototypes()), **options)
    assert found.reached.all()
    assert ((found.images.mean((1, 2, 3)) > 0.2) == (found.targets == 1)).all()


def test_what_never_arrives_keeps_its_best():
    # The largest evidence there is, exp(20), does not make up for this offset.
    unreachable = Calibration(alpha=1, log_eta=20)
    found, start = ascend(Linear(), unreachable, steps=60), ascend(Linear(), unreachable, steps=0)
    assert not found.reached.any()
    assert (found.steps == 60).all()
    assert ((start.confidences < found.confidences) & (found.confidences < CONFIDENT)).all()
    torch.testing.assert_close(
        unreachable.confidence(Linear().logits(found.images)).gather(1, found.targets[:, None])[:, 0],
        found.confidences,
    )


@pytest.mark.parametrize("slope", [0.0, math.nan, math.inf])
def test_without_a_usable_gradient_images_stay_as_they_are(slope):
    found, start = ascend(Constant(slope), steps=3), ascend(Constant(slope), steps=0)
    assert torch.equal(found.images, start.images)
    assert torch.equal(found.confidences, start.confidences)


def test_a_derivative_of_its_own_is_used():
    torch.testing.assert_close(ascend(Constant(5.0)).images, ascend(Linear()).images)


def test_unknown_confidence_never_counts():
    class Undefined(Linear):
        def logits(self, x):
            return super().logits(x) * math.nan

    found = ascend(Undefined(), steps=2)
    assert not found.reached.any()
    assert (found.confidences == 0).all()
    assert found.images.isfinite().all()


def test_an_image_pays_for_its_steps():
    found = ascend(Linear())
    # Also for the gradient at the image that arrived.
    assert torch.equal(found.oracle.forwards, found.steps + 1.0)
    assert torch.equal(found.oracle.backwards, found.oracle.forwards)


def test_a_study_divides_the_calibration_among_its_images():
    dataset = load_dataset("digits")
    study = planned_study("distal")
    records = measure(study, made(ClassMeans(dataset)), dataset, torch.device("cpu"), lambda samples: None).records
    calibration = min(CALIBRATION_IMAGES, len(dataset.test.labels)) / 20
    # And one pass for the confidence that is recorded.
    assert (records["forwards"] == records["steps"] + 1 + calibration + 1).all()
    assert (records["backwards"] == records["steps"] + 1).all()
    assert (records["status"] == "reached").all()


def test_an_image_without_finite_logits_has_failed():
    """Noise is bright, digits are not."""

    class Blind(ClassMeans):
        def logits(self, x):
            return super().logits(x).masked_fill((x.flatten(1).mean(1) > 0.45)[:, None], math.nan)

    dataset = load_dataset("digits")
    study = planned_study("distal")
    measured = measure(study, made(Blind(dataset)), dataset, torch.device("cpu"), lambda samples: None)
    bright = measured.images.reshape(20, -1).mean(1) > 0.45
    assert bright.any()
    assert ((measured.records["status"] == "failed") == bright).all()
    assert (measured.records["confidence"].isna() == bright).all()
    assert set(measured.records.loc[bright, "reason"]) == {"non_finite"}


# Independence.


@pytest.mark.parametrize("randomized", [False, True])
def test_an_image_does_not_depend_on_the_others(randomized):
    model = Noisy() if randomized else Linear()
    together = ascend(model, randomized=randomized)
    alone = ascend(model, randomized=randomized, batch_size=1)
    fewer = ascend(model, randomized=randomized, per_class=1)
    for other, rows in ((alone, slice(None)), (fewer, slice(4))):
        torch.testing.assert_close(together.images[rows], other.images)
        torch.testing.assert_close(together.confidences[rows], other.confidences)
        assert torch.equal(together.steps[rows], other.steps)


def test_each_image_and_seed_has_noise_of_its_own():
    start, other = ascend(Linear(), steps=0).images, ascend(Linear(), steps=0, seed=1).images
    assert len(torch.cat([start, other]).flatten(1).unique(dim=0)) == 24
    assert torch.equal(start, ascend(Linear(), steps=0).images)


# Randomized defenses.


def test_what_arrives_by_luck_is_measured_on_fresh_draws():
    found = ascend(Noisy(), randomized=True, per_class=50, draws=1, steps=0)
    streams, ids = Streams(0, range(200), "distal defense"), torch.arange(200)

    def measured(rows, draws):
        logits = mean_logits(made(Noisy(), randomized=True), found.images[rows], streams.rows(rows), draws)
        return PLAIN.confidence(logits).gather(1, found.targets[rows, None])[:, 0]

    first = measured(ids, 1)
    arrived = (first >= CONFIDENT).nonzero()[:, 0]
    again = measured(arrived, FRESH_DRAWS)
    assert (again < CONFIDENT).any()
    torch.testing.assert_close(found.confidences, first.index_copy(0, arrived, again))


def test_a_randomized_defense_is_reached_on_average():
    found = ascend(Noisy(), randomized=True)
    assert found.reached.all()
    streams = Streams(9, range(12), "fresh")
    logits = torch.stack([Noisy().logits(found.images, streams.rows(torch.arange(12))) for _ in range(500)]).mean(0)
    assert (PLAIN.confidence(logits).gather(1, found.targets[:, None]) > 0.85).all()
